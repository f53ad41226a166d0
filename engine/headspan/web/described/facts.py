"""What is said about a run of descriptions: how its model was trained, how judges agree, and what the run lacks."""

from __future__ import annotations

from numbers import Real

from headspan.describe.descriptions.result import Descriptions
from headspan.describe.inspecting.summary import inspection_summary
from headspan.errors import counted
from headspan.web.answers.descriptions import JudgePair
from headspan.web.answers.stores import Fact
from headspan.web.asked import AskedStore


def facts(descriptions: Descriptions) -> list[Fact]:
    """The language model, what it was rewarded for, and the settings of its training that are a word or a number."""
    found = {
        "Language model": descriptions.model,
        "Rewarded for": str(descriptions.target),
        "Classes from": descriptions.classes_from,
        "Adapter": "none: the model is untrained"
        if descriptions.adapter_sha256 is None
        else descriptions.adapter_sha256[:12],
    }
    for name, value in descriptions.training.items():
        if isinstance(value, str) or (isinstance(value, Real) and not isinstance(value, bool)):
            # The first characters of a checksum are enough to tell one from another.
            words = value[:12] if isinstance(value, str) and name.endswith("sha256") else value
            found[_in_words(name)] = words if isinstance(words, str) else f"{float(words):.6g}"
    return [Fact(name=name, value=value) for name, value in found.items()]


def _in_words(name: str) -> str:
    if name in ("lr", "seed"):
        return {"lr": "Learning rate", "seed": "Seed of the training"}[name]
    return name.replace("_sha256", "'s checksum").replace("_", " ").capitalize()


def shares_and_agreement(
    descriptions: Descriptions,
) -> tuple[dict[str, tuple[float | None, float | None]], list[JudgePair]]:
    """The 95 % intervals of the verdicts' shares, and how every two judges agree; both empty before an inspection."""
    if descriptions.inspection is None:
        return {}, []
    found = inspection_summary(descriptions)
    return {name: (each.low, each.high) for name, each in found.every.shares.items()}, [
        JudgePair(
            judges=(each.first, each.second),
            texts=each.verdicts.pairs,
            same=each.verdicts.same,
            kappa=each.verdicts.kappa.value,
        )
        for each in found.agreement
    ]


def notices(asked: AskedStore, descriptions: Descriptions) -> list[str]:
    """What the run lacks and the command that adds it, and descriptions that were cut."""
    found = []
    if descriptions.inspection is None:
        found.append(
            "Nobody has inspected these descriptions: `headspan describe inspect "
            f"{asked.store.path} --run {descriptions.run}` asks judges which of them teach anything about their class."
        )
    if cut := int(descriptions.cut.sum()):
        found.append(
            f"{counted(cut, 'description')} of {len(descriptions.texts):,} filled the context of "
            f"{asked.store.attributes['model']}, so that their ends may have been cut."
        )
    return found
