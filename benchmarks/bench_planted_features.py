"""Do the learners of features find atoms that are known, and does MDS tell whose they are?

Pairs of vectors of 64 numbers are made of 144 atoms: 72 of both sides, 36 of images alone, 36 of texts alone. Each
learner trains a dictionary of 288 features with as many active as a vector has atoms. Each atom gets the feature that
matches it (Hungarian method). Shown are the mean cosine, the share of atoms whose cosine is above 0.9, and the AUC with
which MDS and energy score order the matched features: texts alone, both, images alone; MDS with texts shuffled beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from benchmarks.measure import benchmark
from benchmarks.planted import IMAGE_ONLY, SHARED, TEXT_ONLY, Planted, auc, matched
from headspan.features.learners.kinds import LEARNERS
from headspan.features.learners.learner import IMAGE, TEXT, Learner
from headspan.features.learners.make import make_learner
from headspan.features.scores.codes import sparse_codes
from headspan.features.scores.dominance import DominanceSums
from headspan.features.training.settings import TrainingSettings

QUESTION = "planted atoms recovered"
DUE_TO = (
    "Matching pursuit chooses each atom by what the others leave over, so that it tells atoms apart that one linear "
    "encoder confuses. Of Matryoshka's loss, codes as sparse as these vectors have a fifth, and codes of up to 64 "
    "features the rest. With texts shuffled, MDS orders atoms as well: how often each side uses an atom is enough. "
    "Published for another setup (arXiv 2602.06218; matching pursuit without and with the alignment term): 29 % and "
    "52 % of the atoms recovered; here the term gains nothing, since all are recovered without it. Directions of the "
    "contrastive learner, which has no decoder, are means of vectors weighted by codes; it is not trained to keep "
    "what one side has alone."
)
_RECOVERED = 0.9


def run(toy: bool, learners: Sequence[str] = LEARNERS, steps: int | None = None) -> dict[str, Any]:
    """For each learner: recovered atoms and the AUC of both scores."""
    steps = steps or (3 if toy else 600)
    count = 300 if toy else 20_000
    planted = Planted()
    training, held_out = planted.pairs(count), planted.pairs(min(count, 5_000), draw=1)
    atoms = planted.shared + 2 * planted.own
    rows = {}
    for kind in learners:
        k = {} if kind == "non_negative" else {"k": planted.shared_active + planted.own_active}
        learner = trained(kind, training, TrainingSettings(steps=steps, batch=256, lr=2e-3), features=2 * atoms, **k)
        rows[kind] = found(learner, planted, held_out)
    return {
        "atoms": atoms,
        "features": 2 * atoms,
        "pairs": count,
        "steps": steps,
        "recovered": _RECOVERED,
        "rows": rows,
    }


def trained(kind: str, pairs: tuple[np.ndarray, np.ndarray], settings: TrainingSettings, **of_learner: Any) -> Learner:
    """A learner after training on pairs that are drawn with replacement."""
    torch.manual_seed(settings.seed)
    images, texts = (torch.from_numpy(side) for side in pairs)
    learner = make_learner(kind, images.shape[1], **of_learner)
    learner.start(images, texts)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=settings.lr, weight_decay=0, fused=True)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.rate(step)
        batch = torch.randint(len(images), (settings.batch,))
        optimizer.zero_grad()
        learner.loss(images[batch], texts[batch])["total"].backward()
        clip_grad_norm_(learner.parameters(), settings.clip)
        optimizer.step()
        learner.after_step(step)
    return learner.eval()


@torch.inference_mode()
def found(learner: Learner, planted: Planted, pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """How well a learner's features match the planted atoms, by held-out pairs."""
    sides = [torch.from_numpy(side) for side in pairs]
    codes = [learner.encode(vectors, side) for side, vectors in enumerate(sides)]
    z, w = (sparse_codes(side.numpy()) for side in codes)
    features = z.shape[1]
    sums, shuffled = DominanceSums(features, 1), DominanceSums(features, 1)
    sums.add(z, w)
    shuffled.add(z, w[np.random.default_rng(0).permutation(w.shape[0])])
    scores = sums.scores()
    feature, cosine = matched(planted.atoms(), _directions(learner, sides, codes))
    kinds = planted.kinds()
    recovered = cosine > _RECOVERED
    row = {
        "cosine": float(cosine.mean()),
        "recovered": float(recovered.mean()),
        "recovered_shared": float(recovered[kinds == SHARED].mean()),
        "recovered_own": float(recovered[kinds != SHARED].mean()),
        "auc_mds": _ordered(scores.mds[feature], kinds),
        "auc_energy": _ordered(scores.energy[feature], kinds),
        "auc_shuffled": _ordered(shuffled.scores().mds[feature], kinds),
        "active": float((codes[0] > 0).sum(1).float().mean() + (codes[1] > 0).sum(1).float().mean()) / 2,
        "unused": float((scores.active == 0).mean()),
    }
    if learner.decodes:
        left = [
            vectors - learner.decode(code, side) for side, (vectors, code) in enumerate(zip(sides, codes, strict=True))
        ]
        spread = [vectors - vectors.mean(0) for vectors in sides]
        row["explained"] = 1 - float(sum(_energy(each) for each in left) / sum(_energy(each) for each in spread))
    return {name: round(value, 4) for name, value in row.items()}


def _energy(vectors: Tensor) -> float:
    return float(vectors.square().sum())


def _directions(
    learner: Learner, sides: Sequence[Tensor], codes: Sequence[Tensor]
) -> Float32[np.ndarray, "feature width"]:
    own = learner.directions()
    if own is not None:
        return np.asarray(own.numpy())
    # Each side about its mean, since a feature's mean would else be the offset of its side.
    weighted = sum(codes[side].t() @ (sides[side] - sides[side].mean(0)) for side in (IMAGE, TEXT))
    assert isinstance(weighted, Tensor)
    return np.asarray(weighted.numpy())


def _ordered(scores: Float[np.ndarray, " atom"], kinds: np.ndarray) -> float:
    """The AUC of images' atoms above shared ones and of these above texts', on average. A feature never active is in
    the middle."""
    known = np.nan_to_num(scores, nan=0.5)
    text, shared, image = (known[kinds == kind] for kind in (TEXT_ONLY, SHARED, IMAGE_ONLY))
    return (auc(text, shared) + auc(shared, image)) / 2


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each learner."""
    head = ["learner", "mean cosine", "atoms recovered", "shared", "of one side", "AUC of MDS", "of energy", "shuffled"]
    rows = []
    for kind, row in line["rows"].items():
        shares = [f"{row[name]:.2f}" for name in ("recovered", "recovered_shared", "recovered_own")]
        aucs = [f"{row[name]:.3f}" for name in ("auc_mds", "auc_energy", "auc_shuffled")]
        rows.append([kind, f"{row['cosine']:.3f}", *shares, *aucs, f"{row['active']:.1f}", _explained(row)])
    return [[*head, "active features", "variance explained"], *rows]


def _explained(row: Mapping[str, float]) -> str:
    return f"{row['explained']:.3f}" if "explained" in row else "no decoder"


if __name__ == "__main__":
    benchmark(QUESTION, run)
