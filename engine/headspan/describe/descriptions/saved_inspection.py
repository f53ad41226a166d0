"""The inspection of descriptions as a run `descriptions/<run>` holds it: its arrays, its settings, and reading them.

Raw answers of language models are an array of JSON bytes, as in CCS runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headspan.concepts.answers import as_array, records_of
from headspan.describe.descriptions.result import Inspection
from headspan.store.lineage import Named


def inspection_arrays(inspection: Inspection) -> dict[str, Named]:
    """The arrays of a run that belong to its inspection."""
    found: dict[str, Named] = {
        "votes": (inspection.votes, ("judge", "description")),
        "verdicts": (inspection.verdicts, ("description",)),
    }
    return found | ({"answers": as_array(inspection.answers)} if inspection.answers else {})


def inspection_settings(inspection: Inspection) -> dict[str, Any]:
    """The settings of a run that belong to its inspection, as JSON values: all of them under `inspection`."""
    return {
        "inspection": {
            "judges": [*inspection.judges],
            "attributes": [*inspection.attributes],
            "named": [[*names] for names in inspection.named],
        }
    }


def read_inspection(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], where: str) -> Inspection | None:
    """The inspection of a run; None if it has none. `where` names the run in errors.

    Raises StoreError if the raw answers are damaged; LookupError and TypeError for settings that headspan does not
    write, which `results.as_written` turns into a StoreError.
    """
    if "inspection" not in settings:
        return None
    words = settings["inspection"]
    return Inspection(
        tuple(map(str, words["judges"])),
        arrays["votes"].astype(np.int8),
        arrays["verdicts"].astype(np.int8),
        tuple(map(str, words["attributes"])),
        tuple(tuple(map(str, names)) for names in words["named"]),
        tuple(records_of(arrays, where)),
    )
