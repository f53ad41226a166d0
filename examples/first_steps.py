# %% [markdown]
# # First steps
#
# headspan runs images through a CLIP image encoder once and stores what every attention head contributed to every
# image's embedding. This notebook makes a small store, describes its heads by texts, gives them labels, and draws the
# results, each beside what chance gives.
#
# The images are drawn scenes whose every factor is known, and the model is a small CLIP that ships with headspan. So
# nothing is downloaded, and the whole notebook takes some ten seconds on two cores.

# %%
from pathlib import Path

import headspan as hs

folder = Path("first-steps")

# %% [markdown]
# ## Images in shards
#
# `precompute` reads WebDataset shards: tars in which `KEY.png`, `KEY.txt` and `KEY.json` are an image, its caption
# and its metadata. `hs.world` draws 300 scenes of its image world into one such tar.

# %%
shards = hs.world.write_world_shards(folder / "shards", images=300, seed=2, split="held_out")

# %% [markdown]
# ## Precompute
#
# One pass through the encoder fills the store. `layers="all"` keeps every layer's heads; `emit` asks for `patches`
# too, which maps need. With a model of your own, name it as open_clip does: `model="ViT-B-32",
# pretrained="laion2b_s34b_b79k"`.

# %%
hs.precompute(shards, folder / "run.zarr", model="reference", layers="all", emit=("heads", "patches"))
store = hs.open(folder / "run.zarr")
store

# %%
store.samples([0, 1, 2]).select(["key", "caption"]).to_pylist()

# %% [markdown]
# ## What a head adds to an embedding
#
# The embedding is a sum, and `store.head(layer, head)` is one head's term of it for every image, in the joint
# image-text space. The store keeps the head's own few coordinates; the matrix that leads from them to the joint space
# is stored once.

# %%
contributions = store.head(layer=5, head=0)
coordinates = store.head_coordinates(5, 0)
print(f"contributions {contributions.shape}, stored as {coordinates.shape}")

# %% [markdown]
# ## Texts that describe the heads
#
# TEXTSPAN chooses, for each head, the texts that explain most of the variance of its contributions. Any pool of texts
# explains something, so the same texts' vectors are rotated at random 40 times: a pool with the same lengths and
# angles but without meaning. Its shares are chance.

# %%
spans = hs.textspan(store, "world", texts_per_head=20)
spans.texts(layer=5, head=0, count=5)

# %%
chance = spans.chance(5, 0)
print(f"the first five texts explain {chance.explained:.0%}")
print(f"chance: {chance.low:.0%} to {chance.high:.0%}, p = {chance.p:.2g}")

# %% [markdown]
# The curve shows the same for every number of texts. With as many texts as the head has directions, any pool explains
# everything, so look at the first few.

# %%
_ = spans.plot(5, 0)

# %% [markdown]
# The grid shows all heads, coloured by the excess of their first five texts over chance. Grey heads with a ring are
# not above chance. A few heads are above chance even if texts mean nothing, so the title compares the count with that
# of rotated pools.

# %%
_ = spans.plot()

# %% [markdown]
# ## Labels and Concept Consistency Scores
#
# The label of a head is the most common concept of its first five texts; its score (CCS) is how many of the five have
# that concept. Any five texts have a most common concept, so a score of 2 or 3 says little: heads whose score texts
# drawn at random reach too (p ≥ 0.05) are shown as unlabelled.

# %%
labels = hs.concepts.label_heads(store, spans)
ccs = hs.concepts.concept_consistency(store, labels)
ccs

# %%
_ = ccs.plot()

# %%
_ = ccs.plot("score")

# %% [markdown]
# ## Is it true?
#
# The scenes are known, so the labels can be checked. If a head is labelled with a concept, its nearest neighbours
# should share the concept more often than images drawn at random.

# %%
import numpy as np

from headspan.world.scores import chance_of_same, precision_at, same_value

scenes = [hs.world.scene(2, "held_out", int(row)) for row in store.rows]
factor_of = {
    "shapes": "shape",
    "colours": "colour",
    "styles": "style",
    "backgrounds": "background",
    "counting": "count",
}
for layer, head in spans.heads():
    factor = factor_of.get(labels.name(layer, head))
    if factor is None or not ccs.chance.beats(layer, head):
        continue
    values = [hs.world.value_of(each, factor) for each in scenes]
    known = [place for place, value in enumerate(values) if value is not None]
    same = same_value(np.array([values[place] for place in known]))
    of_head = store.head(layer, head)[known]
    print(
        f"L{layer}.H{head} {labels.name(layer, head):11}  same {factor}: {precision_at(of_head @ of_head.T, same):.0%} "
        f"of ten neighbours, at random {chance_of_same(same):.0%}"
    )

# %% [markdown]
# ## A report for others
#
# `write_report` puts everything into one HTML file that needs no network. It shows results that are saved in the
# store, which `save=True` does.

# %%
hs.textspan(store, "world", texts_per_head=20, save=True)
hs.concepts.label_heads(store, save=True)
hs.concepts.concept_consistency(store, save=True)
report = hs.write_report(store, folder / "report.html", heads="best6")
print(f"{report.name}: {report.stat().st_size / 1e6:.1f} MB")
