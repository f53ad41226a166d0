"""How fast is a step of training a TopK dictionary, beside `overcomplete` and SAELens?

The same model in one process, a step of each in turn: vectors of 512 numbers in batches of 4,096, 8,192 features of
which 32 are active, float32, Adam, gradients clipped to length 1. A step is the forward and backward pass, the
optimiser, and the counting of features that are active. Peers at their best settings: Adam is fused for all, and
nothing is logged. SAELens has dense codes, since its sparse codes have no backward pass on a CPU. Peers that are not
installed are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from benchmarks.measure import alternate, benchmark, median, ratio
from benchmarks.peers import overcomplete_sae
from headspan.features.learners.make import make_learner

QUESTION = "training a TopK dictionary"
DUE_TO = (
    "One product of vectors and encoder is dense; decoding and all gradients visit active features only, where the "
    "peers multiply with 8,192-wide codes that are mostly zeros. What is left is that product, the choice of the "
    "largest activations, and the optimiser."
)
OURS = "headspan"


def run(toy: bool) -> dict[str, Any]:
    """Images a second of each, and how often ours is as fast."""
    width, features, k, batch, repeats = (16, 64, 4, 50, 1) if toy else (512, 8192, 32, 4096, 5)
    torch.manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(batch, width), dim=1)
    steps = {OURS: _ours(images, features, k)}
    if overcomplete_sae() is not None:
        steps["overcomplete"] = _overcomplete(images, features, k)
    if find_spec("sae_lens") is not None:
        steps["SAELens"] = _sae_lens(images, features, k)
    times = alternate(steps, repeats)
    rows = {
        name: {"images_per_second": round(batch / median(taken)), "times_ours": ratio(times, name, OURS)}
        for name, taken in times.items()
    }
    # The arithmetic that a step cannot do without: the activations of all features.
    activations = alternate({"product": lambda: images @ torch.empty(width, features)}, repeats)["product"]
    return {
        "width": width,
        "features": features,
        "k": k,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "product_share": round(median(activations) / median(times[OURS]), 3),
        "rows": rows,
    }


def _ours(images: Tensor, features: int, k: int) -> Callable[[], None]:
    learner = make_learner("topk", images.shape[1], features=features, k=k)
    learner.start(images, None)
    optimizer = Adam(learner.parameters(), 4e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        learner.loss(images, None)["total"].backward()
        clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        learner.after_step(0)

    return step


def _overcomplete(images: Tensor, features: int, k: int) -> Callable[[], None]:
    """The step of `overcomplete.sae.train_sae` without its logging."""
    from overcomplete.sae import MLPEncoder, TopKSAE
    from overcomplete.sae.trackers import DeadCodeTracker

    # The encoder is linear, as the others' are; that of default has a norm behind it.
    encoder = MLPEncoder(images.shape[1], features, nb_blocks=1, norm_layer=torch.nn.Identity)
    model = TopKSAE(images.shape[1], features, top_k=k, encoder_module=encoder)
    optimizer = Adam(model.parameters(), 4e-4, fused=True)
    dead = DeadCodeTracker(features, "cpu")

    def step() -> None:
        optimizer.zero_grad()
        _, codes, decoded = model(images)
        loss = mse_loss(decoded, images)
        dead.update(codes)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _sae_lens(images: Tensor, features: int, k: int) -> Callable[[], None]:
    """The step of SAELens' `SAETrainer` without its logging."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    config = TopKTrainingSAEConfig(d_in=images.shape[1], d_sae=features, k=k)
    model = TopKTrainingSAE(config)
    optimizer = Adam(model.parameters(), 4e-4, fused=True)
    idle = torch.zeros(features)

    def step() -> None:
        given = TrainStepInput(
            sae_in=images, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        out = model.training_forward_pass(step_input=given)
        with torch.no_grad():
            fired = out.feature_acts.bool().float().sum(-2).bool()
            idle.add_(1)
            idle[fired] = 0
        out.loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each library."""
    rows = [
        [name, f"{row['images_per_second']:,}", f"{1 / row['times_ours']:.2f}", _share(name, line)]
        for name, row in line["rows"].items()
    ]
    return [["library", "images a second", "of ours", "share of the step in the dense product"], *rows]


def _share(name: str, line: Mapping[str, Any]) -> str:
    return f"{100 * line['product_share']:.0f} %" if name == OURS else "not measured"


if __name__ == "__main__":
    benchmark(QUESTION, run)
