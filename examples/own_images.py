# %% [markdown]
# # Heads of your own images
#
# From a folder of pictures to heads described by texts of your own. To keep this notebook offline, the pictures are
# drawn and the model is the small one that ships with headspan. For photographs, change the three names in the next
# cell.

# %%
from pathlib import Path

import headspan as hs

folder = Path("own-images")
pictures = folder / "pictures"  # your folder
model, pretrained = "reference", None  # such as "ViT-B-32", "laion2b_s34b_b79k"

# %% [markdown]
# These lines stand for your pictures: JPEG files with a caption beside each.

# %%
from PIL import Image

pictures.mkdir(parents=True)
scenes = [hs.world.scene(seed=11, split="held_out", index=index) for index in range(400)]
for number, (scene, pixels) in enumerate(zip(scenes, hs.world.render(scenes), strict=True)):
    Image.fromarray(pixels).save(pictures / f"{number:04d}.jpg", quality=95)
    (pictures / f"{number:04d}.txt").write_text(hs.world.caption(scene, hs.world.Stream(11, number)))

# %% [markdown]
# ## Into a store
#
# `precompute` reads the folder: each `.txt` is the caption of the picture beside it. It reads WebDataset tars, Parquet
# files and lists of paths too. `hs.write_shards` writes frames and data sets as tars.

# %%
summary = hs.precompute(str(pictures), folder / "run.zarr", model=model, pretrained=pretrained, layers="all")
store = hs.open(folder / "run.zarr")
print(f"{store.images} images, {len(summary.bad)} of them could not be decoded")

# %% [markdown]
# ## Which heads matter
#
# Labels of heads that hardly change an embedding say little about the model. A head's variance share is the variance
# of its contributions, divided by that of the embeddings.

# %%
magnitudes = store.magnitudes()
heads = [(layer, head) for layer in store.layers for head in range(store.heads_per_layer)]
shares = {head: magnitudes.of(*head)[0] for head in heads}
strongest = sorted(heads, key=shares.get, reverse=True)[:6]
for layer, head in strongest:
    print(f"L{layer}.H{head}: {shares[layer, head]:.1%} of the embeddings' variance")

# %% [markdown]
# ## Texts of your own
#
# A pool is a file with one text on each line, or `text<TAB>concept`. TEXTSPAN can only choose what the pool offers,
# so write texts for everything that may vary in your pictures: a few hundred are a good start, and the included pool
# of the papers has 3,422 (`headspan textspan run.zarr` uses it by default).

# %%
lines = [
    f"{text}\t{factor}"
    for factor in hs.world.FACTORS
    for texts in hs.world.prompts(factor).values()
    for text in texts[:4]
]
(folder / "pool.txt").write_text("\n".join(dict.fromkeys(lines)) + "\n")
pool = hs.read_pool(folder / "pool.txt")
pool

# %%
spans = hs.textspan(store, pool, texts_per_head=10)
_ = spans.plot()

# %%
for layer, head in strongest:
    chance = spans.chance(layer, head)
    verdict = "above chance" if chance.p <= 0.05 else "no more than chance"
    print(f"L{layer}.H{head}  {chance.excess:+.0%}, {verdict}: {'; '.join(spans.texts(layer, head, 3))}")

# %% [markdown]
# With few images, other images may give other texts. `stability` is the share of a head's first five texts that stay
# when images are resampled, and `too_few_images` says if the store is too small.

# %%
spans.too_few_images() or "enough images"

# %% [markdown]
# ## Pictures at both ends of a head
#
# The pictures that respond most and least to a head's first text show what the text means for this head.

# %%
import matplotlib.pyplot as plt
import numpy as np

layer, head = max(strongest, key=lambda each: spans.chance(*each).excess)
text = spans.texts(layer, head, 1)[0]
(scores,) = hs.explore.similarities(store, hs.text_vectors(store, [text]), [(layer, head)])
order = np.argsort(scores)
random = np.random.default_rng(0).choice(store.images, 6, replace=False)
rows = {"most": order[::-1][:6], "least": order[:6], "at random": random}

figure, axes = plt.subplots(3, 6, figsize=(8, 4.4), layout="constrained")
figure.suptitle(f"L{layer}.H{head}: “{text}”")
for line, (name, images) in zip(axes, rows.items(), strict=True):
    for ax, image, picture in zip(line, images, hs.read_pictures(store, images), strict=True):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[], title=f"{scores[image]:+.3f}")
    line[0].set_ylabel(name)

# %% [markdown]
# ## Next
#
# * `hs.concepts.label_heads` and `concept_consistency` turn the texts into one concept for each head, since this pool
#   has concepts ([first steps](first_steps.ipynb)).
# * Where in an image a head finds its evidence: [maps and neighbours](maps_and_neighbours.ipynb).
# * `hs.write_report(store, "report.html")` shows all heads in one file, after `hs.textspan(..., save=True)`.
