"""Compare each token of a description with the descriptions that begin as this one does before the token.

A token can only change what follows it. So what its description has beyond those of the same beginning is its own
doing, and what a beginning was worth is not counted for the tokens behind it. The gradient has the same mean as with
one baseline for a prompt, since no baseline depends on the token or on what follows it, and less noise.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from jaxtyping import Float
from torch import Tensor

# The baseline of a beginning counts as so many descriptions in that of the beginning which is longer by a token, which
# one or two others may have. With less, groups of four have more noise than with one baseline for a prompt.
_WEIGHT = 2.0


def prefix_advantages(
    advantages: Float[Tensor, " answer"],
    prompts: Sequence[Hashable],
    answers: Sequence[Sequence[int]],
    width: int,
) -> Float[Tensor, "answer token"]:
    """The advantage of each token, with zeros after an answer's end.

    `advantages` are those of whole answers over the others of the same prompt, as RLOO has them. That of a token is
    over other answers with the same beginning, and over shorter beginnings if there are few of those.
    """
    found = advantages.new_zeros(len(answers), width)
    groups: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    given = advantages.double().tolist()
    for rows in groups.values():
        others = len(rows) - 1
        # Rewards up to a constant: each one's distance from the mean of all.
        values = {row: given[row] * others / len(rows) for row in rows}
        sums: dict[tuple[int, ...], tuple[float, int]] = {}
        for row in rows:
            for length in range(len(answers[row])):
                beginning = tuple(answers[row][:length])
                total, count = sums.get(beginning, (0.0, 0))
                sums[beginning] = total + values[row], count + 1
        for row in rows:
            value, baseline, weight = values[row], 0.0, 0.0
            of_answer = []
            for length in range(len(answers[row])):
                total, count = sums[tuple(answers[row][:length])]
                if count > 1 or weight:
                    baseline = (total - value + weight * baseline) / (count - 1 + weight)
                weight = _WEIGHT
                of_answer.append(value - baseline)
            found[row, : len(of_answer)] = advantages.new_tensor(of_answer)
    return found
