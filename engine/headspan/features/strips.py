"""The top images of features as rows of pictures, each with its key and code, for a PNG file."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as Pil

from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.explore.nearest.strips import stored_pictures
from headspan.features.most_active import COUNT, TopSamples, top_samples
from headspan.features.scores.result import CLASS_NAMES, FeatureScores
from headspan.plots.strips import Strip, Tile, draw_strips
from headspan.store.reader import Store

# A picture of more rows is too tall to look at, and for some viewers to open.
_MOST = 100


def feature_strips(
    store: Store,
    scores: FeatureScores,
    features: Sequence[int],
    count: int = COUNT,
    on_progress: Listener = ignore,
    *,
    shards: Sequence[str] = (),
) -> Pil.Image:
    """The pictures of each feature's top images, as the model sees them, in a row below its class, MDS and names.

    Pictures are read from the shards, which `shards` name if they have moved. If some cannot be read, their places say
    so, and one event says why. Raises as `top_samples` does, and SettingsError for more than 100 features.
    """
    if not 1 <= len(features) <= _MOST:
        raise SettingsError(f"{len(features):,} features: a picture shows 1 to {_MOST}; choose fewer")
    found = top_samples(store, scores, features, count)
    wanted = list(dict.fromkeys(each.image for samples in found for each in samples.images))
    pictures = stored_pictures(store, wanted, shards, on_progress, "codes")
    return draw_strips(
        None,
        [
            Strip(
                title_of(scores, samples),
                tuple(Tile(pictures.get(each.image), (each.key, f"{each.code:.4g}")) for each in samples.images),
            )
            for samples in found
        ],
    )


def title_of(scores: FeatureScores, samples: TopSamples) -> str:
    """A feature in a line: its number, class, MDS and first names."""
    feature = samples.feature
    known = CLASS_NAMES[int(scores.class_by_interval[feature])]
    names = " · ".join(scores.names[feature][:2]) if scores.names else ""
    score = "" if scores.mds[feature] != scores.mds[feature] else f", MDS {scores.mds[feature]:.2f}"
    return f"feature {feature}: {known}{score}" + (f" · {names}" if names else "")
