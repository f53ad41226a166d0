"""Descriptions from start to end on one's own machine: scenes, store, training, writing, inspection, report.

The images are held-out scenes of the image world, the model is the reference CLIP, and the included small language
model learns to describe the twelve shapes. All sentences of at most two values are tried as well, so that it is known
what reward they reach at best. The judge is the world's annotations, so no other language model is asked.

A demo replaces an earlier demo in its folder and deletes nothing else; `demo_folder` says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headspan.config import PrecomputeSettings
from headspan.demo import analyse_scenes, draw_scenes
from headspan.demo_folder import DemoFolder
from headspan.describe.asked.classes import described_classes
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.descriptions.result import Descriptions
from headspan.describe.inspecting.inspect_run import inspect
from headspan.describe.inspecting.summary import InspectionSummary, inspection_summary
from headspan.describe.policy.reference import REFERENCE
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.settings import TrainingSettings
from headspan.describe.training.train import train
from headspan.describe.writing.write import write
from headspan.events import Listener, ignore
from headspan.report.collect import write_report
from headspan.store.reader import Store
from headspan.world.annotated_judge import annotated_judge
from headspan.world.best_sentences import BestSentence, best_sentences, embed_sentences

# The reference CLIP was trained on seed 0 and tuned on seed 1.
IMAGES, IMAGES_PER_SHARD, SEED = 600, 200, 3
KEY = "objects.shape"
# A contrastive reward: what describes a shape, and not every shape.
TARGET = Target(contrast=True)
# All prompts in each step, at a high rate, so that a few steps of so small a model suffice. What all classes have in
# common is learned first, and what is particular to one is rare among the model's own descriptions, so half of them are
# the untrained model's best. The first steps, in which some descriptions miss their class, have large gradients; a
# short memory of them and a low limit keep them from slowing down the others. Answers have at most 18 tokens.
SETTINGS = TrainingSettings(
    steps=36, batch=576, generations=16, untrained=8, untrained_samples=256, tokens=20, lr=6e-3, decay=0.3, beta=0.2,
    dropout=0.0, adam_beta2=0.95, clip=0.2,
)  # fmt: skip
# A few of the questions, so that the best of 64 answers to each takes seconds.
ASKED = QUESTIONS[::9]
MEASURED, SAMPLES, BEST_OF = 48, 4, 64
# The most values and phrases of the sentences that are tried.
TRIED = 2
RUN, UNTRAINED_RUN, JUDGE = "shapes", "shapes-untrained", "annotations"
_STORE, _TRAINED, _REPORT = "run.zarr", "shapes.trained", "report.html"


@dataclass(frozen=True, slots=True)
class DescribeDemoResult:
    """The demo's report and store, what the trained and the untrained model write, and the best sentences."""

    report: Path
    store: Path
    descriptions: Descriptions
    untrained: Descriptions
    inspected: InspectionSummary
    untrained_inspected: InspectionSummary
    best: tuple[BestSentence, ...]
    # The number of descriptions of a prompt, of which the best is the baseline.
    best_of: int


def run(out: str | Path, on_progress: Listener = ignore) -> DescribeDemoResult:
    """Draw scenes, precompute, train, write, inspect and report, all in the folder `out`.

    Needs torch and the packages of the extra `describe`. An earlier demo in the folder is replaced. If the folder holds
    anything else, nothing is deleted, and StoreError is raised.
    """
    place = DemoFolder.begin(out)
    shards = draw_scenes(place, IMAGES, IMAGES_PER_SHARD, SEED, on_progress)
    settings = PrecomputeSettings(
        shards=(shards,),
        out=str(place.making / _STORE),
        model="reference",
        layers="all",
    )
    store, _ = analyse_scenes(settings, on_progress)
    reward = Reward(store, described_classes(store, key=KEY), TARGET, on_progress=on_progress)
    train(
        reward,
        place.making / _TRAINED,
        REFERENCE,
        questions=ASKED,
        settings=SETTINGS,
        samples=MEASURED,
        on_progress=on_progress,
    )
    place.move(_TRAINED)
    by_trained = _written(store, reward, place.folder / _TRAINED, RUN, BEST_OF, on_progress)
    # The best of the untrained model's descriptions is known from the other run.
    by_untrained = _written(store, reward, REFERENCE, UNTRAINED_RUN, 0, on_progress)
    enumerated = embed_sentences(reward.texts, TRIED, on_progress)
    write_report(store, place.making / _REPORT, on_progress=on_progress)
    place.move(_STORE, _REPORT)
    place.making.rmdir()
    return DescribeDemoResult(
        place.folder / _REPORT,
        place.folder / _STORE,
        by_trained,
        by_untrained,
        inspection_summary(by_trained),
        inspection_summary(by_untrained),
        best_sentences(reward, enumerated),
        BEST_OF,
    )


def _written(
    store: Store,
    reward: Reward,
    language_model: str | Path,
    run_name: str,
    best_of: int,
    on_progress: Listener,
) -> Descriptions:
    """Descriptions by a language model, saved with the store and inspected by the world's annotations."""
    found = write(
        reward,
        language_model,
        run=run_name,
        questions=ASKED,
        samples=SAMPLES,
        best_of=best_of,
        on_progress=on_progress,
    )
    judge = annotated_judge(store, found)
    return inspect(store, run_name, judges={JUDGE: judge}, on_progress=on_progress)
