"""The reference model in training: forward pass with contributions, losses, evaluation, export."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headspan.config import Preprocess
from headspan.model.tower import normalise
from headspan.world import FACTORS, prompts, render, scene, value_of

CONFIG = Path(__file__).parent.parent / "engine" / "headspan" / "world" / "reference" / "headspan-reference.json"
_EVALUATION_BATCH = 256


def build() -> tuple[Any, Any]:
    """The untrained reference model, and its tokenizer."""
    open_clip.add_model_config(CONFIG)
    logging.disable(logging.WARNING)
    model = open_clip.create_model(CONFIG.stem, output_dict=True)
    logging.disable(logging.NOTSET)
    return model, open_clip.get_tokenizer(CONFIG.stem)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 pixels `[batch, height, width, 3]` as the model's input."""
    preprocess = Preprocess()
    return normalise(pixels, preprocess.mean, preprocess.std, torch.float32)


class Encoder(nn.Module):
    """open_clip's model, which also returns what each head contributes to the image vector before normalisation."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor, tokens: Tensor, with_heads: bool) -> dict[str, Tensor]:
        """Unit vectors of images and texts, and the scale of the logits.

        If `with_heads`, also `heads [image, layer * head, joint]`: contributions in the convention `per_term`, without
        the output biases.
        """
        visual = self.clip.visual
        rows = visual._embeds(pixels)
        added = []
        for block in visual.transformer.resblocks:
            if with_heads:
                added.append(_added_to_class_token(block.ln_1(rows), block.attn))
            rows = block(rows)
        pooled, _ = visual._pool(rows)
        found = {
            "image_features": nn.functional.normalize(pooled @ visual.proj, dim=-1),
            "text_features": self.clip.encode_text(tokens, normalize=True),
            "logit_scale": self.clip.logit_scale.exp(),
        }
        if with_heads:
            norm = visual.ln_post
            heads = torch.cat(added, dim=1).float()
            heads = (heads - heads.mean(dim=-1, keepdim=True)) * norm.weight
            deviation = (rows[:, 0].float().var(dim=1, unbiased=False) + norm.eps).sqrt()
            found["heads"] = (heads @ visual.proj) / deviation[:, None, None]
        return found


def _added_to_class_token(rows: Tensor, attention: nn.MultiheadAttention) -> Tensor:
    """What each head adds to the class token's row, `[image, head, width]`.

    One query costs little if keys and values of all rows are never computed: the query is multiplied by the keys'
    weights, and the values' weights are applied to the attention-weighted sum of rows. The keys' bias adds the same
    number to every score, so it is left out.
    """
    heads = attention.num_heads
    query, key, value = (part.unflatten(0, (heads, -1)) for part in attention.in_proj_weight.chunk(3))
    query_bias, _, value_bias = (part.unflatten(0, (heads, -1)) for part in attention.in_proj_bias.chunk(3))
    queries = torch.einsum("bd,hcd->bhc", rows[:, 0], query) + query_bias
    scores = torch.einsum("bhc,hcd->bhd", queries, key) * queries.shape[-1] ** -0.5 @ rows.transpose(1, 2)
    values = torch.einsum("bhd,hcd->bhc", scores.softmax(dim=-1) @ rows, value) + value_bias
    return torch.einsum("bhc,dhc->bhd", values, attention.out_proj.weight.unflatten(1, (heads, -1)))


def spread(heads: Tensor, texts: Tensor) -> Tensor:
    """The number of heads over which the evidence for a text is spread, as a square root: from 1 to √heads.

    Let σ be the standard deviation of a head's contributions `heads [image, head, joint]` along a text of
    `texts [text, joint]`, over the images of a batch. The result is the mean over texts of Σσ / √(Σσ²), a measure of
    sparsity (Hoyer, JMLR 2004) that does not depend on scale. The mean text is subtracted first, so only differences
    between the texts of the batch count.
    """
    with torch.autocast(heads.device.type, enabled=False):
        heads, texts = heads.float(), texts.float()
        evidence = torch.einsum("bhd,td->hbt", heads - heads.mean(dim=0), texts - texts.mean(dim=0))
        variance = evidence.square().mean(dim=1)
        return ((variance + 1e-12).sqrt().sum(dim=0) / (variance.sum(dim=0) + 1e-12).sqrt()).mean()


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, count: int, seed: int) -> dict[str, float]:
    """Zero-shot accuracy of every factor over `count` held-out scenes of the seed after `seed`."""
    model.eval()
    device = model.logit_scale.device
    scenes = [scene(seed + 1, "held_out", index) for index in range(count)]
    batches = (scenes[start : start + _EVALUATION_BATCH] for start in range(0, count, _EVALUATION_BATCH))
    vectors = torch.cat(
        [
            model.encode_image(normalised(torch.from_numpy(render(batch)).to(device)), normalize=True)
            for batch in batches
        ]
    )
    accuracies = {}
    for factor in FACTORS:
        ways = prompts(factor)
        classes = torch.stack(
            [
                nn.functional.normalize(
                    model.encode_text(tokenizer(texts).to(device), normalize=True).mean(dim=0), dim=0
                )
                for texts in ways.values()
            ]
        )
        truths = [value_of(each, factor) for each in scenes]
        named = [list(ways)[pick] for pick in (vectors @ classes.T).argmax(dim=1).tolist()]
        right = [name == truth for name, truth in zip(named, truths, strict=True) if truth is not None]
        accuracies[factor] = round(sum(right) / len(right), 4)
    model.train()
    return accuracies


def export(model: Any, seen: Tensor, path: Path) -> None:
    """Write float16 weights that open_clip loads. Embeddings of tokens that never occurred (`seen`) are zero."""
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    weights["token_embedding.weight"][~seen] = 0
    save_file(weights, path)
