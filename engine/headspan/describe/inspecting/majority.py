"""The verdict of several judges on each description: the majority of their votes; ties are undecided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8

from headspan.describe.descriptions.result import SPURIOUS, UNDECIDED, VERDICTS


def majority(votes: Int8[np.ndarray, "judge description"]) -> Int8[np.ndarray, " description"]:
    """The verdict that most judges gave; UNDECIDED if two have equally many votes, or if nobody voted."""
    counts = np.stack([(votes == number).sum(axis=0) for number in range(len(VERDICTS))])
    most = counts.max(axis=0)
    decided = ((counts == most).sum(axis=0) == 1) & (most > 0)
    found: Int8[np.ndarray, " description"] = np.where(decided, counts.argmax(axis=0), UNDECIDED).astype(np.int8)
    return found


def common_attributes(
    votes: Int8[np.ndarray, "judge description"],
    named: Sequence[Sequence[str]],
    verdicts: Int8[np.ndarray, " description"],
) -> tuple[str, ...]:
    """The attribute that most judges named who gave the description its verdict.

    Of equally common ones it is the one that an earlier judge named; empty for spurious and undecided descriptions.
    """
    found = []
    for place, verdict in enumerate(verdicts.tolist()):
        given = Counter(
            names[place]
            for names, cast in zip(named, votes[:, place].tolist(), strict=True)
            if cast == verdict > SPURIOUS and names[place]
        )
        # Equal counts stay in the order in which they were first met.
        found.append(given.most_common(1)[0][0] if given else "")
    return tuple(found)
