"""Open what writing needs: the language model, trained or not, and the reward with its classes and target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headspan.describe.asked.classes import DescribedClasses, described_classes
from headspan.describe.policy.policy import Policy, open_policy
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.trained import SETTINGS, Trained, open_trained
from headspan.errors import SettingsError
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.store.reader import Store, open_store
from headspan.tasks.task_file import read_task
from headspan.user_paths import expand_user

_KEY, _TASK = "key ", "task "


@dataclass(frozen=True, slots=True)
class Writer:
    """A language model, and how it was trained; None if it was not."""

    policy: Policy
    trained: Trained | None

    @property
    def run(self) -> str:
        """A name for the run of what it writes."""
        name = self.trained.folder.resolve().name if self.trained else Path(self.policy.name).stem
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-") or "descriptions"


def trained_of(language_model: Trained | Policy | str | Path) -> Trained | None:
    """What `train` wrote, if `language_model` is that or its folder. Raises as `open_trained` does."""
    if isinstance(language_model, Trained):
        return language_model
    if isinstance(language_model, Policy) or not (expand_user(language_model) / SETTINGS).is_file():
        return None
    return open_trained(language_model)


def open_writer(language_model: Trained | Policy | str | Path, trained: Trained | None, device: str) -> Writer:
    """The language model on a device. Raises ModelError if it cannot be loaded."""
    if isinstance(language_model, Policy):
        return Writer(language_model, None)
    if trained is not None:
        return Writer(trained.policy(device), trained)
    assert not isinstance(language_model, Trained)
    return Writer(open_policy(language_model, device=device), None)


def open_reward(
    store: Store | str | Path | Reward,
    trained: Trained | None,
    classes: DescribedClasses | None = None,
    target: Target | None = None,
    weights: str | Path | None = None,
    on_progress: Listener = ignore,
) -> Reward:
    """The reward of what is written; without classes or target, as in the training.

    Raises SettingsError if a reward and more is given, or the classes of the training are not known here; and the
    errors of `described_classes` and `Reward`.
    """
    if isinstance(store, Reward):
        if classes is not None or target is not None:
            raise SettingsError("a reward has its classes and its target; leave out classes and target")
        reward = store
    else:
        opened = store if isinstance(store, Store) else open_store(store)
        found = classes if classes is not None else _classes(opened, trained, on_progress)
        wanted = target or (trained.target if trained else None)
        reward = Reward(opened, found, wanted, weights=weights, on_progress=on_progress)
    if trained is not None and (name := reward.store.attributes.get("model")) != trained.model:
        said = f"{trained.folder} was trained for {trained.model}, and its descriptions are rewarded by {name}"
        on_progress(Progress(NOTE, 1, 1, said))
    return reward


def trained_classes(
    store: Store, trained: Trained, names: Sequence[str] | None = None, on_progress: Listener = ignore
) -> DescribedClasses:
    """The classes of a training, or those of its task or key that are named, with their images in `store`.

    Raises SettingsError if the task cannot be found by its name, and as `described_classes` does.
    """
    source, wanted = trained.classes_from, names or trained.classes
    if source.startswith(_KEY):
        return described_classes(store, key=source.removeprefix(_KEY), names=wanted, on_progress=on_progress)
    try:
        task = read_task(source.removeprefix(_TASK))
    except SettingsError as error:
        raise SettingsError(
            f"{trained.folder}: was trained on the classes of {source}, which is not a task of headspan's; give its "
            "file with --task (in Python classes=)"
        ) from error
    return described_classes(store, task=task, names=wanted, on_progress=on_progress)


def _classes(store: Store, trained: Trained | None, on_progress: Listener) -> DescribedClasses:
    if trained is None:
        return described_classes(store, on_progress=on_progress)
    return trained_classes(store, trained, on_progress=on_progress)
