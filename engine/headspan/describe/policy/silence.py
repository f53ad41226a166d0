"""Keep transformers, PEFT and TRL from drawing progress bars, and from warnings that only they can act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def silent() -> Iterator[None]:
    """Draw no progress bars within the block, and hide one warning; afterwards both are as before."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT and TRL read a property of models that transformers has given another name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        if before:
            logging.enable_progress_bar()


@contextmanager
def silent_gguf() -> Iterator[None]:
    """Draw no bar within the block while a GGUF file is read; transformers' setting does not reach that bar."""
    from transformers import modeling_gguf_pytorch_utils as module

    bar = getattr(module, "tqdm", None)
    if bar is not None:
        module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            module.tqdm = bar
