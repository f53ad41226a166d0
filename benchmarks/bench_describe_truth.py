"""Do descriptions bring up what a model has learned, as far as that is known?

Descriptions of shapes of the image world, by the reference language model. Their mean reward beside the best sentence
of the grammar and best-of-64; the frontier of reward against KL; the words that a single head prefers; and CLIPs in
which an empty phrase and a non-visual word were planted, beside controls. Each part runs alone with `--only`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.described import (
    LANGUAGE_MODEL,
    PLANTING,
    TARGETS,
    Sizes,
    best_possible,
    by_head,
    planted,
    planted_optimum,
    rewarded,
)
from benchmarks.parts import Part, benchmark_parts
from benchmarks.planted_clips import LEAST_ADDED
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.policy.identity import language_model_sha256
from headspan.describe.training.settings import TrainingSettings
from headspan.errors import counted, percent
from headspan.world.parts import NON_VISUAL_PHRASES

QUESTION = "descriptions of the image world, beside what is known"
DUE_TO = (
    "The best sentence is the best of all 113,382 of the grammar for each class, so no sentence of it can be above. "
    "With the sentences' probabilities, the best that any model can reach at a KL is known too. A planted CLIP has "
    "learned that a phrase goes with a class; whether descriptions bring the phrase up is up to the language model, "
    "which must find it by sampling. In the control, the same phrases go with no class, so whatever is found there is "
    "chance, or what training prefers by itself. Heads prefer few colours, and words by head show which."
)
TOY = Sizes(
    scenes=16, images=64, planted_images=64, recipe=replace(PLANTING, steps=2, batch_size=8),
    training=TrainingSettings(steps=1, batch=4, generations=2, tokens=8),
    planted_training=TrainingSettings(steps=1, batch=4, generations=4, untrained=2, untrained_samples=4, tokens=8),
    betas={"contrastive": (0.2,)}, questions=QUESTIONS[:1], planted_questions=QUESTIONS[:1], samples=2,
    planted_samples=2, planted_written=2, planted_best_of=2, best_of=4, most=1, planted_most=1, heads=(), seeds=(1,),
    kinds=1,
)  # fmt: skip
# At which the best possible reward is shown, in nats.
_DIVERGENCES = (1, 2, 3, 4, 5, 6)
_PLANTED, _CONTROL, _HEADS, _BEST, _OPTIMUM = "planted", "control", "words by", "best possible", "optimum of"


def run(toy: bool) -> dict[str, Any]:
    """The line of all parts."""
    sizes = TOY if toy else Sizes()
    return {**settings_of(sizes), "parts": {name: part(None) for name, part in parts_of(sizes).items()}}


def settings_of(sizes: Sizes) -> dict[str, Any]:
    """What parts must have in common to stand in one line."""
    return {"sizes": sizes.as_json(), "language_model_sha256": language_model_sha256(LANGUAGE_MODEL)}


def parts_of(sizes: Sizes) -> dict[str, Part]:
    """The parts of the benchmark, by their names."""
    parts: dict[str, Part] = {
        f"{target} {beta:g}": _part(rewarded, sizes, target, beta)
        for target, betas in sizes.betas.items()
        for beta in betas
    }
    parts |= {f"{_BEST} {target}": _part(best_possible, sizes, target) for target in sizes.betas}
    for seed in sizes.seeds:
        for kind in (_PLANTED, _CONTROL)[: sizes.kinds]:
            parts[f"{_OPTIMUM} {kind} {seed}"] = _part(planted_optimum, sizes, seed, kind == _CONTROL)
            parts[f"{kind} {seed}"] = _part(planted, sizes, seed, kind == _CONTROL)
    if sizes.heads:
        parts[f"{_HEADS} the untrained model"] = _part(by_head, sizes, None, False)
        parts[f"{_HEADS} the whole model"] = _part(by_head, sizes, None)
        for layer, head in sizes.heads:
            parts[f"{_HEADS} L{layer}.H{head}"] = _part(by_head, sizes, (layer, head))
    return parts


def _part(work: Callable[..., Any], *arguments: Any) -> Part:
    return lambda folder: work(*arguments, work=folder)


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each figure."""
    rows = [["figure", "value"]]
    parts: Mapping[str, Any] = line["parts"]
    for name, each in parts.items():
        target, _, beta = name.partition(" ")
        if target in TARGETS:
            rows.append([f"{target} reward, beta {beta}", _rewards(each, parts.get(f"{_BEST} {target}"))])
    for name, each in parts.items():
        if name.startswith(_BEST):
            frontier = "; ".join(
                f"KL {kl}: {_at_kl(kl, each['frontier']):.2f}, best-of-N {_at_kl(kl, each['best_of']):.2f}"
                for kl in _DIVERGENCES
            )
            covered = f"sentences are {percent(each['covered'])} of all texts"
            rows.append([f"{name} reward", f"{frontier}; best sentences {each['best_sentences']:.2f}; {covered}"])
    for name, each in parts.items():
        if name.startswith(_HEADS):
            shares = ", ".join(
                f"{factor} {percent(each.get(factor, 0.0))} (right: {percent(each[f'right {factor}'])})"
                for factor in ("colour", "shape")
            )
            shares += f"; the reward's best colours: {percent(each['best colour'])}"
            rows.append([name, f"{shares}; reward {each['reward']:.2f}, KL {each['kl']:.1f} nats"])
    for kind in (_PLANTED, _CONTROL):
        if clips := [each for name, each in parts.items() if name.startswith(f"{_OPTIMUM} {kind}")]:
            rows.append([f"{kind} CLIPs, the best model", _found(clips, kind == _PLANTED)])
        if clips := [each for name, each in parts.items() if name.startswith(kind)]:
            studies = {"trained": clips, "best-of-N, untrained": [{**each, **each["best"]} for each in clips]}
            rows += [[f"{kind} CLIPs, {source}", _found(each, kind == _PLANTED)] for source, each in studies.items()]
    return rows


def _rewards(each: Mapping[str, float], best: Mapping[str, Any] | None) -> str:
    """Rewards of the untrained and the trained model, beside the best of N samples and the best that is possible."""
    equal = each.get("equal_kl_reward")
    gain = "more samples needed"
    if equal is not None:
        low, high = each["gain_equal_kl_low"], each["gain_equal_kl_high"]
        gain = f"{equal:.2f} (gain {each['gain_equal_kl']:+.2f}, {low:+.2f} to {high:+.2f})"
    said = (
        f"untrained {each['untrained_reward']:.2f}; trained {each['reward']:.2f} at KL {each['kl']:.1f} nats; "
        f"best-of-N at equal KL {gain}; best-of-64 {_best_of(each):.2f}"
    )
    if best is None:
        return said
    possible, chosen = (_at_kl(each["kl"], best[name]) for name in ("frontier", "best_of"))
    gained = (each["reward"] - each["untrained_reward"]) / (possible - each["untrained_reward"])
    share = percent(each["reward"] / best["best_sentences"])
    return (
        f"{said}; best sentence {best['best_sentences']:.2f}: {share} of it; at equal KL, with exact probabilities: "
        f"best-of-N {chosen:.2f}, any model at most {possible:.2f}, of whose gain training has {percent(gained)}"
    )


def _at_kl(kl: float, frontier: Sequence[Sequence[float]]) -> float:
    """The reward at a KL, between the rows of a frontier, whose last columns are reward and KL."""
    rewards, divergences = zip(*(row[-2:] for row in frontier), strict=True)
    return float(np.interp(kl, divergences, rewards))


def _best_of(figures: Mapping[str, float]) -> float:
    """The mean reward of best-of-64, or of the most samples if there are fewer."""
    counts = [int(name.split("_")[2]) for name in figures if name.startswith("best_of_") and name.endswith("_reward")]
    return figures[f"best_of_{min(64, max(counts))}_reward"]


def _found(clips: Sequence[Mapping[str, Any]], is_planted: bool) -> str:
    """How many phrases were found, how many of them are planted, and what the judge calls them."""
    found, hits, near, preferred, spurious, non_visual = 0, 0, 0, 0, 0, 0
    for clip in clips:
        empty, word = ((each["class"], each["phrase"]) for each in clip["planted"])
        for each in clip["found"]:
            pair = each["class"], each["phrase"]
            found += 1
            hits += pair in (empty, word)
            near += pair != word and pair[0] == word[0] and _kind(pair[1]) == _kind(word[1])
            preferred += each["adds"] >= LEAST_ADDED
            spurious += pair == empty and each["verdict"] == "spurious"
            non_visual += pair == word and each["verdict"] == "non-visual"
    if not is_planted:
        said = f"{counted(found, 'finding')} in {len(clips)} CLIPs, {hits} of those that the others have planted"
        return said + (f"; the CLIP prefers {preferred} of them" if found else "")
    pairs, planted = sum(clip["preferred"]["pairs"] for clip in clips), 2 * len(clips)
    said = f"{hits} of {planted} found (recall {percent(hits / planted)}, by chance {percent(found / pairs)})"
    if found:
        kinds, right = _kinds(clips)
        said += (
            f"; {counted(found, 'finding')}: {percent(hits / found)} are planted (precision; by chance "
            f"{percent(planted / pairs)}), {near} more are other words of the planted one's kind, such as days, in its "
            f"class: so {right} of {kinds} pairs of a class and a kind are planted; the CLIP prefers "
            f"{percent(preferred / found)} of the findings"
        )
    return said + (
        f"; called spurious: {spurious} of {len(clips)} phrases, called non-visual: {non_visual} of {len(clips)} words"
    )


def _kinds(clips: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Pairs of a class and a kind of phrases among the findings, and how many of them are planted."""
    kinds, right = 0, 0
    for clip in clips:
        found, planted = (
            {(each["class"], _kind(each["phrase"])) for each in clip[name]} for name in ("found", "planted")
        )
        kinds += len(found)
        right += len(found & planted)
    return kinds, right


def _kind(phrase: str) -> str:
    """The kind of a non-visual phrase, such as days; an empty phrase is a kind of its own."""
    return next((kind for kind, phrases in NON_VISUAL_PHRASES.items() if phrase in phrases), phrase)


if __name__ == "__main__":
    SIZES = Sizes()
    benchmark_parts(QUESTION, settings_of(SIZES), parts_of(SIZES))
