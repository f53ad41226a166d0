# %% [markdown]
# # Maps and neighbours
#
# What does an image look like to one head? Its nearest neighbours through that head share what the head sees, and a
# map shows where in the image the evidence is.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import headspan as hs

folder = Path("maps-and-neighbours")
shards = hs.world.write_world_shards(folder / "shards", images=300, seed=2, split="held_out")
hs.precompute(shards, folder / "run.zarr", model="reference", layers="all", emit=("heads", "patches"))
store = hs.open(folder / "run.zarr")
spans = hs.textspan(store, "world", texts_per_head=5)
labels = hs.concepts.label_heads(store, spans)
ccs = hs.concepts.concept_consistency(store, labels)

# %% [markdown]
# ## Heads of a concept
#
# We look through the heads that are labelled with a concept, if their score beats chance.


# %%
def heads_of(concept):
    return [head for head in spans.heads() if labels.name(*head) == concept and ccs.chance.beats(*head)]


by_concept = {concept: heads_of(concept) for concept in ("shapes", "colours", "styles", "backgrounds")}
by_concept

# %% [markdown]
# ## Neighbours through different heads
#
# The same image has different neighbours through different heads. The last row is through all heads of the last
# layer.


# %%
image = 42
views = {name: heads for name, heads in by_concept.items() if heads}
views["last layer"] = [(store.layers[-1], head) for head in range(store.heads_per_layer)]

figure, axes = plt.subplots(len(views), 8, figsize=(9, 1.25 * len(views)), layout="constrained")
for line, (name, heads) in zip(axes, views.items(), strict=True):
    found = hs.explore.nearest_to_image(store, image, heads, count=7)
    for ax, picture in zip(line, hs.read_pictures(store, [image, *found.images]), strict=True):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
    for spine in line[0].spines.values():
        spine.set(linewidth=3)

# %% [markdown]
# Seven pictures convince easily. So we count over all images: the share of ten neighbours with the same value of the
# factor, beside all heads together and beside images drawn at random.

# %%
from headspan.world.scores import chance_of_same, precision_at, same_value

scenes = [hs.world.scene(2, "held_out", int(row)) for row in store.rows]
every = list(spans.heads())
print(f"{'':12}  these heads  all heads  at random")
for concept, factor in {"shapes": "shape", "styles": "style", "backgrounds": "background", "colours": "colour"}.items():
    if not by_concept[concept]:
        continue
    values = [hs.world.value_of(each, factor) for each in scenes]
    known = [place for place, value in enumerate(values) if value is not None]
    same = same_value(np.array([values[place] for place in known]))
    shares = []
    for heads in (by_concept[concept], every):
        mean = np.mean([store.head(*head)[known] for head in heads], axis=0)
        shares.append(precision_at(mean @ mean.T, same))
    print(f"{concept:12} {shares[0]:>11.0%} {shares[1]:>10.0%} {chance_of_same(same):>10.0%}")

# %% [markdown]
# ## Maps
#
# A patch's contribution along a text is its part of the dot product of the image's embedding and the text. Every head
# has positions that it always reads, so `head_maps` subtracts the head's mean map, and measures in standard
# deviations over 128 images drawn at random. Patches within the threshold have no colour: in an image drawn at
# random, one patch in twenty has one by chance.

# %%
text = "a red object"
vector = hs.text_vectors(store, [text])
spread = {head: float(hs.explore.similarities(store, vector, [head])[0].std()) for head in spans.heads()}
head = max(spread, key=spread.get)
found = hs.explore.nearest_to_text(store, text, [head], count=6)
maps = hs.explore.head_maps(store, text, head, found.images)
maps

# %%
_ = maps.plot(hs.read_pictures(store, maps.images))

# %% [markdown]
# The head is the one whose scores for the text vary most. These are the images that respond most to the text; images
# drawn at random show whether the head also colours patches elsewhere.

# %%
some = np.random.default_rng(1).choice(store.images, 6, replace=False)
maps = hs.explore.head_maps(store, text, head, some)
maps.plot(hs.read_pictures(store, some))
print(f"{maps.coloured.mean():.1%} of the patches have a colour; 5 % in images drawn at random, on average")

# %% [markdown]
# ## Maps through several heads
#
# `text_maps` sums over heads and is not centred: these numbers and the class token's add up to the score. The scenes'
# masks tell how well the maps find the objects; a map that is the same everywhere would score the objects' share of
# the image.

# %%
from headspan.explore.maps.segmentation import resized
from headspan.world.scores import map_scores

single = [place for place, each in enumerate(scenes) if each.repeated][:100]
_, masks = hs.world.render([scenes[place] for place in single], masks=True)
texts = [f"a {scenes[place].things[0].colour} {scenes[place].things[0].shape}" for place in single]
vectors = hs.text_vectors(store, texts)
scores = [
    map_scores(resized(hs.explore.text_maps(store, place, vectors[[number]], every)[0], (64, 64)), masks[number] > 0)
    for number, place in enumerate(single)
]
inside, area, precision = np.mean(scores, axis=0)
print(f"average precision {precision:.0%}, evidence inside the objects {inside:.0%}; a constant map: {area:.0%}")
