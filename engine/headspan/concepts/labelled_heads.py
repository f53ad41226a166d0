"""The heads that have a label, for questions about a property rather than about single heads."""

from __future__ import annotations

from headspan.concepts.labels import Labels, read_labels
from headspan.errors import SettingsError
from headspan.store import results
from headspan.store.head_space import Head
from headspan.store.reader import Store


def heads_of(store: Store, label: str, run: str | None = None) -> list[Head]:
    """The heads, as (layer, head), whose label is `label`, in the order of layers and heads.

    Labels that count as one concept (`Labels.concepts`) are one label, and case is ignored. `run` is the run of labels,
    by default the only one. Raises SettingsError if the store has no labels, or if none of the run's labels is `label`;
    StoreError if the run is missing or damaged, or if there are several and none is named.
    """
    if run is None and not results.runs(store, "labels"):
        raise SettingsError(
            f"{store.path}: label {label!r}: the store holds no labels; run headspan textspan and headspan label"
        )
    return labelled_heads(read_labels(store, run), label, str(store.path))


def labelled_heads(labels: Labels, label: str, where: str) -> list[Head]:
    """As `heads_of`, for labels that are read already; `where` names their store in an error."""
    # By every form of the label; those that are written like it come first.
    forms: dict[str, str] = {}
    for names, concepts in zip(labels.names, labels.concepts, strict=True):
        for name, concept in zip(names, concepts, strict=True):
            if name is not None and concept is not None:
                forms |= {name: concept, concept: concept}
    wanted = forms.get(label) or {form.casefold(): forms[form] for form in forms}.get(label.casefold())
    if wanted is None:
        known = ", ".join(sorted(set(forms.values()))) or "none"
        raise SettingsError(f"{where}: no head has the label {label!r}; the labels of run {labels.run} are: {known}")
    return [
        (layer, head)
        for layer, concepts in zip(labels.layers, labels.concepts, strict=True)
        for head, concept in enumerate(concepts)
        if concept == wanted
    ]
