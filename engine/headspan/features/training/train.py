"""Train a dictionary on pairs, step by step; a killed training continues with the same command to the same weights."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from headspan.config import AUTO
from headspan.errors import SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.features.learners.learner import Learner
from headspan.features.learners.make import learner_settings, make_learner
from headspan.features.pairs.block import Block
from headspan.features.pairs.image_vectors import space_of
from headspan.features.pairs.opening import open_pairs
from headspan.features.pairs.pairs import Pairs
from headspan.features.pairs.space import EMBEDDING
from headspan.features.training.checkpoint import restore_training, save_training
from headspan.features.training.dictionary import Dictionary, open_dictionary
from headspan.features.training.files import CONFIG, LOSSES, REST, SETTINGS, STATE, WEIGHTS, write_dictionary
from headspan.features.training.folder import only_trainer, prepare_folder, refuse_other_folder
from headspan.features.training.settings import TrainingSettings, as_json, training_settings
from headspan.head_names import Head
from headspan.io.files import final_name, refusals
from headspan.io.json_files import read_json, write_json
from headspan.run.devices import named_devices
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.user_paths import expand_user

# Losses that the history holds at most, and pairs that the learner sees before the first step.
_HISTORY, _SAMPLE = 500, 16_384
# What a folder is that is trained into.
_ORIGIN = "a dictionary that headspan trained"


def train(
    stores: Store | str | Path | Sequence[Store | str | Path] | Pairs,
    out: str | Path,
    learner: str = "batch_topk",
    *,
    space: str = EMBEDDING,
    heads: Sequence[Head] | None = None,
    layers: Sequence[int] | None = None,
    captions: bool = True,
    images: Images | None = None,
    seed: int = 0,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    precision: str = AUTO,
    device: str = AUTO,
    keep: str | Path | None = None,
    weights: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    on_progress: Listener = ignore,
    **settings: Any,
) -> Dictionary:
    """Train a dictionary of features on the pairs of stores, and write it into the folder `out`.

    The folder keeps a checkpoint of an unfinished training. The same call continues it, and ends with the weights that
    an uninterrupted training gives, bit for bit (on a CPU; sums on a GPU have no fixed order). A finished dictionary of
    the same settings is returned as it is.

    Args:
        stores: A store or several of one model, or pairs that `open_pairs` gave.
        out: The folder of the dictionary.
        learner: The kind of learner; its own settings, such as `features` and `k`, are further keywords.
        space: `embedding`, `heads` or `patches`, with `heads` or `layers` as in `open_pairs`.
        heads: The heads whose coordinates are learned, as (layer, head).
        layers: All heads of these layers.
        captions: Whether captions are learned too; False learns from images alone.
        images: Some images, for a single store.
        seed: Decides first weights, order and drawing.
        epochs: Passes over all pairs (5, and at least 2,000 steps in all), instead of `steps`.
        steps: Steps of the optimiser.
        batch: Pairs in a batch (1,024).
        lr: The largest learning rate (4e-4).
        weight_decay: AdamW's weight decay (0).
        clip: The length that gradients are cut to; 0 for none (1).
        precision: fp32 or bf16 of the loss; by default bf16 on a GPU.
        device: auto, cpu or cuda:0.
        keep: The folder that keeps the vectors of captions.
        weights: The place of the model's weights, for captions.
        checkpoint_seconds: The time between checkpoints.
        on_progress: A listener.

    Raises:
        SettingsError: If settings cannot be used, or differ from those of the folder, or the loss is no number.
        StoreError: If the folder cannot be written, is damaged, or holds something else.
    """
    folder = expand_user(out, StoreError)
    refuse_other_folder(folder, _ORIGIN)
    on = named_devices(device)[0]
    given = {"batch": batch, "lr": lr, "weight_decay": weight_decay, "clip": clip, "seed": seed}
    number_format = ("bf16" if on.type == "cuda" else "fp32") if precision == AUTO else precision
    if not isinstance(stores, Pairs):
        # Settings are checked before captions are embedded, which may take minutes.
        named = [stores] if isinstance(stores, (Store, str, Path)) else stores
        stores = opened = [each if isinstance(each, Store) else Store(each) for each in named]
        training_settings(1, number_format, given, epochs=epochs, steps=steps)
        if opened:
            learner_settings(learner, space_of(opened[0], space, heads, layers).width, **settings)
    pairs = (
        stores
        if isinstance(stores, Pairs)
        else open_pairs(
            stores,
            space,
            heads=heads,
            layers=layers,
            captions=captions,
            images=images,
            keep=keep,
            weights=weights,
            on_progress=on_progress,
        )
    )
    chosen = training_settings(len(pairs), number_format, given, epochs=epochs, steps=steps)
    # The caller's generators stay as they are.
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        torch.manual_seed(seed)
        module = make_learner(learner, pairs.space.width, **settings)
        if module.needs_texts and not pairs.with_texts:
            raise SettingsError(
                f"the learner {learner} learns from images with their captions, but these pairs have none; choose "
                "another learner, or the embedding of stores with captions"
            )
        wanted = {
            "learner": learner,
            "settings": module.settings,
            "training": as_json(chosen),
            "space": pairs.space.as_json(),
            "pairs": len(pairs),
            "texts": pairs.with_texts,
            "captions_sha256": pairs.captions_sha256,
        }
        if prepare_folder(folder, wanted, CONFIG, _versions(), "a dictionary", _ORIGIN):
            on_progress(Progress(NOTE, 1, 1, f"{folder} was already trained with the same settings; it is unchanged"))
            return open_dictionary(folder)
        with only_trainer(folder, on_progress):
            # The process before may have deleted the folder of a training that diverged.
            if not prepare_folder(folder, wanted, CONFIG, _versions(), "a dictionary", _ORIGIN):
                _Training(folder, pairs, module.to(on), chosen, on_progress, checkpoint_seconds).run()
    return open_dictionary(folder)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"headspan": version("headspan"), "torch": torch.__version__, "python": platform.python_version()}


@dataclass(slots=True)
class _Training:
    """One training on its way."""

    folder: Path
    pairs: Pairs
    learner: Learner
    settings: TrainingSettings
    on_progress: Listener
    checkpoint_seconds: float

    def run(self) -> None:
        """Take all steps that are left, and write the dictionary."""
        for path in self.folder.iterdir():
            # What a killed process had half written.
            if (name := final_name(path)) is not None and name[0].name in (STATE, LOSSES, WEIGHTS, REST, CONFIG):
                path.unlink(missing_ok=True)
        settings, learner = self.settings, self.learner
        decay = settings.weight_decay
        # One pass over weights and state: five times as fast on a CPU as an operation after the other.
        optimizer = torch.optim.AdamW(learner.parameters(), lr=settings.lr, weight_decay=decay, fused=True)
        done, history = restore_training(self.folder, learner, optimizer)
        if done:
            self.on_progress(Progress(NOTE, 1, 1, f"continued after step {done:,} of {settings.steps:,}"))
        else:
            self._start()
        learner.train()
        every, kept_at = max(1, settings.steps // _HISTORY), time.monotonic()
        for images, texts in self._batches(done):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(done)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                terms = learner.loss(images, texts)
            terms["total"].backward()
            if settings.clip:
                clip_grad_norm_(learner.parameters(), settings.clip)
            optimizer.step()
            learner.after_step(done)
            done += 1
            if done % every == 0 or done == settings.steps:
                history.append(self._losses(done, terms))
            if done < settings.steps and time.monotonic() - kept_at >= self.checkpoint_seconds:
                save_training(self.folder, learner, optimizer, done, history)
                write_json(self.folder / LOSSES, history)
                kept_at = time.monotonic()
            note = f"loss {history[-1]['total']:.4f}" if history else ""
            self.on_progress(Progress("training", done, settings.steps, note))
        write_json(self.folder / LOSSES, history)
        trained = read_json(self.folder / SETTINGS, "delete the folder to train from the start")
        write_dictionary(self.folder, learner.to("cpu"), self.pairs.space, trained)
        with refusals(self.folder):
            (self.folder / STATE).unlink(missing_ok=True)

    def _start(self) -> None:
        """Show the learner a sample of the pairs in the order of the first epoch."""
        images, texts = zip(*self._sample(), strict=True)
        with torch.no_grad():
            self.learner.start(torch.cat(images), None if texts[0] is None else torch.cat(texts))

    def _sample(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        left = _SAMPLE
        for block in self.pairs.blocks(min(left, len(self.pairs)), self.settings.seed):
            yield self._tensors(block)
            left -= len(block)
            if left <= 0:
                break

    def _batches(self, done: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches from step `done` on, epoch after epoch."""
        batch, steps = self.settings.batch, self.settings.steps
        per_epoch = len(self.pairs) // batch
        while done < steps:
            epoch, within = divmod(done, per_epoch)
            blocks = self.pairs.blocks(batch, self.settings.seed, epoch=epoch, skip=within * batch, drop_last=True)
            for block in blocks:
                yield self._tensors(block)
                done += 1
                if done == steps:
                    break

    def _tensors(self, block: Block) -> tuple[Tensor, Tensor | None]:
        device = next(self.learner.parameters()).device
        images = torch.from_numpy(block.images).to(device)
        return images, None if block.texts is None else torch.from_numpy(block.texts).to(device)

    def _losses(self, done: int, terms: dict[str, Tensor]) -> dict[str, float]:
        """The terms of a step's loss as numbers. Raises SettingsError if the loss is no number."""
        found = {name: float(term.detach()) for name, term in terms.items()}
        if not math.isfinite(found["total"]):
            self._delete()
            raise SettingsError(
                f"{self.folder}: the loss is {found['total']} after {counted(done, 'step')}, so nothing was kept; "
                f"choose a smaller --lr than {self.settings.lr}"
            )
        return {"step": done, **found}

    def _delete(self) -> None:
        """Delete what the training wrote, so that another one can have the folder; other files are kept."""
        for name in (STATE, LOSSES, SETTINGS):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
