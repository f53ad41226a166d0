"""Answers about sparse features and the modality they belong to."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Hit, NearText, Number
from headspan.web.answers.stores import Fact


class Histogram(Answer):
    """How many features have which score. Bar k of n counts scores from k/n to below (k + 1)/n; the last one 1 too."""

    # "mds" or "energy".
    measure: str
    # By the rule of the class, "spread" or "interval", and by the class: a number for each bar.
    counts: dict[str, dict[str, list[int]]]
    # The scores with captions shuffled.
    shuffled: list[int]
    # Features without a score, such as those that are never active, and those without one when captions are shuffled.
    without: int
    shuffled_without: int


class Features(Answer):
    """A run that scored the features of a dictionary over a store's pairs. Without any run, `run` is null."""

    store: str
    run: str | None
    # The names of all runs.
    runs: list[str]
    # The heads whose coordinates the features are of; empty for those of the whole embedding.
    heads: list[HeadName]
    features: int
    pairs: int
    # Whether the features are active in captions too; those of heads' coordinates are of images alone.
    has_texts: bool
    # The MDS below and above which features are of a class by mean ± standard deviation.
    spread: tuple[Number, Number]
    # How many features are of each class, by the rule.
    classes: dict[str, dict[str, int]]
    histograms: list[Histogram]
    # Numbers of images that `similarity` of a feature is given for.
    similarity_sizes: list[int]
    # Whether features have names.
    named: bool
    facts: list[Fact]
    notices: list[str]


class FeatureRow(Answer):
    """A feature in a list of features. Numbers are null where the feature has none."""

    feature: int
    # The nearest text of a pool, and its cosine with the feature's direction; null if features are not named.
    name: str | None
    name_cosine: Number
    # The caption with the largest code, and the rows of the images with the largest ones.
    caption: str | None
    images: list[int]
    # Pairs in which the image's code, the text's, or one of both is above 0.
    image_active: int
    text_active: int
    active: int
    # Modality Dominance Score, the ends of its 95 % interval, and the score with captions shuffled.
    mds: Number
    mds_low: Number
    mds_high: Number
    shuffled_mds: Number
    # The same of the energy score.
    energy: Number
    energy_low: Number
    energy_high: Number
    shuffled_energy: Number
    # "image-dominant", "cross-modal", "text-dominant" or "undecided": by mean ± deviation, and by the interval.
    class_by_spread: str
    class_by_interval: str
    # Over images, and across images and captions.
    monosemanticity: Number
    cross_monosemanticity: Number
    # EmbSim of the most active images, for each of the run's numbers of images.
    similarity: list[Number]


class FeatureList(Answer):
    """Features that pass a filter, one page of them."""

    store: str
    run: str
    total: int
    offset: int
    features: list[FeatureRow]


class UseRow(Answer):
    """A row of a use's table: its cells as words, and whether it is about as many random features."""

    cells: list[str]
    random: bool


class UseTable(Answer):
    """A table of a use. The title is empty where it needs no words."""

    title: str
    head: list[str]
    rows: list[UseRow]


class FeatureUse(Answer):
    """A saved use of features, with its control of as many random features of equal energy."""

    run: str
    # "bias", "attack" or "edit"; null if it cannot be read.
    use: str | None
    tables: list[UseTable]
    # The neighbours of one edited image, with a title that says which edit it is; empty for other uses.
    title: str = ""
    images: list[Hit]
    # How the numbers came about, and what limits them, without a full stop.
    notes: list[str]
    remarks: list[str]
    # Why it cannot be read, or that it is of older scores; null otherwise.
    problem: str | None = None


class FeatureUses(Answer):
    """The saved uses of the features of a run of scores."""

    store: str
    run: str
    uses: list[FeatureUse]
    # What to do if there is none.
    notices: list[str]


class LikeFeature(Answer):
    """Another feature, and the cosine of the two directions."""

    feature: int
    name: str | None
    # The caption with the largest code.
    caption: str | None
    class_by_spread: str
    class_by_interval: str
    cosine: Number


class FeatureHead(HeadName):
    """How much of a feature lies in one head."""

    label: str | None
    # The head's share of the variance of the images along the direction, and what a random direction has. For features
    # of heads, the share of the direction's squared length that is in the head's coordinates; nothing is random there.
    share: Number
    random: Number


class FeatureAnswer(Answer):
    """One feature: its scores, what it is active in, the texts near it, the heads it lies in, and features like it."""

    store: str
    run: str
    # How many features there are, and whether they are active in captions too.
    features: int
    has_texts: bool
    pairs: int
    row: FeatureRow
    # Mean over all pairs of the code.
    image_mean: Number
    text_mean: Number
    similarity_sizes: list[int]
    # Images, and captions with their images, that have the largest codes; the code is the score.
    images: list[Hit]
    captions: list[Hit]
    # Texts of the pool, and how often a random direction, and a random mixture of features, is as near to one of it.
    texts: list[NearText]
    pool: str | None
    name_p: Number
    name_mixture_p: Number
    # The heads by falling share, and which share it is: "variance" or "length".
    heads: list[FeatureHead]
    share: str
    alike: list[LikeFeature]
    notices: list[str]
