# %% [markdown]
# # Probing with scikit-learn
#
# Which heads know the shape of an object, and which the style of the picture? A linear probe on each head's
# coordinates answers this: if it predicts the factor on images that it has not seen, the head's output contains it.
# Each accuracy stands beside that of the most common value, of the whole embedding, and of shuffled labels.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headspan as hs

folder = Path("probing")
shards = hs.world.write_world_shards(folder / "shards", images=800, seed=2, split="held_out")
hs.precompute(shards, folder / "run.zarr", model="reference", layers="all")
store = hs.open(folder / "run.zarr")

# %% [markdown]
# ## What is to be predicted
#
# The factors of a scene are its labels here. In a store of your own they may be classes or captions, from
# `store.samples()`. A scene with several kinds of objects has no single shape, and is left out for that factor.

# %%
scenes = [hs.world.scene(2, "held_out", int(row)) for row in store.rows]
factors = ("shape", "colour", "count", "style", "background")
values = {factor: [hs.world.value_of(each, factor) for each in scenes] for factor in factors}
{factor: len(set(each) - {None}) for factor, each in values.items()}

# %% [markdown]
# ## One probe for each head
#
# `store.head_coordinates(layer, head)` is [image, head_dim]: 32 numbers here, about 64 in larger models. The head's
# contribution to the embedding is a fixed linear map of these, so a linear probe on one is a linear probe on the
# other.
#
# Half of the images choose the best head by cross-validation. The other half gives its accuracy, because the best of
# 36 heads looks better than it is on the images that chose it.


# %%
def probe():
    return make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-1, 3, 5)))


half = np.random.default_rng(0).permutation(store.images) < store.images // 2
heads = [(layer, head) for layer in store.layers for head in range(store.heads_per_layer)]
outputs = {head: store.head_coordinates(*head) for head in heads}
embeddings = np.asarray(store.embedding)


def accuracy(inputs, factor, shuffled=False):
    """Accuracy on the second half of a probe that is trained on the first."""
    target = np.array([value or "" for value in values[factor]])
    known = target != ""
    train, test = known & half, known & ~half
    labels = target[train]
    if shuffled:
        labels = np.random.default_rng(1).permutation(labels)
    return probe().fit(inputs[train], labels).score(inputs[test], target[test])


grids, rows = {}, []
for factor in factors:
    target = np.array([value or "" for value in values[factor]])
    train, test = (target != "") & half, (target != "") & ~half
    chosen = [cross_val_score(probe(), outputs[head][train], target[train], cv=3).mean() for head in heads]
    grids[factor] = np.reshape(chosen, (len(store.layers), store.heads_per_layer))
    best = heads[int(np.argmax(chosen))]
    common = DummyClassifier().fit(target[train][:, None], target[train]).score(target[test][:, None], target[test])
    rows.append(
        (
            factor,
            f"L{best[0]}.H{best[1]}",
            accuracy(outputs[best], factor),
            accuracy(embeddings, factor),
            common,
            accuracy(outputs[best], factor, shuffled=True),
        )
    )

print(f"{'factor':11} {'best':6} head  embedding  most common  shuffled labels")
for factor, name, own, whole, common, shuffled in rows:
    print(f"{factor:11} {name:6} {own:4.0%} {whole:10.0%} {common:12.0%} {shuffled:16.0%}")

# %% [markdown]
# ## Where each factor is
#
# Accuracy of every head in cross-validation, from the most common value's accuracy (dark) up to 100 %.

# %%
figure, axes = plt.subplots(1, len(factors), figsize=(11, 2.8), layout="constrained", sharey=True)
for ax, factor, row in zip(axes, factors, rows, strict=True):
    drawn = ax.imshow(grids[factor], cmap="viridis", vmin=row[4], vmax=1, aspect="auto")
    ax.set(title=f"{factor} (chance {row[4]:.0%})", xlabel="head")
    figure.colorbar(drawn, ax=ax, location="bottom", format=lambda share, _: f"{share:.0%}")
_ = axes[0].set_yticks(range(len(store.layers)), [f"L{layer}" for layer in store.layers])

# %% [markdown]
# ## What a probe does not say
#
# A probe finds what is *in* a head's output, not what the model *uses*. The head's part of the embedding may be small
# (`store.magnitudes()`), and texts may not depend on it. To ask what the model uses, replace the head by its mean and
# look at what is lost (`hs.prune.mean_ablated`), or describe it by texts ([first steps](first_steps.ipynb)).
