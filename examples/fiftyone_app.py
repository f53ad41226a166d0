# %% [markdown]
# # A store in FiftyOne
#
# [FiftyOne](https://docs.voxel51.com) shows large sets of images in the browser, filters them and sorts them by
# similarity. This notebook loads a store into it: pictures, captions, the score of each image along a head's first
# text, maps as heat maps, and one similarity index for each head, so that "more like this" means "more like this *to
# this head*".
#
# It needs `pip install fiftyone`, which brings a database.

# %%
from pathlib import Path

import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
from PIL import Image

import headspan as hs

folder = Path("fiftyone-app")
shards = hs.world.write_world_shards(folder / "shards", images=300, seed=2, split="held_out")
hs.precompute(shards, folder / "run.zarr", model="reference", layers="all", emit=("heads", "patches"))
store = hs.open(folder / "run.zarr")
spans = hs.textspan(store, "world", texts_per_head=5)

# %% [markdown]
# ## Pictures as files
#
# FiftyOne shows files, and the store's images are in tars. These are the pictures as the model sees them.

# %%
samples = store.samples()
keys, captions = samples["key"].to_pylist(), samples["caption"].to_pylist()
paths = [(folder / "pictures" / f"{key}.png").resolve() for key in keys]
paths[0].parent.mkdir()
for path, picture in zip(paths, hs.read_pictures(store, range(store.images)), strict=True):
    Image.fromarray(picture).save(path)

# %% [markdown]
# ## Heads that texts explain
#
# Three heads with the largest excess over chance, and each image's score along the head's first text, in standard
# deviations from the mean over all images.

# %%
heads = sorted(spans.heads(), key=lambda head: -spans.chance(*head).excess)[:3]
scores, maps = {}, {}
for layer, head in heads:
    name = f"L{layer}_H{head}"
    text = spans.texts(layer, head, 1)[0]
    (along,) = hs.explore.similarities(store, hs.text_vectors(store, [text]), [(layer, head)])
    scores[name] = (along - along.mean()) / along.std()
    maps[name] = hs.explore.head_maps(store, text, (layer, head), range(store.images))
    print(f"{name}: “{text}”, {spans.chance(layer, head).excess:+.0%} against chance")

# %%
dataset = fo.Dataset("headspan-example", overwrite=True)
for image, path in enumerate(paths):
    sample = fo.Sample(filepath=str(path), image_key=keys[image], caption=captions[image])
    for name, of_head in scores.items():
        sample[f"score_{name}"] = float(of_head[image])
        found = maps[name]
        # No heat within the threshold, as in the report.
        heat = np.where(np.abs(found.deviations[image]) > found.threshold, found.deviations[image], 0)
        limit = float(np.abs(found.deviations).max())
        sample[f"map_{name}"] = fo.Heatmap(map=heat, range=[-limit, limit])
    dataset.add_sample(sample)

# %% [markdown]
# ## Similarity through one head
#
# The index of a head holds its contributions in the head's own coordinates. Neighbours by the dot product in the
# joint space are those of `hs.explore.nearest_to_image`; cosine similarity of coordinates, which FiftyOne computes
# here, is close to it, but not the same.

# %%
for layer, head in heads:
    fob.compute_similarity(
        dataset,
        embeddings=store.head_coordinates(layer, head),
        brain_key=f"L{layer}_H{head}",
        backend="sklearn",
        metric="cosine",
    )
layer, head = heads[0]
nearest = dataset.sort_by_similarity(dataset.first().id, brain_key=f"L{layer}_H{head}", k=9)
nearest.values("caption")

# %% [markdown]
# ## Look
#
# Run this line to open the app: sort by a score, turn on a map, or select a picture and sort by similarity with one
# of the heads.
#
# ```python
# session = fo.launch_app(dataset)
# ```
