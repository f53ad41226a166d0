"""Verify a store: files against records, arrays against each other, contributions against embeddings.

The sources that can be reached are compared with the plan. Units are checked one by one, so that memory does not
grow with the store. Nothing is written, and no `pipe:` command is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from headspan.decompose.formula import EXTRA_COORDINATES, head_coordinates, mlp_contributions
from headspan.errors import counted
from headspan.events import Listener, Progress, ignore
from headspan.run.planned_sources import places
from headspan.run.problems import WHOLE_STORE, Problem
from headspan.run.source_checks import SourceImages, changed_files, source_problems
from headspan.store.commit_records import UnitRecord
from headspan.store.consolidated import ROOT, copy_differs
from headspan.store.file_checks import faults
from headspan.store.reader import Store
from headspan.store.result_files import damaged
from headspan.store.schema import member_names

# Stored numbers have 11 bits each, and about a hundred terms add up to an embedding. In 16-bit passes the residual
# stream is also rounded twice per layer: √48 roundings of 2⁻¹² or 2⁻⁹ for 24 layers, with a factor of three.
SUM_TOLERANCES = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 4e-2}
# One float32 rounding of a sum of squares.
_LENGTH_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Verdict:
    """How much was checked, and the problems found.

    `largest_error` is the largest relative distance of summed contributions from an embedding; None if they cannot be
    summed. `unreached` counts the source shards that were not compared, since they are remote or do not exist any more.
    """

    units: int
    images: int
    problems: tuple[Problem, ...]
    largest_error: float | None
    unreached: int = 0


def verify(store: Store, on_progress: Listener = ignore, sources: bool = False, shards: Sequence[str] = ()) -> Verdict:
    """Check the files and rows of every committed unit, the moments of all units, and the results of analyses.

    Contributions are summed if the store has all layers and the MLPs; otherwise only the embeddings' lengths are
    compared with `norm`. Local sources are compared by size and time. With `sources` every image is read again,
    from remote shards too, and compared with the checksum of its unit. `shards` name all of them, in the order of
    the run, if they have moved. Raises SourceError if their number differs from the plan's.
    """
    problems: list[Problem] = []
    largest: float | None = None
    count, total, embedding_total = 0, np.zeros(_moment_shape(store)), np.zeros(store.joint)
    records, planned_rows = store.contents.records, store.planned_images
    whole = UnitRecord(WHOLE_STORE, 0, planned_rows, planned_rows, store.contents.commits.other_files(), [])
    problems.extend(_file_problems(store, whole))
    # Arrays cannot be read without sound metadata, summed without sound matrices, or tars found without sound tables.
    readable = not any(
        problem.where.startswith("model/") or problem.where.endswith(("zarr.json", ".parquet")) for problem in problems
    )
    quarantined = {unit.index: unit for unit in store.quarantined_units()}
    for unit in quarantined.values():
        what = "is quarantined, because its process repeatedly crashed"
        problems.append(Problem(unit.index, unit.first_row, unit.rows, what))
    unreached = 0
    if readable:
        planned = store.shards()
        urls, names = places(planned, store.attributes, shards), member_names(store.attributes)
        changed, not_compared = source_problems(planned, urls, names, sources)
        changed += changed_files(store, urls, names)
        problems.extend(changed)
        unreached = len(not_compared)
        again = SourceImages(planned, urls, names, {*not_compared, *(problem.where for problem in changed)})
    for done, record in enumerate(records, start=1):
        found = list(_file_problems(store, record))
        if not found and readable:
            rows = _UnitRows(store, record)
            found = list(rows.problems())
            largest = max([*rows.sum_errors, *([] if largest is None else [largest])], default=None)
            count += int(rows.good.sum())
            total += rows.coordinate_sums()
            embedding_total += rows.embedding_sum()
        if sources and readable:
            found += again.problems(store, record)
        problems.extend(found)
        on_progress(Progress("verify", done, len(records), counted(len(problems), "problem") if problems else ""))
    if records and not any(problem.of_store and problem.unit not in quarantined for problem in problems):
        problems.extend(_moment_problems(store, count, total, embedding_total))
    for name, what in damaged(store):
        problems.append(Problem(WHOLE_STORE, 0, store.planned_images, what, name, of_analysis=True))
    if copy_differs(store.contents.storage):
        what = f"the copy of metadata in {ROOT} differs from them"
        problems.append(Problem(WHOLE_STORE, 0, planned_rows, what, ROOT))
    return Verdict(len(records), count, tuple(problems), largest, unreached)


def _file_problems(store: Store, record: UnitRecord) -> Iterator[Problem]:
    shard_rows = {spec.name: spec.shard[0] for spec in store.contents.specs.values()}
    for name, what in faults(store.contents.storage, record.files):
        array, first_row, rows = name.partition("/c/")[0], record.first_row, record.rows
        if array in shard_rows and record.unit != WHOLE_STORE:
            first_row = int(name.removeprefix(f"{array}/c/").partition("/")[0]) * shard_rows[array]
            rows = min(shard_rows[array], record.first_row + record.rows - first_row)
        yield Problem(record.unit, first_row, rows, what, name)


class _UnitRows:
    """The rows of one unit, read once."""

    def __init__(self, store: Store, record: UnitRecord) -> None:
        self._store = store
        self._record = record
        rows = slice(record.first_row, record.first_row + record.rows)
        self._arrays = {
            name: np.asarray(array[rows])
            for name, array in store.contents.row_arrays()
            # The checksums of their files are checked; the arrays are too large to read again.
            if name != "patches"
        }
        self.good = self._arrays["ok"] == 1

    def problems(self) -> Iterator[Problem]:
        record, good = self._record, self.good
        if good.sum() != record.images:
            marked = counted(int(good.sum()), "image")
            yield _problem(record, f"ok marks {marked}, but the commit record has {record.images}")
        if record.images + len(record.bad) != record.rows:
            yield _problem(
                record,
                f"the commit record has {counted(record.images, 'image')} and {len(record.bad)} bad in "
                f"{counted(record.rows, 'row')}",
            )
        for name, values in self._arrays.items():
            finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if not (finite[good]).all():
                yield _problem(
                    record, f"{name} is not finite at row {record.first_row + np.flatnonzero(good & ~finite)[0]}"
                )
        lengths = np.linalg.norm(self._arrays["embedding"][good], axis=1)
        if not np.allclose(lengths, self._arrays["norm"][good, 2], rtol=_LENGTH_TOLERANCE, atol=0):
            yield _problem(record, "norm differs from the embeddings' lengths")
        for row, error in zip(np.flatnonzero(good).tolist(), self.sum_errors, strict=False):
            if not error <= SUM_TOLERANCES[self._store.attributes["precision"]]:
                yield _problem(
                    record, f"row {record.first_row + row}: contributions differ from the embedding by {error:.1e}"
                )

    @cached_property
    def sum_errors(self) -> list[float]:
        """Relative distance of each image's summed contributions from its embedding; empty if they cannot be summed."""
        store, good = self._store, self.good
        # Direct layers and terms only: what went through an attention pooling is in the pooling's heads already.
        if ("mlps" not in self._arrays and store.terms) or len(store.layers) != store.direct_layers:
            return []
        norm, embedding = self._arrays["norm"][good], self._arrays["embedding"][good]
        total = np.zeros_like(embedding)
        if store.terms:
            mlps, means = self._arrays["mlps"][good].astype(np.float32), self._arrays["mlp_means"][good]
            total += mlp_contributions(mlps, means, norm, store.contents.folded, "uniform", True).sum(axis=1)
        for index, layer in enumerate(store.layers):
            for head in range(store.heads_per_layer):
                head_outputs = self._arrays["heads"][good, index, head].astype(np.float32)
                total += head_coordinates(head_outputs, norm, True) @ store.head_directions(layer, head)
        unit = embedding / norm[:, 2:]
        return [float(error) for error in np.linalg.norm(total - unit, axis=1)]

    def coordinate_sums(self) -> np.ndarray:
        """Sums of the normalised coordinates, like the moments' sums but from the rounded numbers."""
        norm = self._arrays["norm"][self.good].astype(np.float64)
        heads = self._arrays["heads"][self.good].astype(np.float64)
        spread = np.broadcast_to(norm[:, None, None], (*heads.shape[:3], 3))
        return head_coordinates(heads, spread, True).sum(axis=0)

    def embedding_sum(self) -> np.ndarray:
        """The sum of the unit embeddings."""
        lengths = self._arrays["norm"][self.good, 2:].astype(np.float64)
        total: np.ndarray = (self._arrays["embedding"][self.good] / lengths).sum(axis=0)
        return total


def _moment_problems(store: Store, count: int, total: np.ndarray, embedding_total: np.ndarray) -> Iterator[Problem]:
    moments, rows = store.moments(), store.planned_images
    if moments.count != count:
        what = f"the moments count {counted(moments.count, 'image')}, but the arrays hold {count}"
        yield Problem(WHOLE_STORE, 0, rows, what)
        return
    scale = np.sqrt(np.einsum("lhcc->lhc", moments.gram) * max(count, 1))
    # Rounding to 16 bits changes each summand by at most 2⁻¹¹ of itself, and a tiny one by half a subnormal step.
    if count and not (np.abs(moments.total - total) <= 2.0**-10 * scale + 1e-6).all():
        yield Problem(WHOLE_STORE, 0, rows, "the moments differ from the sums of heads by more than rounding explains")
    embedding = moments.embedding
    # A unit that `repair` computed again may differ by the rounding of another machine.
    if count and embedding is not None:
        scale = np.sqrt(np.diagonal(embedding.gram) * count)
        sums_agree = (np.abs(embedding.total - embedding_total) <= 2.0**-10 * scale + 1e-6).all()
        if not (sums_agree and np.isclose(embedding.squared_length, 1, rtol=_LENGTH_TOLERANCE, atol=0)):
            what = "the moments differ from those of the unit embeddings by more than rounding explains"
            yield Problem(WHOLE_STORE, 0, rows, what)


def _moment_shape(store: Store) -> tuple[int, ...]:
    return (len(store.layers), store.heads_per_layer, store.head_dim + EXTRA_COORDINATES)


def _problem(record: UnitRecord, what: str) -> Problem:
    return Problem(record.unit, record.first_row, record.rows, what)
