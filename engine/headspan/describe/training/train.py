"""Train a language model by reinforcement to write what a store's model prefers; a killed training continues."""

from __future__ import annotations

import gc
import platform
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headspan.config import AUTO
from headspan.describe.asked.classes import DescribedClasses, described_classes
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.policy.identity import language_model_sha256
from headspan.describe.policy.load import load_language_model
from headspan.describe.policy.policy import Policy, open_policy
from headspan.describe.policy.silence import silent
from headspan.describe.policy.tokens import check_context
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.measures import figures_of
from headspan.describe.training.prompts import every_prompt
from headspan.describe.training.settings import TrainingSettings
from headspan.describe.training.trained import (
    ADAPTER,
    ADAPTER_CONFIG,
    LOG,
    RESULT,
    Trained,
    adapter_sha256,
    open_trained,
)
from headspan.describe.training.untrained import untrained_answers
from headspan.errors import HeadspanError, SettingsError, StoreError
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.features.training.folder import only_trainer, prepare_folder, refuse_other_folder
from headspan.io.files import delete_folder, refusals
from headspan.io.json_files import read_json, write_json
from headspan.io.tensor_files import write_tensors
from headspan.run.devices import named_devices
from headspan.store.reader import Store
from headspan.user_paths import expand_user

# Sampled descriptions by which a model is measured before and after its training.
SAMPLES = 256
_UNTRAINED = "untrained.json"
# What a folder is that is trained into.
_ORIGIN = "a folder that describe train wrote"


def train(
    store: Store | str | Path | Reward,
    out: str | Path,
    language_model: str | Path,
    *,
    classes: DescribedClasses | None = None,
    target: Target | None = None,
    questions: Sequence[str] = QUESTIONS,
    settings: TrainingSettings | None = None,
    samples: int = SAMPLES,
    untrained: Mapping[str, float] | None = None,
    device: str = AUTO,
    weights: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    on_progress: Listener = ignore,
) -> Trained:
    """Train an adapter of a language model, and write it into the folder `out`.

    The folder keeps checkpoints of an unfinished training. The same call continues it, and ends with the adapter that
    an uninterrupted training gives, bit for bit (on a CPU with the same number of threads). A finished training of the
    same settings is returned as it is.

    Args:
        store: A store, or a reward, which has its classes and its target.
        out: The folder of the adapter.
        language_model: A folder, a `.gguf` file, or a repository of Hugging Face's hub.
        classes: What `described_classes` gave; by default the values of `class_name`.
        target: What is rewarded.
        questions: Questions about a class, with `{c}` in its place.
        settings: How it is trained.
        samples: Sampled descriptions by which the model is measured before and after; 0 for none.
        untrained: Figures of the untrained model that `Trained.untrained` gave for the same reward and samples, so
            that it is not measured again.
        device: auto, cpu or cuda:0.
        weights: The place of the weights of the store's model.
        checkpoint_seconds: The time between checkpoints.
        on_progress: A listener.

    Raises:
        SettingsError: If settings cannot be used, or differ from those of the folder.
        ModelError: If the language model or the store's model cannot be loaded, or a context is too short.
        StoreError: If the folder cannot be written, is damaged, or holds something else.
        HeadspanError: If transformers, PEFT or TRL is not installed.
    """
    folder = expand_user(out, StoreError)
    refuse_other_folder(folder, _ORIGIN)
    chosen = settings or TrainingSettings()
    on = named_devices(device)[0]
    if not questions:
        raise SettingsError("the list of questions is empty; give at least one, or leave it out for headspan's own")
    if samples < 0:
        raise SettingsError(f"samples is {samples}, but must be 0 or more")
    require_trl()
    if isinstance(store, Reward):
        if classes is not None or target is not None:
            raise SettingsError("a reward has its classes and its target; leave out classes and target")
        reward = store
    else:
        opened = store if isinstance(store, Store) else Store(store)
        found = classes if classes is not None else described_classes(opened, on_progress=on_progress)
        reward = Reward(opened, found, target, weights=weights, on_progress=on_progress)
    model, tokenizer = load_language_model(language_model, str(on))
    rows = every_prompt(reward.classes.names, questions)
    check_context(model, tokenizer, [row["prompt"] for row in rows], chosen.tokens, str(language_model))
    wanted = {
        "language_model": str(language_model),
        "language_model_sha256": language_model_sha256(language_model),
        "model": str(reward.store.attributes["model"]),
        "weights_sha256": reward.store.attributes.get("weights_sha256"),
        "target": reward.target.as_json(),
        "classes": list(reward.classes.names),
        "classes_from": reward.classes.source,
        "images": [len(reward.classes.images(number)) for number in range(len(reward.classes.names))],
        "questions": list(questions),
        "training": chosen.as_json(),
        "samples": samples,
    }
    if prepare_folder(folder, wanted, RESULT, _versions(), "a training", _ORIGIN):
        on_progress(Progress(NOTE, 1, 1, f"{folder} was already trained with the same settings; it is unchanged"))
        return open_trained(folder)
    with only_trainer(folder, on_progress):
        if untrained is not None and not (folder / RESULT).is_file():
            write_json(folder / _UNTRAINED, untrained)
        if not (folder / RESULT).is_file():
            with _generators_kept(on):
                _run(folder, model, tokenizer, rows, reward, chosen, wanted, on_progress, checkpoint_seconds)
    return open_trained(folder)


def require_trl() -> None:
    """Raise HeadspanError if TRL or PEFT is not installed."""
    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise HeadspanError(
            f"describe train needs TRL and PEFT, and one is not installed ({error}): pip install 'headspan[describe]'"
        ) from error


def _versions() -> dict[str, str]:
    packages = ("headspan", "torch", "transformers", "peft", "trl")
    return {**{name: version(name) for name in packages}, "python": platform.python_version()}


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Leave the caller's random generators, which trainers seed, as they are."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _run(
    folder: Path,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    reward: Reward,
    settings: TrainingSettings,
    wanted: dict[str, Any],
    on_progress: Listener,
    checkpoint_seconds: float,
) -> None:
    """Take all steps that are left, and write the adapter, its log and its figures."""
    # Imported here, since TRL takes seconds, and unusable settings are refused before.
    from headspan.describe.training.steps import CHECKPOINTS, POSITION, Steps
    from headspan.describe.training.trainers import make_trainer

    samples, name, device = wanted["samples"], wanted["language_model"], str(model.device)

    def figures(policy: Policy, note: str) -> dict[str, float]:
        on_progress(Progress(NOTE, 1, 1, f"measuring {samples:,} descriptions of the {note} model"))
        return figures_of(policy, rows, reward, samples, settings.tokens, settings.batch)

    if not (folder / _UNTRAINED).is_file():
        write_json(folder / _UNTRAINED, figures(Policy(model, tokenizer, name), "untrained") if samples else {})
    drawn_from = (
        untrained_answers(Policy(model, tokenizer, name), rows, reward, settings) if settings.untrained else None
    )
    steps = Steps(folder, reward, settings, on_progress, checkpoint_seconds)
    checkpoint = steps.restored()
    if checkpoint is not None:
        done = len(steps.log["step"])
        on_progress(Progress(NOTE, 1, 1, f"continued after step {done:,} of {settings.steps:,}"))
    with silent():
        trainer = make_trainer(
            model, tokenizer, rows, steps.rewards, settings, folder / CHECKPOINTS, [steps], drawn_from
        )
        trainer.train(resume_from_checkpoint=checkpoint)
    _write_adapter(folder, trainer.model, name)
    write_json(folder / LOG, steps.log)
    # The trainer has changed the model's forward pass, so the adapter is measured on a fresh one.
    del trainer, model
    gc.collect()
    trained = figures(open_policy(name, folder, device), "trained") if samples else {}
    untrained = read_json(folder / _UNTRAINED, "delete the folder to train from the start")
    before = {f"untrained_{name}": value for name, value in untrained.items() if not name.startswith(("kl", "samples"))}
    write_json(folder / RESULT, {"figures": {**trained, **before}, "adapter_sha256": adapter_sha256(folder)})
    with refusals(folder):
        for left in (POSITION, _UNTRAINED):
            (folder / left).unlink(missing_ok=True)
    delete_folder(folder / CHECKPOINTS)


def _write_adapter(folder: Path, model: Any, language_model: str) -> None:
    """Write the adapter as PEFT reads it."""
    from peft import get_peft_model_state_dict

    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": language_model, "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    write_json(folder / ADAPTER_CONFIG, plain)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    write_tensors(folder / ADAPTER, {name: state[name] for name in sorted(state)}, {"format": "pt"})
