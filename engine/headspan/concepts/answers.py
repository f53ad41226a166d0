"""Store raw answers of language models beside the results made from them, as an array of JSON bytes."""

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
    """One answer: `where` it belongs (layer, head, …), the question, every reply, and the value read from them."""
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
    """Records as an array that `analyses.save` takes."""
    return np.frombuffer(json.dumps(list(records)).encode(), np.uint8), ("byte",)


def read_records(store: Store, kind: str, run: str) -> list[Record]:
    """The records of a run; empty if no language model was asked for it. Raises StoreError if they are damaged."""
    return records_of(results.load(store, kind, run)[0], f"{store.path}/{kind}/{run}")


def records_of(arrays: Mapping[str, np.ndarray], where: str) -> list[Record]:
    """The records among a run's arrays; `where` names the run in errors."""
    if "answers" not in arrays:
        return []
    try:
        found: list[Record] = json.loads(arrays["answers"].tobytes())
    except ValueError as error:
        raise StoreError(
            f"{where}: its raw answers are damaged ({error}); run the command that made this run again"
        ) from error
    return found


def texts_of(record: Record) -> tuple[str, ...]:
    """The words of every reply, on one line each; empty words if there were none."""
    return tuple(" ".join((reply["content"] or reply["refusal"] or "").split()) for reply in record["replies"])


def endpoints(records: Sequence[Record]) -> list[str]:
    """The endpoints that the answers came from, each once."""
    return sorted({record["endpoint"] for record in records})


def served_as(records: Sequence[Record]) -> list[str]:
    """The models' names according to the endpoints, each once."""
    return sorted({reply["model"] for record in records for reply in record["replies"] if reply.get("model")})
