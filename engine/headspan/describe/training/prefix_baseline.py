"""Compare each token of a description with the descriptions that begin as this one does before the token.

A token changes only what follows it. Its baseline is therefore the mean reward of the other descriptions of the prompt
that have the same tokens before it. No baseline depends on the token or on what follows it, so the mean of the gradient
is that of one baseline for each prompt. Its variance is smaller.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from jaxtyping import Float
from torch import Tensor

# Few other descriptions may have a beginning, so its baseline is a mean of their rewards and of this many times the
# baseline of the beginning that is shorter by a token. With less weight, the gradients of groups of four have more
# variance than with one baseline for each prompt.
_WEIGHT = 2.0


def prefix_advantages(
    advantages: Float[Tensor, " answer"],
    prompts: Sequence[Hashable],
    answers: Sequence[Sequence[int]],
    width: int,
) -> Float[Tensor, "answer token"]:
    """The advantage of each token, with zeros after an answer's end.

    `advantages` are those of whole answers: the reward less the mean reward of the other answers to the same prompt,
    as RLOO computes them. The advantage of a token is the reward less the baseline of the tokens before it.
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
        beginnings = {row: [tuple(answers[row][:length]) for length in range(len(answers[row]))] for row in rows}
        sums: dict[tuple[int, ...], tuple[float, int]] = {}
        for row in rows:
            for beginning in beginnings[row]:
                total, count = sums.get(beginning, (0.0, 0))
                sums[beginning] = total + values[row], count + 1
        for row in rows:
            value, baseline, weight = values[row], 0.0, 0.0
            of_answer = []
            for beginning in beginnings[row]:
                total, count = sums[beginning]
                if count > 1 or weight:
                    baseline = (total - value + weight * baseline) / (count - 1 + weight)
                weight = _WEIGHT
                of_answer.append(value - baseline)
            found[row, : len(of_answer)] = advantages.new_tensor(of_answer)
    return found
