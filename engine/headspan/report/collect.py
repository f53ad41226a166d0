"""Write the report: collect the results of a store, head by head, and save them as one HTML file.

Needs neither a network nor torch. `page` decides how the report looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from headspan.describe.descriptions.saved import read_descriptions
from headspan.errors import StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.features.saved import read_scores as read_features
from headspan.io.files import write_atomically
from headspan.prune.studies.study import read_study
from headspan.report.choice import choose_heads
from headspan.report.content import Content
from headspan.report.describe import describe_heads, summarise
from headspan.report.describing import choose_descriptions, compared, runs_shown, shown_descriptions
from headspan.report.facts import (
    data_set,
    notices,
    report_command,
    run_facts,
    store_facts,
    why_no_scores,
)
from headspan.report.features import choose_features, shown_features, shown_runs
from headspan.report.page import KIND, render
from headspan.report.pictures import picture_heads
from headspan.report.pruning import PrunedStudy, pruned_study
from headspan.report.shown_run import older_than, scores_of, shown_run
from headspan.spans.saved import read_spans
from headspan.store.reader import Store
from headspan.store.results import runs
from headspan.user_paths import file_to_write
from headspan.world.ground_truth import read_ground_truth


def write_report(
    store: Store,
    path: str | Path,
    run: str | None = None,
    on_progress: Listener = ignore,
    shards: Sequence[str] = (),
    heads: str | None = None,
) -> Path:
    """Write the results of a store as one HTML file, and return its path. A report at `path` is replaced.

    Shown are a TEXTSPAN run with its labels and scores, saved studies of what pruning costs, scores of features, and
    descriptions of classes, as far as there are any. `run` is the TEXTSPAN run's name; None means the only run with
    scores, or else the only run. Without such a run the report shows the rest, and says how to describe the heads.
    `shards` says where all the shards are now, if they have moved; images that cannot be read are shown by name.
    `heads` chooses the heads with a section of their own, as in `L5.H1,L6.*`, `last4` or `best20`; None means all.

    Raises StoreError if the store has no such run or nothing to show, if `path` is another file, or if it cannot be
    written; SettingsError if `heads` has another form or names a head that is not described.
    """
    path = file_to_write(path, "report")
    _refuse_other_files(path)
    run = shown_run(store, run, heads)
    spans = None if run is None else read_spans(store, run)
    found = None if run is None else scores_of(store, run)
    described = [] if spans is None else describe_heads(store, spans, found)
    shown, more = shown_runs(runs(store, "features"))
    features = [choose_features(store, read_features(store, name)) for name in shown]
    written = [read_descriptions(store, name) for name in runs(store, "descriptions")]
    descriptions = [choose_descriptions(store, each) for each in runs_shown(written)]
    wanted = [image for each in features for image in each.images]
    wanted += [image for each in descriptions for image in each.images]
    pictured = picture_heads(store, spans, choose_heads(described, heads), on_progress, shards, wanted)
    if pictured.missing:
        why = next(iter(pictured.missing.values()))
        images = counted(len(pictured.missing), "image")
        todo = "" if shards else "; --shards (in Python shards=) says where the tars are now"
        on_progress(Progress(NOTE, 0, None, f"{images} of the report could not be read (first: {why}){todo}"))
    size = store.attributes["preprocess"]["size"]
    content = Content(
        notices=notices(store, spans),
        model=str(store.attributes["model"]),
        weights=str(store.attributes["pretrained"] or ""),
        data_set=data_set(store),
        date=datetime.now(UTC).date().isoformat(),
        command=report_command(store, path, run, shards, heads),
        facts=store_facts(store) if spans is None else run_facts(store, spans, found),
        images=store.images if spans is None else spans.images,
        layers=() if spans is None else spans.layers,
        heads=described,
        texts_per_head=0 if spans is None else spans.indices.shape[2],
        above=None if spans is None or spans.null is None else spans.above_chance(),
        scores=None if found is None else summarise(found),
        why_no_scores="" if spans is None else why_no_scores(spans, older_than(store, "ccs", spans.run)),
        truth=None if run is None or older_than(store, "truth", run) else read_ground_truth(store, run),
        bad=store.bad_images(),
        sections=pictured.sections,
        pictures=pictured.pictures,
        input_size=(int(size[0]), int(size[1])),
        missing=pictured.missing,
        has_maps="patches" in store.attributes["emit"],
        studies=_studies(store, run),
        features=tuple(shown_features(each, pictured.places) for each in features),
        more_features=tuple(more),
        descriptions=tuple(shown_descriptions(each, pictured.places) for each in descriptions),
        described_runs=compared(written),
    )
    # The attributes of a store may hold halves of surrogate pairs, which UTF-8 cannot encode.
    write_atomically(path, [render(content).encode(errors="backslashreplace")])
    return path


def _studies(store: Store, run: str | None) -> tuple[PrunedStudy, ...]:
    """The saved studies of the run's scores, and those that used no scores; none of older scores."""
    found = {name: read_study(store, name) for name in runs(store, "prune")}
    return tuple(
        pruned_study(name, each) for name, each in found.items() if each.scores in (None, run) and not each.older
    )


def _refuse_other_files(path: Path) -> None:
    """Raise StoreError if `path` is something other than a report."""
    try:
        if path.is_file():
            page = path.read_bytes()
            if page.startswith(b"<!doctype html>") and KIND.encode() in page:
                return
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
    if path.exists():
        raise StoreError(f"{path}: exists, and is not a report that headspan wrote; choose another --out")
