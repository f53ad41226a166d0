"""headspan: every attention head of CLIP image encoders, taken apart.

Write shards and stores: `write_shards`, `precompute`, `verify`, `repair`. Read stores: `open`, `info`, `export`,
`read_pictures`, and for training `torch_dataset` and `as_webdataset`. Analyse them: `textspan`, `textspan_dense` (on
plain arrays), `text_vectors`, `read_pool`, `write_report`; `runs` and `remove_runs` list and remove what was saved.
The groups are

- `spans`: the results of TEXTSPAN;
- `concepts`: labels, Concept Consistency Scores, judges, votes, and pools written by language models;
- `explore`: nearest images, and maps of texts over images;
- `tasks`: what embeddings are scored by: classification, worst groups, skew of rankings and more;
- `prune`: embeddings without some heads, and what that changes in tasks;
- `features`: sparse features of embeddings and heads, and how much each belongs to images, texts, or both;
- `describe`: descriptions of classes that the model, or a head, prefers;
- `video`: frames of videos as shards;
- `llm`: the endpoint, cache and budget of language models;
- `world`: the image world, in which every concept has a ground truth;
- `demo`: the whole chain on drawn images.

Only `precompute`, `repair`, `models`, `demo.run`, the data sets and a text's first `text_vectors` need torch. Names are
imported from their modules when they are first used: importing headspan takes milliseconds. All errors are
HeadspanErrors.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headspan import concepts, demo, describe, explore, features, llm, prune, spans, tasks, video, world
    from headspan.calls import models, precompute, repair, verify
    from headspan.config import PrecomputeSettings
    from headspan.errors import HeadspanError
    from headspan.loading.as_webdataset import as_webdataset
    from headspan.loading.torch_dataset import torch_dataset
    from headspan.originals.read_pictures import read_pictures
    from headspan.ray_settings import Ray
    from headspan.report.collect import write_report
    from headspan.run.repair import Repaired
    from headspan.run.summary import Summary
    from headspan.run.verify import Verdict
    from headspan.shard_writer.write import write_shards
    from headspan.spans.algorithm import textspan_dense
    from headspan.spans.over_store import textspan
    from headspan.store.export.export import export
    from headspan.store.info import StoreInfo, info
    from headspan.store.kept_runs import list_runs as runs
    from headspan.store.reader import Store
    from headspan.store.reader import open_store as open  # noqa: A004
    from headspan.store.write.removal import remove_runs
    from headspan.texts.pool import Pool, read_pool
    from headspan.texts.vectors import text_vectors

# The module of each name that is imported when it is first used, as above.
_MODULES = {
    "models": "calls",
    "precompute": "calls",
    "repair": "calls",
    "verify": "calls",
    "PrecomputeSettings": "config",
    "Ray": "ray_settings",
    "HeadspanError": "errors",
    "write_report": "report.collect",
    "read_pictures": "originals.read_pictures",
    "Repaired": "run.repair",
    "Summary": "run.summary",
    "Verdict": "run.verify",
    "textspan": "spans.over_store",
    "textspan_dense": "spans.algorithm",
    "export": "store.export.export",
    "StoreInfo": "store.info",
    "info": "store.info",
    "runs": "store.kept_runs",
    "remove_runs": "store.write.removal",
    "Store": "store.reader",
    "open": "store.reader",
    "Pool": "texts.pool",
    "read_pool": "texts.pool",
    "text_vectors": "texts.vectors",
    "as_webdataset": "loading.as_webdataset",
    "torch_dataset": "loading.torch_dataset",
    "write_shards": "shard_writer.write",
}

__all__ = [
    "HeadspanError",
    "Pool",
    "PrecomputeSettings",
    "Ray",
    "Repaired",
    "Store",
    "StoreInfo",
    "Summary",
    "Verdict",
    "as_webdataset",
    "concepts",
    "demo",
    "describe",
    "explore",
    "export",
    "features",
    "info",
    "llm",
    "models",
    "open",
    "precompute",
    "prune",
    "read_pictures",
    "read_pool",
    "remove_runs",
    "repair",
    "runs",
    "spans",
    "tasks",
    "text_vectors",
    "textspan",
    "textspan_dense",
    "torch_dataset",
    "verify",
    "video",
    "world",
    "write_report",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first used."""
    if name in _MODULES:
        module = import_module(f"headspan.{_MODULES[name]}")
        found = getattr(module, {"open": "open_store", "runs": "list_runs"}.get(name, name))
    elif find_spec(f"headspan.{name}"):
        found = import_module(f"headspan.{name}")
    else:
        raise AttributeError(f"module 'headspan' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
