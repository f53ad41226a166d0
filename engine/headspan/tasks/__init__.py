"""Tasks by which pruned models are scored: their declarations, their data, and their figures."""

from headspan.tasks.classification import Classification
from headspan.tasks.evaluation import Evaluation
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.retrieval import Retrieval
from headspan.tasks.segmentation import Segmentation
from headspan.tasks.skew import PromptSkews, Skew
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task, shipped_tasks
from headspan.tasks.worst_group import WorstGroup

__all__ = [
    "Classification",
    "Evaluation",
    "PromptSkews",
    "Retrieval",
    "Segmentation",
    "Skew",
    "Task",
    "WorstGroup",
    "evaluation_of",
    "read_task",
    "shipped_tasks",
]
