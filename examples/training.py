# %% [markdown]
# # Training with the PyTorch dataset
#
# A store of a billion images does not fit into memory. `hs.torch_dataset` gives its numbers to a PyTorch DataLoader,
# read in blocks and shuffled. Here, one linear layer learns to say from the heads of one layer how many objects a
# scene has, and the same from the embedding. Both accuracies stand beside that of the most common answer.

# %%
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import headspan as hs

folder = Path("training")
shards = hs.world.write_world_shards(folder / "shards", images=800, seed=2, split="held_out")
hs.precompute(shards, folder / "run.zarr", model="reference", layers="all")
store = hs.open(folder / "run.zarr")

# %% [markdown]
# ## Labels
#
# A class that the shards contain (`.cls`) is an array like any other, `label`. Here the scenes are the labels, so
# each sample also brings its `image`, the index of the image in the store, and the label is looked up by it. Scenes
# with several kinds of objects have no single count, and are left out.

# %%
counts = [hs.world.value_of(hs.world.scene(2, "held_out", int(row)), "count") for row in store.rows]
known = np.array([place for place, count in enumerate(counts) if count is not None])
target = torch.tensor([int(count or 1) - 1 for count in counts])
train, test = np.split(np.random.default_rng(0).permutation(known), [2 * len(known) // 3])
print(f"{len(train)} images to train on, {len(test)} to test on")

# %% [markdown]
# ## Two styles
#
# The map style gives any image or batch by its number; the DataLoader shuffles. `heads` is [layer, head, head_dim]
# for each image: what the store holds, so nothing is computed.

# %%
arrays = ("heads", "embedding", "image")
dataset = hs.torch_dataset(store, arrays, layers=[5], images=test)
{name: tuple(values.shape) for name, values in dataset[[0, 1, 2]].items()}

# %% [markdown]
# The iterable style is for stores that are larger than memory: neighbouring images are read together, and several
# blocks are mixed. Small blocks are for this small store; the default is 1,024 images.

# %%
stream = hs.torch_dataset(
    store, arrays, layers=[5], images=train, style="iterable", batch_size=64, shuffle=True, block_images=64
)

# %% [markdown]
# ## Training
#
# Inputs are divided by their mean size, since heads and embeddings have different scales.


# %%
def inputs(batch, name):
    return batch[name].flatten(1).float()


def fit(name, epochs=20):
    """A linear layer on one array of the stream, and its accuracy on the test images."""
    torch.manual_seed(0)
    scale = inputs(dataset[list(range(len(dataset)))], name).std()
    width = inputs(dataset[[0]], name).shape[1]
    layer = torch.nn.Linear(width, 6)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.01)
    for epoch in range(epochs):
        stream.set_epoch(epoch)
        for batch in DataLoader(stream, batch_size=None):
            loss = torch.nn.functional.cross_entropy(layer(inputs(batch, name) / scale), target[batch["image"]])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        batches = DataLoader(dataset, batch_size=None, sampler=BatchSampler(RandomSampler(dataset), 128, False))
        right = [(layer(inputs(each, name) / scale).argmax(1) == target[each["image"]]).float() for each in batches]
    return float(torch.cat(right).mean())


common = float((target[test] == target[train].mode().values).float().mean())
for name in ("heads", "embedding"):
    what = "six heads of layer 5" if name == "heads" else "embedding"
    print(f"{what:21} {fit(name):.0%}   most common count {common:.0%}")

# %% [markdown]
# ## Larger stores
#
# * `DataLoader(stream, batch_size=None, num_workers=4)` reads in four processes; each image still comes once an
#   epoch.
# * With `torch.distributed`, every rank gets a part of its own.
# * `dtype="float16"` halves the bytes, and `arrays=("contributions",)` gives contributions in the joint space.
