"""The shapes in which open_clip's supported models call the ops: heads, head dimensions, tokens, widths, image sizes.

`python -m tests.kernels.model_shapes` writes them to `model_shapes.json`, which tests on a GPU read, since building
every model takes a minute. A test compares the file with the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

RECORDED = Path(__file__).with_suffix(".json")
CLASS_TOKEN, MEAN = "class token", "mean"


class Shapes(NamedTuple):
    """Sorted, without repetitions."""

    # Heads, head dimension, tokens, and how the rows are pooled.
    attention: list[tuple[int, int, int, str]]
    # Heads, head dimension, tokens: of the last block with a class token, and of attention pooling.
    pooled_attention: list[tuple[int, int, int]]
    # Widths of rows that a norm takes.
    norms: list[int]
    # Numbers that a head emits.
    moments: list[int]
    # Height and width of the model's pixels.
    pixels: list[tuple[int, int]]


def recorded() -> Shapes:
    """The shapes in the file."""
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    return Shapes(**{name: [tuple(row) if isinstance(row, list) else row for row in found[name]] for name in found})


def of_models() -> Shapes:
    """The shapes of every supported model, from towers without numbers."""
    # Here, since a GPU machine may lack open_clip.
    import open_clip
    from open_clip import list_models
    from open_clip.factory import get_model_config

    from headspan.model.convert import _tower_of, _without_numbers, unsupported_reason

    found: dict[str, set[Any]] = {name: set() for name in Shapes._fields}
    # Many models differ in their weights or texts only.
    towers = set()
    for name in list_models():
        # Configs that a user, or another test, has registered are not open_clip's own.
        if not (Path(open_clip.__file__).parent / "model_configs" / f"{name}.json").is_file():
            continue
        config = get_model_config(name)
        of_tower = json.dumps([config["embed_dim"], config["vision_cfg"], config.get("quick_gelu")], sort_keys=True)
        if of_tower in towers:
            continue
        towers.add(of_tower)
        if unsupported_reason(config) is None:
            vision = {**config["vision_cfg"], "timm_model_pretrained": False}
            tower = _tower_of(_without_numbers(config["embed_dim"], vision, bool(config.get("quick_gelu"))))
            for part, shapes in _of_tower(tower).items():
                found[part] |= set(shapes)
            size = vision.get("image_size", 224)
            found["pixels"].add((size, size) if isinstance(size, int) else tuple(size))
    return Shapes(**{name: sorted(shapes) for name, shapes in found.items()})


def _of_tower(tower: Any) -> dict[str, Iterable[Any]]:
    # Here, since a GPU machine may lack open_clip.
    from headspan.model.description import parts_of
    from headspan.model.layers import Norm

    heads, tokens = tower.trunk_heads, len(tower.pos_embed)
    head_dim = tower.blocks[0].out_proj.weight.shape[1] // heads
    pool = tower.attention_pool
    if pool is not None:
        row = {(pool.heads, tower.head_dim, tower.tokens)}
    else:
        row = set() if tower.mean_pooled else {(heads, head_dim, tokens)}
    return {
        "attention": {(heads, head_dim, tokens, MEAN if tower.mean_pooled else CLASS_TOKEN)},
        "pooled_attention": row,
        "norms": {len(norm.weight) for norm in parts_of(tower, Norm)},
        "moments": {tower.head_dim},
    }


if __name__ == "__main__":
    lines = [f'  "{name}": {json.dumps(shapes)}' for name, shapes in of_models()._asdict().items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
