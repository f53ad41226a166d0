"""Score the reference model, the same model before its `spread` loss, and random weights.

    git show 9db9dd8:engine/headspan/reference/weights.safetensors > contrastive.safetensors
    python -m tools.score_reference contrastive.safetensors

The chain and the scenes are the demo's. The command writes `reference/scores.json`, from which the demo's report takes
the contrastive-only scores, brings the tables of the model card and the README up to date, and prints the table of the
card. It takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headspan.config import PrecomputeSettings
from headspan.demo import IMAGES, IMAGES_PER_SHARD, SEED, SPLIT, analyse_scenes
from headspan.world import write_world_shards
from headspan.world.checks_json import ground_truth_as_json
from headspan.world.ground_truth import check_ground_truth
from headspan.world.reference_scores import CONTRASTIVE_ONLY, RANDOM, TRAINED, reference_scores
from tools.score_tables import card_table, summary_table

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "engine" / "headspan" / "world" / "reference"
END = "<!-- end of scores -->"
ABOUT = {
    TRAINED: "the reference model: 5,600 steps of contrastive training, then 1,600 steps with the loss spread added",
    CONTRASTIVE_ONLY: "the same model after 5,600 steps, before a loss on head contributions was added",
    RANDOM: "the same architecture, weights random:0",
}


def score(contrastive_only: Path) -> dict[str, Any]:
    """The content of scores.json: every model's scores, with the checksum of its weights and a sentence about it."""
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = write_world_shards(
            Path(folder) / "shards", IMAGES, SEED, images_per_shard=IMAGES_PER_SHARD, split=SPLIT
        )
        for name, pretrained in ((TRAINED, None), (CONTRASTIVE_ONLY, str(contrastive_only)), (RANDOM, "random:0")):
            out = str(Path(folder) / f"{name.replace(' ', '-')}.zarr")
            settings = PrecomputeSettings(
                shards=(shards,), out=out, model="reference", layers="all", emit=("heads", "patches")
            )
            store, _ = analyse_scenes(replace(settings, pretrained=pretrained))
            scores = replace(check_ground_truth(store), about=ABOUT[name])
            models[name] = {
                "weights_sha256": store.attributes["weights_sha256"],
                "scores": ground_truth_as_json(scores),
            }
    scenes = {"split": SPLIT, "seed": SEED, "images": IMAGES}
    return {"made_by": "python -m tools.score_reference", "scenes": scenes, "models": models}


PAGES = (
    (REFERENCE / "README.md", "<!-- scores: python -m tools.score_reference -->", card_table),
    (ROOT / "README.md", "<!-- summary of scores: python -m tools.score_reference -->", summary_table),
)


def with_table(page: str, begin: str, table: str) -> str:
    """The text of a page with the table between its two markers replaced; a page without markers stays as it is."""
    if begin not in page:
        return page
    before, rest = page.split(begin)
    return f"{before}{begin}\n{table}\n{END}{rest.split(END, 1)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Score the models, write scores.json and the tables, and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Score the reference model and its controls.")
    parser.add_argument("contrastive_only", type=Path, help="weights.safetensors after 5,600 steps")
    content = score(parser.parse_args(arguments).contrastive_only)
    (REFERENCE / "scores.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    scores = reference_scores()
    for page, begin, table in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(with_table(text, begin, table(scores)), encoding="utf-8")
    print(card_table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
