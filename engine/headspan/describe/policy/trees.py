"""Sample answers and compute their log-probabilities, with the beginnings that answers share computed once.

The answers to a prompt form a tree of tokens below the prompt. Each token is computed once, however many answers
contain it, and attends to the prompt and to the tokens before it alone. So the numbers are those of separate answers,
up to rounding. This needs a model with attention that takes masks for each pair of tokens, which `takes_trees` finds
out.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

# Answers of a prompt in one tree; attention grows with the square of a tree.
_ANSWERS = 96
# The largest tree of a pass is at most so many times as large as the smallest, since smaller ones are padded.
_UNEVEN = 1.3
# The most tokens of a pass, and the most numbers in its result, which has one for each token of the vocabulary.
_TOKENS, _NUMBERS = 8192, 2**26
# How far log-probabilities may be from those of separate answers, in nats, for float32 and for 16 bits.
_CLOSE, _CLOSE_16 = 1e-3, 0.25


@dataclass(frozen=True, slots=True)
class Sampled:
    """Answers in the order of their prompts: their tokens, and the end token if there is one; and log-probabilities."""

    answers: list[list[int]]
    log_p: list[list[float]]


@dataclass(slots=True)
class _Tree:
    """The tokens of the answers to a prompt: numbers of parents (0 for the prompt) and of tokens, from 1 on.

    Tokens that are followed by others have slots, which are what the model computes; the prompt has slot 0.
    """

    prompt: list[int]
    parents: list[int] = field(default_factory=lambda: [0])
    tokens: list[int] = field(default_factory=lambda: [0])
    # By parent and token; and for each answer, the numbers of its tokens.
    known: dict[tuple[int, int], int] = field(default_factory=dict)
    paths: list[list[int]] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=lambda: {0: 0})

    def add(self, answer: Sequence[int]) -> None:
        """Add an answer to the tree."""
        path, parent = [], 0
        for token in answer:
            if parent not in self.slots:
                self.slots[parent] = len(self.slots)
            number = self.known.get((parent, token))
            if number is None:
                number = self.known[parent, token] = len(self.parents)
                self.parents.append(parent)
                self.tokens.append(token)
            path.append(number)
            parent = number
        self.paths.append(path)

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.slots) - 1


def takes_trees(model: Any, tokens: Sequence[int]) -> bool:
    """Whether a model gives the same log-probabilities for answers in a tree as for separate ones.

    `tokens` are the numbers of some tokens; if they are all the same, nothing is found out, and the answer is no.
    """
    one, other = tokens[0], next((each for each in tokens if each != tokens[0]), None)
    if other is None:
        return False
    prompts = [[one, other, one], [one, other, one], [other, one]]
    answers = [[other, other, one], [other, one, one], [one, other]]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found, _ = log_probabilities(model, prompts, answers)
            expected = torch.zeros_like(found)
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                ids = torch.tensor([prompt + answer], device=model.device)
                plain = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
                expected[row, : len(answer)] = plain[range(len(answer)), answer]
            drawn = sample(model, prompts[1:], len(answers[0]), [-1])
            again, _ = log_probabilities(model, prompts[1:], drawn.answers)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
        # Models of other kinds refuse such masks or positions, each in its own way.
        return False
    finally:
        model.train(training)
    close = _CLOSE if next(model.parameters()).dtype == torch.float32 else _CLOSE_16
    steps = torch.tensor(drawn.log_p, device=again.device)
    return bool((found - expected).abs().max() <= close and (steps - again).abs().max() <= close)


def log_probabilities(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int | None = None
) -> tuple[Tensor, Tensor]:
    """The log-probability of each token of each answer, and the entropy of the distribution that it is from, in nats.

    Both are `[answer, token]`, `width` tokens wide or as wide as the longest answer, with zeros after an answer's end.
    """
    trees, rows = _trees_of(prompts, answers)
    order = sorted(range(len(trees)), key=lambda number: trees[number].size)
    log_p: list[Tensor] = []
    entropies: list[Tensor] = []
    # Where the numbers of a tree begin among those of all.
    begins = [0] * len(trees)
    total = 0
    most = min(_TOKENS, _NUMBERS // int(model.config.get_text_config().vocab_size))
    for chunk in _chunks(order, trees, most):
        of_chunk = [trees[number] for number in chunk]
        chosen, entropy = _pass(model, of_chunk)
        for number in chunk:
            begins[number] = total
            total += len(trees[number].parents)
        log_p.append(chosen)
        entropies.append(entropy)
    width = max(map(len, answers)) if width is None else width
    # The number 0 of the first tree stands for what follows the end of an answer.
    places = torch.zeros(len(answers), width, dtype=torch.long)
    counted = torch.zeros(len(answers), width)
    for tree, own, begin in zip(trees, rows, begins, strict=True):
        for row, path in zip(own, tree.paths, strict=True):
            places[row, : len(path)] = torch.tensor(path) + begin
            counted[row, : len(path)] = 1.0
    places, counted = places.to(model.device), counted.to(model.device)
    return torch.cat(log_p)[places] * counted, torch.cat(entropies)[places] * counted


def _trees_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[list[_Tree], list[list[int]]]:
    """Trees of at most `_ANSWERS` answers to the same prompt, and the rows of their answers."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(row)
    trees, rows = [], []
    for prompt, own in by_prompt.items():
        # Answers with the same beginning are neighbours, and so in one tree.
        ordered = sorted(own, key=lambda row: [*answers[row]])
        for start in range(0, len(ordered), _ANSWERS):
            some = ordered[start : start + _ANSWERS]
            tree = _Tree([*prompt])
            for row in some:
                tree.add(answers[row])
            trees.append(tree)
            rows.append(some)
    return trees, rows


def _chunks(order: Sequence[int], trees: Sequence[_Tree], most: int) -> list[list[int]]:
    """Numbers of trees of similar sizes, from the smallest, with at most so many tokens together if they can."""
    found: list[list[int]] = []
    for number in order:
        size = trees[number].size
        if not found or size > _UNEVEN * trees[found[-1][0]].size or size * (len(found[-1]) + 1) > most:
            found.append([])
        found[-1].append(number)
    return found


def _pass(model: Any, trees: Sequence[_Tree]) -> tuple[Tensor, Tensor]:
    """For each token of each tree, one tree after the other: its log-probability, and the entropy before it."""
    longest = max(len(tree.prompt) for tree in trees)
    most = max(len(tree.slots) for tree in trees)
    whole = longest + most - 1
    ids = torch.zeros(len(trees), whole, dtype=torch.long)
    positions = torch.zeros(len(trees), whole, dtype=torch.long)
    # Padding attends to itself, since each token must attend to one.
    seen = torch.eye(whole, dtype=torch.bool).repeat(len(trees), 1, 1)
    before: list[int] = []
    for row, tree in enumerate(trees):
        length = len(tree.prompt)
        first = longest - length
        ids[row, first:longest] = torch.tensor(tree.prompt)
        positions[row, first:longest] = torch.arange(length)
        seen[row, first:longest, first:longest] = torch.ones(length, length, dtype=torch.bool).tril()
        inner = [*tree.slots][1:]
        ids[row, longest : longest + len(inner)] = torch.tensor([tree.tokens[each] for each in inner], dtype=torch.long)
        for slot, number in enumerate(inner, start=longest):
            parent = longest - 1 + tree.slots[tree.parents[number]]
            seen[row, slot, :slot] = seen[row, parent, :slot]
            seen[row, slot, slot] = True
            positions[row, slot] = positions[row, parent] + 1
        # The root's own row of the result means nothing.
        before += [row * most + tree.slots[each] for each in tree.parents]
    result = model(
        input_ids=ids.to(model.device),
        attention_mask=_additive(seen, model),
        position_ids=positions.to(model.device),
        use_cache=False,
        logits_to_keep=most,
    )
    distribution = result.logits.float().log_softmax(dim=-1).flatten(0, 1)
    entropy = -(distribution.detach().exp() * distribution.detach()).sum(dim=-1)
    slots = torch.tensor(before, device=model.device)
    tokens = torch.tensor([token for tree in trees for token in tree.tokens], device=model.device)
    return distribution[slots, tokens], entropy[slots]


def _additive(seen: Tensor, model: Any) -> Tensor:
    """A mask that is added to the products of queries and keys, the same for all heads."""
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None].to(model.device)


def sample(
    model: Any, prompts: Sequence[Sequence[int]], tokens: int, ends: Sequence[int], greedy: bool = False
) -> Sampled:
    """An answer of at most `tokens` tokens to every prompt, drawn from the model's distribution or the likeliest token.

    `ends` are the numbers of the tokens that end an answer. Answers to equal prompts that follow each other are drawn
    together: of those with the same beginning, it is drawn how many go on with each token.
    """
    from transformers import DynamicCache

    runs = [(list(prompt), len([*same])) for prompt, same in groupby(map(list, prompts))]
    roots = [(prompt, min(_ANSWERS, count - start)) for prompt, count in runs for start in range(0, count, _ANSWERS)]
    device, cache = model.device, DynamicCache(config=model.config)
    name = "cache" if "cache" in inspect.signature(_plain(model).forward).parameters else "past_key_values"
    longest = max(len(prompt) for prompt, _ in roots)
    ids = torch.zeros(len(roots), longest, dtype=torch.long)
    # For each node of the level above, which columns of keys it attends to, and its position.
    seen = torch.zeros(len(roots), 1, longest, dtype=torch.bool)
    for row, (prompt, _) in enumerate(roots):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        seen[row, 0, longest - len(prompt) :] = True
    positions = (seen[:, 0].long().cumsum(dim=1) - 1).clamp(min=0)
    square = torch.ones(longest, longest, dtype=torch.bool).tril() & seen | torch.eye(longest, dtype=torch.bool)
    at = positions[:, -1:]
    count = sum(each for _, each in roots)
    root_of = torch.repeat_interleave(torch.tensor([each for _, each in roots]))
    node_of, going = torch.zeros(count, dtype=torch.long), torch.arange(count)
    answers: list[list[int]] = [[] for _ in range(count)]
    log_p: list[list[float]] = [[] for _ in range(count)]
    stops = torch.tensor([*ends])
    mask = square
    for depth in range(tokens):
        logits = model(
            input_ids=ids.to(device),
            attention_mask=_additive(mask, model),
            position_ids=positions.to(device),
            use_cache=True,
            logits_to_keep=1 if depth == 0 else 0,
            **{name: cache},
        ).logits
        distribution = logits.float().log_softmax(dim=-1)
        rows, nodes = root_of[going].to(device), node_of[going].to(device)
        of_sample = distribution[rows, nodes]
        drawn = of_sample.argmax(dim=-1) if greedy else torch.multinomial(of_sample.exp(), 1).squeeze(1)
        chances = of_sample.gather(1, drawn[:, None]).squeeze(1).tolist()
        drawn = drawn.cpu()
        for number, token, chance in zip(going.tolist(), drawn.tolist(), chances, strict=True):
            answers[number].append(token)
            log_p[number].append(chance)
        on = ~torch.isin(drawn, stops)
        going, drawn = going[on], drawn[on]
        if not len(going) or depth == tokens - 1:
            break
        ids, parents, node_of_going, padded = _level(root_of[going], node_of[going], drawn, len(roots))
        node_of[going] = node_of_going
        seen = seen[torch.arange(len(roots))[:, None], parents]
        own = torch.eye(ids.shape[1], dtype=torch.bool).repeat(len(roots), 1, 1)
        mask = seen = torch.cat([seen & ~padded[..., None], own], dim=2)
        at = positions = at.gather(1, parents) + 1
    return Sampled(answers, log_p)


def _level(roots: Tensor, nodes: Tensor, drawn: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next level of all trees: its tokens, their parents, each sample's place in its tree's level, and padding."""
    rows, inverse = torch.stack([roots, nodes, drawn]).unique(dim=1, return_inverse=True)
    widths = torch.bincount(rows[0], minlength=count)
    begins = widths.cumsum(0) - widths
    places = torch.arange(rows.shape[1]) - begins[rows[0]]
    ids, parents = (torch.zeros(count, int(widths.max()), dtype=torch.long) for _ in range(2))
    ids[rows[0], places] = rows[2]
    parents[rows[0], places] = rows[1]
    return ids, parents, places[inverse], torch.arange(ids.shape[1]) >= widths[:, None]


def _plain(model: Any) -> Any:
    """A model without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
