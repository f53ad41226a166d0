"""Language models behind any OpenAI-compatible endpoint: client, cache of answers, budget."""

from headspan.llm.asking import Asker, Plan
from headspan.llm.cache import Answer, AnswerCache, Question
from headspan.llm.endpoint import Endpoint, Patience
from headspan.llm.forms import Form, NotAsAskedError

__all__ = ["Answer", "AnswerCache", "Asker", "Endpoint", "Form", "NotAsAskedError", "Patience", "Plan", "Question"]
