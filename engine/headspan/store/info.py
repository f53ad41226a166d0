"""Facts about a store for people: images, layers, size, how it was made, and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from headspan.config import as_ranges
from headspan.escapes import escaped, shell_command
from headspan.frames import Tabular
from headspan.io.remembered import remembered
from headspan.member_names import MEMBER_SETTINGS
from headspan.store.reader import Store
from headspan.store.results import runs
from headspan.store.schema import decoding, names_without

# The kinds of runs that are listed, and those that are listed where a store has some.
_KINDS = ("textspan", "labels", "ccs")
_FURTHER_KINDS = ("prune", "features", "uses", "descriptions")


@dataclass(frozen=True, slots=True, repr=False)
class StoreInfo(Tabular):
    """Facts about a store by name, as text; a notebook shows them as a table. As numbers they are attributes of Store.

    `facts["command"]` is the command that writes the store again; secrets in URLs are left out.
    """

    facts: Mapping[str, str]

    def __repr__(self) -> str:
        width = max(map(len, self.facts))
        return "\n".join(f"{name:<{width}}  {escaped(value)}" for name, value in self.facts.items())

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {"fact": list(self.facts), "value": list(self.facts.values())}

    def _repr_html_(self) -> str:
        left = ' style="text-align: left"'
        rows = (
            f"<tr><th{left}>{escape(name)}</th><td{left}>{escape(escaped(value))}</td></tr>"
            for name, value in self.facts.items()
        )
        return f"<table>{''.join(rows)}</table>"


def info(store: Store | str | Path) -> StoreInfo:
    """What the store at a path holds. Raises StoreError if there is no store, or one of another format."""
    store = store if isinstance(store, Store) else Store(store)
    attributes = store.attributes
    storage = remembered(store.contents.storage, folders=[*_KINDS, *_FURTHER_KINDS])
    bad, notes, quarantined = store.bad_images(), store.notes(), store.quarantined_units()
    size, folder = store.stored_bytes, attributes.get("made_with", {}).get("folder")
    unfinished = "" if store.complete else "; unfinished, run the same precompute command to continue"
    through_pool = f"; {as_ranges(store.through_pool_layers)} through the pooling" if store.through_pool_layers else ""
    units = f"{int(store.contents.done.sum()):,} done, of {attributes['dimensions']['unit_images']:,} images each"
    if quarantined:
        units += (
            f"; quarantined: {as_ranges([unit.index for unit in quarantined])}, which `headspan repair` tries again"
        )
    facts = {
        "store": str(store.path),
        "model": f"{attributes['model']}, {attributes['pretrained'] or 'its own weights'}",
        "image tower": f"sha256 {attributes['weights_sha256']}",
        "images": f"{store.images:,} of {store.planned_images:,} planned, {len(bad):,} bad{unfinished}",
        "notes": f"{len(notes):,} on captions, metadata and other members that could not be used",
        "layers": f"{as_ranges(store.layers)} of {store.all_layers}{through_pool}",
        **({"without": without} if (without := names_without(attributes)) else {}),
        "sum": _terms_of(attributes["sum"]),
        "heads": f"{store.heads_per_layer} per layer, {store.head_dim} dimensions each; joint space {store.joint}",
        "emitted": ", ".join(attributes["emit"]),
        "precision": f"{attributes['precision']}, {attributes['backend']}",
        "size": f"{size / 1e6:,.1f} MB on disk, {size / max(store.images, 1):,.0f} bytes per image, all files included",
        "units": units,
        "written by": f"headspan {attributes['version']}, store format {attributes['format']}",
        "made with": _made_with(attributes.get("made_with")),
        "command": command_of(store),
        # Relative names of shards start here.
        **({"run in": folder} if folder else {}),
        **{kind: ", ".join(runs(store, kind, storage)) or "none" for kind in _KINDS},
        **{kind: ", ".join(found) for kind in _FURTHER_KINDS if (found := runs(store, kind, storage))},
    }
    return StoreInfo(facts)


def _terms_of(terms: Mapping[str, Any]) -> str:
    """The terms that sum to the embedding."""
    layers, others = terms["direct_layers"], terms["terms"]
    if terms["through_pool"] is None:
        return f"heads of layers {as_ranges(layers)} + initial state + MLPs + biases"
    return " + ".join([f"heads of layer {layers[0]}, the pooling", *others, "biases"])


def _made_with(made: Mapping[str, Any] | None) -> str:
    if made is None:
        return "not recorded by the version that wrote the store"
    libraries = ", ".join(f"{name} {number}" for name, number in made["libraries"].items())
    return f"{made['machine']}, {made['torch_threads']} torch threads, Python {made['python']}, {libraries}"


def command_of(store: Store, changed: Mapping[str, str | None] | None = None) -> str:
    """The command that writes the store again, with the flags in `changed`; secrets in URLs are left out."""
    attributes = store.attributes
    made = attributes.get("made_with", {})
    flags = {
        "model": attributes["model"],
        "pretrained": attributes["pretrained"],
        "weights": made.get("weights", {}).get("given"),
        "layers": as_ranges([*store.through_pool_layers, *store.layers]).replace(" ", ""),
        "emit": ",".join(attributes["emit"]),
        "without": names_without(attributes, ",") or None,
        "precision": attributes["precision"],
        "decode": decoding(attributes),
        "image-size": attributes.get("image_size"),
        **{name.replace("_", "-"): attributes.get(name) for name in MEMBER_SETTINGS},
        "unit-images": attributes["dimensions"]["unit_images"],
        "batch-size": made.get("batch_size"),
        "device": made.get("device"),
        "out": store.path.name,
        **(changed or {}),
    }
    shards = made.get("shards") or [shard.url for shard in store.shards()]
    options = ["--allow-pipe"] if made.get("allow_pipe") else []
    for name, value in flags.items():
        if value is not None:
            # argparse would read a value that begins with a dash as a flag.
            options += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    if any(shard.startswith("-") for shard in shards):
        return shell_command(["headspan", "precompute", *options, "--", *shards])
    return shell_command(["headspan", "precompute", *shards, *options])
