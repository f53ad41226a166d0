"""Raw answers of language models, kept with the results they led to: a JSON list of records, as bytes in an array."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headspan.errors import StoreError
from headspan.llm.cache import Answer, Question
from headspan.store import results
from headspan.store.reader import Store

Record = dict[str, Any]


def record(question: Question, answer: Answer, **where: Any) -> Record:
    """One answer: what it is about, who was asked what, every reply, and what was read from them."""
    return {
        **where,
        "model": question.model,
        "endpoint": answer.base_url,
        "prompt": question.prompt,
        "value": answer.value,
        "complaint": answer.complaint,
        "replies": list(answer.replies),
    }


def as_array(records: Sequence[Record]) -> results.Named:
    """Records as `analyses.save` takes them."""
    return np.frombuffer(json.dumps(list(records)).encode(), np.uint8), ("byte",)


def read_records(store: Store, kind: str, run: str) -> list[Record]:
    """The records of a run; empty where no language model was asked for it."""
    return records_of(results.load(store, kind, run)[0], f"{store.path}/{kind}/{run}")


def records_of(arrays: Mapping[str, np.ndarray], where: str) -> list[Record]:
    """The records among a run's arrays."""
    if "answers" not in arrays:
        return []
    try:
        found: list[Record] = json.loads(arrays["answers"].tobytes())
    except ValueError as error:
        raise StoreError(
            f"{where}: its raw answers are damaged ({error}); run the command that made it again"
        ) from error
    return found


def endpoints(records: Sequence[Record]) -> list[str]:
    """Where the answers came from, each once."""
    return sorted({record["endpoint"] for record in records})


def served_as(records: Sequence[Record]) -> list[str]:
    """The models as the endpoints name them, each once."""
    return sorted({reply["model"] for record in records for reply in record["replies"] if reply.get("model")})
