"""The steps of a training as they are logged, and the checkpoints between them.

A row of the log joins what the trainer reports with what is measured of the step's descriptions. `position.json` names
the newest whole checkpoint and holds the rows up to it. It is replaced after a checkpoint is on disk, so a training
that is killed at any time continues from a whole one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from headspan.describe.rewards.reward import Reward
from headspan.describe.training.measures import measured
from headspan.describe.training.settings import TrainingSettings
from headspan.events import Listener, Progress
from headspan.io.files import delete_folder, sync_tree
from headspan.io.json_files import read_json, write_json

POSITION, CHECKPOINTS = "position.json", "checkpoints"
# A number for every step.
Log = dict[str, list[float]]


class Steps(TrainerCallback):
    """The reward function of a trainer, and its callback."""

    def __init__(
        self,
        folder: Path,
        reward: Reward,
        settings: TrainingSettings,
        on_progress: Listener,
        checkpoint_seconds: float,
    ) -> None:
        self.log: Log = {}
        self._folder, self._reward, self._settings = folder, reward, settings
        self._on_progress, self._checkpoint_seconds = on_progress, checkpoint_seconds
        self._measured: dict[str, float] = {}
        self._began = self._kept = time.monotonic()

    def restored(self) -> str | None:
        """Take up the log of an unfinished training; returns the folder of its checkpoint, None if there is none."""
        path = self._folder / POSITION
        if not path.is_file():
            return None
        position = read_json(path, "delete the folder to train from the start")
        self.log = {name: list(values) for name, values in position["log"].items()}
        return str(self._folder / CHECKPOINTS / position["checkpoint"])

    def rewards(self, completions: Sequence[str], class_number: Sequence[int], **others: Any) -> list[float]:
        """The rewards of a step's descriptions."""
        texts = [" ".join(text.split()) for text in completions]
        # A training that continues after a kill has no vectors from before.
        self._reward.texts.forget()
        found: list[float] = self._reward.of(texts, class_number).tolist()
        # The untrained model's, the last ones of each prompt, are not the model's own.
        each = self._settings.generations
        own = [place for place in range(len(texts)) if place % each < each - self._settings.untrained]
        self._measured = measured([texts[place] for place in own], [found[place] for place in own], self._reward)
        return found

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:
        """Add a row to the log."""
        if not logs or "loss" not in logs:
            # The summary after the last step.
            return
        now = time.monotonic()
        length = logs["completions/mean_length"]
        row = {
            "step": float(state.global_step),
            **self._measured,
            # The trainer reports the mean over all tokens.
            "kl": logs["kl"] * length,
            "length": length,
            "ended": 1.0 - logs["completions/clipped_ratio"],
            "entropy": logs["entropy"],
            "loss": logs["loss"],
            "gradient": float(logs["grad_norm"]),
            "seconds": now - self._began,
        }
        self._began = now
        for name, value in row.items():
            self.log.setdefault(name, []).append(value)
        note = f"reward {row['reward']:.2f}, KL {row['kl']:.2f}"
        self._on_progress(Progress("training", state.global_step, self._settings.steps, note))

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Ask for a checkpoint if the last one is old."""
        late = time.monotonic() - self._kept >= self._checkpoint_seconds
        control.should_save = late and state.global_step < self._settings.steps

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Name the new checkpoint, once it is on disk."""
        name = f"checkpoint-{state.global_step}"
        sync_tree(self._folder / CHECKPOINTS)
        write_json(self._folder / POSITION, {"checkpoint": name, "log": self.log})
        for older in (self._folder / CHECKPOINTS).iterdir():
            if older.name != name:
                delete_folder(older)
        self._kept = time.monotonic()
