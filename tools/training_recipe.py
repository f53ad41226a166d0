"""The settings that determine the weights of the reference model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps, rates and data of one training run. Steps count from 0."""

    steps: int = 7_200
    batch_size: int = 256
    # Captions for each image. The text tower is a small part of the work, so a second caption costs little.
    captions: int = 2
    # From this step on, the last caption of each image names a single factor. A caption of many factors is matched by
    # the factor that is learned first, and teaches little about the others.
    focused_from: int = 1_750
    # From this step on, that single factor is more often one that is hard to learn.
    hard_from: int = 2_400
    # From this step on, it is most often texture, the hardest one, and three in four groups share their shape.
    texture_from: int = 4_000
    learning_rate: float = 1e-3
    # For the matrices inside the blocks, which Muon trains. Muon's updates are scaled to the size of AdamW's.
    muon_learning_rate: float = 3e-3
    warmup: int = 200
    # From this step on, positional embeddings are trained at ten times AdamW's rate. They start a sixth as large as the
    # patch embeddings to which they are added, and the model cannot tell left from right until they have grown.
    positions_from: int = 2_200
    # Share of the steps at the end during which the rate falls to zero. Before that, a run can still be made longer.
    decay: float = 0.25
    weight_decay: float = 0.1
    # From this step on, batches consist of groups of similar scenes: with the same colour of the main object, the same
    # answer to whether there are other objects, and the same shape or, in some groups, the same texture. The remaining
    # factors must then distinguish the scenes of a group, which is rarely so among random scenes.
    grouped_from: int = 1_250
    group_size: int = 8
    # From this step on, the loss `spread` is added with this weight. It favours few heads for each text. It uses no
    # factors and no concepts.
    spread_from: int = 5_600
    spread_weight: float = 0.2
    seed: int = 0
    # Steps between two evaluations, each followed by a checkpoint, and the number of scenes of an evaluation.
    evaluate_every: int = 500
    evaluation_scenes: int = 2_000
