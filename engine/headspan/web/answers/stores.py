"""Answers about the server, its stores, and the grid of a store's heads."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Number


class ModelState(Answer):
    """The process that holds a store's model: whether it can answer, and why not."""

    # "absent" before it is started, "loading", "ready" or "failed".
    state: str
    # One sentence for "loading" and "failed".
    message: str | None = None


class StoreSummary(Answer):
    """An open store in the list of stores."""

    # The store's name in addresses: the stem of its folder, with a number where two stores share it.
    name: str
    path: str
    model: str
    pretrained: str | None
    # Images that the store shows now, and rows that the finished store will have.
    images: int
    planned: int
    complete: bool
    # Changes whenever the store shows other images or other results; pages ask again when it does.
    version: str
    has_patches: bool
    has_captions: bool
    has_classes: bool
    layers: tuple[int, ...]
    heads_per_layer: int
    joint: int
    # Height and width of the model's input in pixels.
    input_size: tuple[int, int]
    model_process: ModelState
    # Why the store can no longer be read, in one sentence; null if it can be.
    problem: str | None = None


class Status(Answer):
    """The server and its stores. Pages ask for it every few seconds."""

    headspan: str
    stores: list[StoreSummary]


class Runs(Answer):
    """The names of a store's saved results, by kind, and the one of each kind that answers use by default."""

    textspan: list[str]
    labels: list[str]
    ccs: list[str]
    default: str | None


class Property(Answer):
    """A label and the heads that have it."""

    label: str
    heads: list[HeadName]


class Fact(Answer):
    """A fact about a store: a name and a value, both for people."""

    name: str
    value: str


class StoreAnswer(Answer):
    """A store: facts about its run, its results, and its properties."""

    name: str
    facts: list[Fact]
    runs: Runs
    properties: list[Property]
    # What the store lacks, and the command that adds it: one sentence each.
    notices: list[str]
    # Names of classes by number, as far as they are known.
    classes: dict[int, str]


class HeadSummary(HeadName):
    """A cell of the grid of heads. Numbers are null where the store does not have what they need."""

    label: str | None
    # Concept Consistency Score, 0 to 5.
    ccs: int | None
    # Shares of the embeddings' variance and of their mean squared length.
    variance_share: Number
    squared_length_share: Number
    # The share of the head's variance that its first texts explain, what chance gives, and the difference.
    explained: Number
    chance: Number
    excess: Number
    # The probability that chance explains as much.
    p: Number
    # Effective number of dimensions of the head's contributions.
    effective_rank: Number
    # The head's texts, most important first.
    texts: list[str]


class Grid(Answer):
    """Every stored head of a store; the page colours and searches them without further requests."""

    store: str
    run: str | None
    # How many of its texts a head's `explained` counts.
    texts_counted: int | None
    heads: list[HeadSummary]
