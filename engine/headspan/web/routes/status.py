"""The server's state, and its stores."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends

from headspan.web.answers.stores import Status, StoreSummary
from headspan.web.asked import explorer_of
from headspan.web.failures import RESPONSES
from headspan.web.state.explorer import Explorer

router = APIRouter(prefix="/api", tags=["status"], responses=RESPONSES)


@router.get("/status")
def status(explorer: Annotated[Explorer, Depends(explorer_of)]) -> Status:
    """The open stores and the state of the process of each store's model."""
    return Status(headspan=version("headspan"), stores=[_summary(explorer, name) for name in explorer.stores.names])


def _summary(explorer: Explorer, name: str) -> StoreSummary:
    store = explorer.stores.last(name)
    filled = explorer.stores.filled_columns(name)
    size = store.attributes["preprocess"]["size"]
    return StoreSummary(
        name=name,
        path=str(store.path),
        model=str(store.attributes["model"]),
        pretrained=store.attributes["pretrained"],
        images=store.images,
        planned=store.planned_images,
        complete=store.complete,
        version=explorer.stores.version(name),
        has_patches="patches" in store.contents.specs,
        has_captions="caption" in filled,
        has_classes="label" in filled,
        layers=store.layers,
        heads_per_layer=store.heads_per_layer,
        joint=store.joint,
        input_size=(int(size[0]), int(size[1])),
        model_process=explorer.model.state(store),
        problem=explorer.stores.problem(name),
    )
