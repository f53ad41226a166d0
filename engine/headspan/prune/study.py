"""Study which heads matter: what tasks lose without groups of heads, beside random heads of the same layers.

Sources: Madasu, Lal, Howard, arXiv 2503.11103 (groups by Concept Consistency Score, and tasks); Gandelsman, Efros,
Steinhardt, ICLR 2024 (mean ablation). The published study compares groups that lie in different layers; here random
heads have as many heads in each layer, and the correlation of scores with effects is also given within layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labels import read_labels
from headspan.errors import SettingsError, StoreError
from headspan.events import Listener, ignore
from headspan.prune.draws import DRAWS
from headspan.prune.statistics import SAMPLES
from headspan.prune.study_json import group_from_json, set_from_json, task_from_json
from headspan.prune.study_plan import Plan, plan_study
from headspan.prune.study_result import Mode, Study
from headspan.prune.study_scores import Scorer, correlated
from headspan.prune.study_tasks import TaskOf, TaskOn, tasks_on_stores
from headspan.store import results
from headspan.store.lineage import Lineage, lineage_of
from headspan.store.reader import Store
from headspan.store.write.save_result import save_result

# What is pruned unless the user says otherwise.
GROUPS = ("high", "low", "random")


def study(
    store: Store,
    tasks: Sequence[TaskOf],
    groups: Sequence[str] = GROUPS,
    mode: Mode = "direct",
    *,
    run: str | None = None,
    scores: str | ConceptConsistency | None = None,
    draws: int = DRAWS,
    samples: int = SAMPLES,
    seed: int = 0,
    greedy: int = 0,
    overwrite: bool = False,
    on_progress: Listener = ignore,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    keep: str | Path | None = None,
) -> Study:
    """Measure what each task loses without groups of heads.

    Args:
        store: The store of the model, whose scores and labels the groups are made from.
        tasks: Tasks, or what `read_task` reads: names, TOML files and folders. A pair of a task and a store, or its
            path, is a task on the images of another store of the same model.
        groups: `high`, `moderate`, `low`, `label:NAME`, `high:NAME`, lists such as `L22.H13,L23.H1` and files with a
            head in each line. Beside them: `random` for random heads of the same layers as each group, `unmatched` for
            as many of any layer, `equal` for equal numbers of two groups of scores, and `single` for each head alone.
        mode: `direct` puts the heads' contributions at their means, from the store. `total` prunes the live model, so
            that later layers feel it; this needs torch and the images.
        run: Save the study as `prune/<run>`; None writes nothing.
        scores: The run of scores and labels, or the scores; None means the store's only ones.
        draws: How many sets of random heads are drawn for each group.
        samples: How many bootstrap samples of the items give the intervals.
        seed: The seed of draws and samples.
        greedy: Also remove so many heads one after the other, each time the one that costs least; direct effect and
            classification only.
        overwrite: Replace a different study of that name.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        weights: Where the model's weights are now, as in `text_vectors`.
        shards: Where all shards of the store are now, if they have moved; for the total effect.
        device: The device of the total effect, as in `precompute`.
        batch_size: Images per forward pass of the total effect; None for one that suits the device.
        keep: A folder for the embeddings of finished units of the total effect; the same call then continues.

    Returns:
        The study, with tables and plots. The same arguments give the same numbers.

    Raises:
        SettingsError: If a group or a task does not exist or does not fit the store, or a store is of another model.
        StoreError: If the store has no scores that a group needs, or has a different study of that name.
        NotSavedError: If the store cannot be written; the error holds the study.
    """
    if mode not in ("direct", "total"):
        raise SettingsError(f"mode {mode!r}: a study measures the 'direct' or the 'total' effect; name one of them")
    if samples < 1 or greedy < 0:
        raise SettingsError(f"samples {samples} and greedy {greedy}: give at least 1 sample, and 0 or more heads")
    if greedy and mode == "total":
        raise SettingsError("greedy: heads are removed one after the other by the direct effect; leave out mode total")
    if run is not None:
        results.check_run(run)
    found = _scores(store, scores, groups)
    plan = plan_study(store, groups, found, any_layer=mode == "total", draws=draws, seed=seed)
    scorer = Scorer(plan, mode, samples, seed, greedy, on_progress, weights, tuple(shards), device, batch_size, keep)
    on = tasks_on_stores(store, tasks, mode, plan, on_progress, weights)
    effects = scorer.scored(on)
    single = [each.heads[0] for each in plan.sets if each.kind == "single"]
    known = {} if found is None else _known(found)
    ccs = tuple(known.get(head, (None, None))[0] for head in single)
    attributes = store.attributes
    result = Study(
        mode,
        " ".join(str(attributes[name]) for name in ("model", "pretrained") if attributes.get(name)),
        None if found is None else found.labels.run,
        plan.groups,
        plan.sets,
        tuple(correlated(each, single, ccs, seed) for each in effects),
        ccs,
        tuple(known.get(head, (None, None))[1] for head in single),
        samples,
        draws,
        seed,
        (*plan.remarks, *on.remarks),
    )
    return save_result(
        store,
        "prune",
        run or "",
        result,
        {},
        result.as_settings(),
        _sources(store, found, groups),
        saved=run is not None,
        overwrite=overwrite,
        on_progress=on_progress,
    )
