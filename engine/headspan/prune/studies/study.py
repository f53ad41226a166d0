"""Study which heads matter: what tasks lose without groups of heads, beside random heads of the same layers.

Sources: Madasu, Lal, Howard, arXiv 2503.11103 (groups by Concept Consistency Score, and tasks); Gandelsman, Efros,
Steinhardt, ICLR 2024 (mean ablation). The published study compares groups that lie in different layers; here random
heads are as many in each layer, and the correlation of scores with effects is also given within layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labels import read_labels
from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.prune.choice.draws import DRAWS
from headspan.prune.studies.effects import TaskEffects
from headspan.prune.studies.statistics import SAMPLES, rank_correlation_of_heads
from headspan.prune.studies.study_json import group_from_json, set_from_json, task_from_json
from headspan.prune.studies.study_plan import plan_study
from headspan.prune.studies.study_result import Mode, Study
from headspan.prune.studies.study_scores import TotalSettings, score_tasks
from headspan.prune.studies.study_tasks import TaskOf, tasks_on_stores
from headspan.store import results
from headspan.store.head_space import Head
from headspan.store.identity import model_name
from headspan.store.lineage import Lineage, lineage_of
from headspan.store.reader import Store
from headspan.store.taken_runs import refuse_made_differently
from headspan.store.write.save_result import save_result

# What is pruned unless the user says otherwise.
GROUPS = ("high", "low", "random")
# A correlation needs more heads than this.
_FEWEST = 3


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
        groups: `high`, `moderate`, `low`, `label:NAME`, `high:NAME`, lists such as `L22.H13,L23.H1`, and files with a
            head in each line. Beside them: `random` for random heads of the same layers as each group, `unmatched` for
            as many of any layer, `equal` for equal numbers of two groups of scores, and `single` for each head alone.
        mode: `direct` puts the heads' contributions at their means, from the store. `total` prunes the live model, so
            that later layers feel it; this needs torch and the images.
        run: Save the study as `prune/<run>`; None writes nothing.
        scores: The run of scores and labels, or the scores; None means the store's only ones.
        draws: How many sets of random heads are drawn for each group.
        samples: How many bootstrap samples of the items give the intervals.
        seed: The seed of draws, samples and permutations.
        greedy: Also remove so many heads one after the other, each time the one that costs least; direct effect on
            classifications.
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
    if samples < 1:
        raise SettingsError(f"samples {samples}: intervals need at least 1 bootstrap sample; 1,000 are usual")
    if greedy < 0 or (greedy and mode == "total"):
        raise SettingsError(
            f"greedy {greedy}: give how many heads are removed one after the other, by the direct effect"
        )
    if run is not None:
        results.check_run(run)
    scored = _scores(store, scores)
    plan = plan_study(store, groups, scored or scores, any_layer=mode == "total", draws=draws, seed=seed)
    planned = {"mode": mode, "samples": samples, "draws": draws, "seed": seed, "groups": plan.groups, "sets": plan.sets}
    refuse_made_differently(store, "prune", run, planned, overwrite)
    on, remarks = tasks_on_stores(store, tasks, mode, plan.sets, on_progress, weights)
    total = TotalSettings(weights, tuple(shards), device, batch_size, keep) if mode == "total" else None
    effects = score_tasks(on, plan.sets, total, samples, seed, greedy, on_progress)
    single = [each.heads[0] for each in plan.sets if each.kind == "single"]
    known = {} if scored is None else _known(scored)
    ccs = tuple(known.get(head, (None, None))[0] for head in single)
    if single and sum(score is not None for score in ccs) <= _FEWEST:
        remarks.append("single heads: no scores to correlate with; run headspan ccs first")
    found = Study(
        mode,
        model_name(store.attributes),
        None if scored is None else scored.labels.run,
        plan.groups,
        plan.sets,
        tuple(_correlated(each, single, ccs, seed) for each in effects),
        ccs,
        tuple(known.get(head, (None, None))[1] for head in single),
        samples,
        draws,
        seed,
        (*plan.remarks, *remarks),
    )
    return save_result(
        *(store, "prune", run or "study", found, {}, found.as_settings(), _sources(store, scored, groups)),
        saved=run is not None,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def read_study(store: Store, run: str | None = None) -> Study:
    """Read a saved study; without `run`, the only one.

    Raises StoreError if it is missing or damaged, or if there are several and none is named.
    """
    run = results.only_run(store, "prune", run)
    settings = results.load_settings(store, "prune", run)
    with results.as_written(store, "prune", run):
        return Study(
            settings["mode"],
            settings["model"],
            settings["scores"],
            tuple(map(group_from_json, settings["groups"])),
            tuple(map(set_from_json, settings["sets"])),
            tuple(map(task_from_json, settings["tasks"])),
            tuple(settings["ccs"]),
            tuple(settings["labels"]),
            int(settings["samples"]),
            int(settings["draws"]),
            int(settings["seed"]),
            tuple(settings["remarks"]),
            lineage=lineage_of(store, "prune", run),
        )


def _scores(store: Store, scores: str | ConceptConsistency | None) -> ConceptConsistency | None:
    """The scores that are named, or the store's only ones; None if there are none or several."""
    if isinstance(scores, ConceptConsistency):
        return scores
    if scores is None and len(results.runs(store, "ccs")) != 1:
        return None
    return read_scores(store, scores)


def _known(scores: ConceptConsistency) -> Mapping[Head, tuple[int, str | None]]:
    """Score and label of each head that has a score."""
    names = scores.labels.concepts
    return {
        (layer, head): (int(score), names[place][head])
        for place, layer in enumerate(scores.labels.layers)
        for head, score in enumerate(scores.scores[place])
    }


def _correlated(task: TaskEffects, single: Sequence[Head], ccs: Sequence[int | None], seed: int) -> TaskEffects:
    """The task with the correlations of CCS with what single heads' removal costs."""
    kept = [number for number, score in enumerate(ccs) if score is not None]
    if len(kept) <= _FEWEST:
        return task
    scores = np.array([ccs[number] for number in kept], float)
    layers = np.array([single[number][0] for number in kept])
    first = len(task.values) - len(single)
    # Single heads are the last sets of a plan.
    losses = {"loss": [-task.sign * task.change(first + number) for number in kept]}
    if task.margin_losses is not None:
        losses["margin loss"] = [task.margin_losses[number] for number in kept]
    found = {
        name: rank_correlation_of_heads(scores, np.array(values), layers, seed=seed) for name, values in losses.items()
    }
    return replace(task, correlations=found)


def _sources(store: Store, scores: ConceptConsistency | None, groups: Sequence[str]) -> dict[str, Lineage]:
    """The lineages of the runs that the groups were made from."""
    if scores is not None and scores.lineage is not None:
        return {f"ccs/{scores.labels.run}": scores.lineage}
    if scores is None and any(each.startswith("label:") for each in groups):
        labels = read_labels(store)
        return {} if labels.lineage is None else {f"labels/{labels.run}": labels.lineage}
    return {}
