"""Refuse a worker that has another version of headspan, or other weights, than the workers of the run under way.

The first worker of a run notes its version and weights in an object that only one worker can write. Those that join
read that object, and no other worker's state. Where it differs, the states tell whether a worker of that run is alive.
If none is, a new run begins with the next number.
"""

from __future__ import annotations

import json
from typing import Any

from headspan.io.storage import Storage
from headspan.store.worker_states import Seen, WorkerState, other_workers, run_key

# What the workers of a run have in common: what it is called, its field in the state, and how much of it is shown.
_COMMON = (("headspan", "version", None), ("the image tower sha256", "weights_sha256", 12))


def unlike(storage: Storage, token: str, mine: WorkerState, seen: Seen, *, begins: bool = True) -> str | None:
    """Say how a living worker of the run differs from `mine`; None if no worker differs.

    This worker's state is written already, so that of two that join at once, one finds the other. With `begins`, this
    worker notes its version and weights if nobody has.
    """
    common = _common(mine)
    note = json.dumps(common).encode()
    number = max(0, seen.runs - 1)
    while True:
        try:
            found: Any = json.loads(storage.get(run_key(number)))
        except FileNotFoundError:
            if not begins or storage.put_if_absent(run_key(number), note):
                return None
            continue
        except ValueError:
            found = {}
        if found == common:
            return None
        for worker in other_workers(storage, token):
            if worker.alive and worker.state is not None and _common(worker.state) == found:
                return f"{worker.state.name} computes this store with {_difference(found, common)}"
        number += 1


def _common(state: WorkerState) -> dict[str, str]:
    return {field: getattr(state, field) for _, field, _ in _COMMON}


def _difference(theirs: dict[str, str], mine: dict[str, str]) -> str:
    name, field, length = next(each for each in _COMMON if theirs[each[1]] != mine[each[1]])
    return f"{name} {theirs[field][:length]}, but this process has {mine[field][:length]}"
