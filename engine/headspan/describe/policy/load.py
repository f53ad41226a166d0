"""Load a causal language model with transformers: from a folder, a GGUF file, or Hugging Face's hub."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from headspan.describe.policy.reference import language_model_path
from headspan.describe.policy.silence import silent, silent_gguf
from headspan.errors import HeadspanError, ModelError, one_line


def load_language_model(name: str | Path, device: str = "cpu") -> tuple[Any, Any]:
    """A language model and its tokenizer, in float32 on a CPU and bfloat16 on a GPU.

    `name` is a folder, a `.gguf` file, the name of a repository on Hugging Face's hub, or `reference`, the included
    model. Raises ModelError if there is no such model or it cannot be loaded, and HeadspanError if transformers is not
    installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise HeadspanError(
            f"describe needs transformers, which is not installed ({error}): pip install 'headspan[describe]'"
        ) from error
    path = language_model_path(name)
    place, more = str(path if path.is_dir() else name), {}
    if path.suffix == ".gguf" and path.is_file():
        place, more = str(path.parent), {"gguf_file": path.name}
    # On CPUs without fast 16-bit products, bfloat16 takes four to five times as long.
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        with silent(), silent_gguf() if more else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(place, **more)
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **more)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{name}: is not a language model that transformers can load ({one_line(error)}); give a folder, a .gguf "
            "file, a repository of Hugging Face's hub, or reference"
        ) from error
    if more:
        model = _plain(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model.to(device), tokenizer


def _plain(quantized: Any) -> Any:
    """The same weights in a model that is not marked as quantized, since a marked one cannot be saved."""
    del quantized.config.quantization_config
    plain = type(quantized)(quantized.config).to(quantized.dtype)
    plain.load_state_dict(quantized.state_dict())
    plain.tie_weights()
    plain.generation_config = quantized.generation_config
    return plain
