"""A language model that writes answers to prompts, and says how much more likely training has made them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headspan.describe.policy.load import load_language_model
from headspan.describe.policy.silence import silent
from headspan.describe.policy.tokens import TOKENS, check_context
from headspan.describe.policy.trees import log_probabilities, sample, takes_trees
from headspan.errors import ModelError, one_line


@dataclass(frozen=True, slots=True)
class Written:
    """One answer: its text, its log-probabilities in nats, and whether the model ended it by itself."""

    text: str
    # The numbers of its tokens, with the end token.
    answer: tuple[int, ...]
    log_probability: float
    # By the model without its adapter; the same number if it has none.
    reference_log_probability: float
    ended: bool

    @property
    def tokens(self) -> int:
        """How many tokens it has, with the end token."""
        return len(self.answer)


class Policy:
    """A language model, with its adapter if it was trained. `open_policy` makes one."""

    def __init__(self, model: Any, tokenizer: Any, name: str, adapter: Path | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.adapter = adapter
        # Some models end answers with other tokens than their tokenizer says.
        more = getattr(model.generation_config, "eos_token_id", None)
        self._ends = sorted({tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None})
        # Whether what answers have in common is computed once; known once something is written.
        self._in_trees: bool | None = None

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Switch the adapter off."""
        with self.model.disable_adapter() if self.adapter is not None else nullcontext():
            yield

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[str],
        *,
        greedy: bool = False,
        tokens: int = TOKENS,
        seed: int = 0,
        batch: int = 64,
    ) -> list[Written]:
        """An answer to every prompt, sampled without truncating the distribution, or the most likely token each time.

        The answers depend on `seed` and `batch`. Log-probabilities are those of sampling. The random generators of the
        caller stay as they are. Raises ModelError if the context is too short for a prompt with its answer.
        """
        check_context(self.model, self.tokenizer, prompts, tokens, self.name)
        device = self.model.device
        found: list[Written] = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch):
                found += self._batch(list(prompts[start : start + batch]), greedy, tokens)
        return found

    def _batch(self, prompts: list[str], greedy: bool, tokens: int) -> list[Written]:
        if self._in_trees is None:
            asked = self.tokenizer(prompts)["input_ids"]
            self._in_trees = takes_trees(self.model, list(chain.from_iterable(asked)))
        return (self._in_tree if self._in_trees else self._one_by_one)(prompts, greedy, tokens)

    def _in_tree(self, prompts: list[str], greedy: bool, tokens: int) -> list[Written]:
        asked = self.tokenizer(prompts)["input_ids"]
        drawn = sample(self.model, asked, tokens, self._ends, greedy)
        own = [math.fsum(each) for each in drawn.log_p]
        reference = own
        if self.adapter is not None:
            with self.untrained():
                reference = log_probabilities(self.model, asked, drawn.answers)[0].double().sum(dim=1).tolist()
        ended = [each[-1] in self._ends for each in drawn.answers]
        texts = self.tokenizer.batch_decode(
            [each[:-1] if stop else each for each, stop in zip(drawn.answers, ended, strict=True)],
            skip_special_tokens=True,
        )
        return [
            Written(" ".join(text.split()), tuple(answer), one, other, stop)
            for text, answer, one, other, stop in zip(texts, drawn.answers, own, reference, ended, strict=True)
        ]

    def _one_by_one(self, prompts: list[str], greedy: bool, tokens: int) -> list[Written]:
        asked = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        asked.pop("token_type_ids", None)
        sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        pad = self.tokenizer.pad_token_id
        whole = self.model.generate(
            **asked, max_new_tokens=tokens, pad_token_id=pad, eos_token_id=self._ends, **sampling
        )
        answers = whole[:, asked["input_ids"].shape[1] :]
        # The end token belongs to an answer; whatever follows it does not.
        ends = torch.isin(answers, torch.tensor(self._ends, device=answers.device))
        counted = (ends.cumsum(dim=1) - ends.long()) == 0
        mask = torch.cat([asked["attention_mask"], counted.to(asked["attention_mask"].dtype)], dim=1)
        own = self._log_probabilities(whole, mask, answers, counted)
        with self.untrained():
            reference = self._log_probabilities(whole, mask, answers, counted) if self.adapter is not None else own
        texts = self.tokenizer.batch_decode(
            [row[keep & ~stop] for row, keep, stop in zip(answers, counted, ends, strict=True)],
            skip_special_tokens=True,
        )
        return [
            Written(" ".join(text.split()), tuple(row[keep].tolist()), float(one), float(other), bool(stop.any()))
            for text, row, keep, one, other, stop in zip(texts, answers, counted, own, reference, ends, strict=True)
        ]

    def _log_probabilities(self, whole: Tensor, mask: Tensor, answers: Tensor, counted: Tensor) -> Tensor:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.model(input_ids=whole, attention_mask=mask, position_ids=positions).logits
        logits = logits[:, -answers.shape[1] - 1 : -1].float().log_softmax(dim=-1)
        found = logits.gather(-1, answers[..., None]).squeeze(-1)
        return (found * counted).sum(dim=1)


def open_policy(model: str | Path, adapter: str | Path | None = None, device: str = "cpu") -> Policy:
    """A language model as `load_language_model` finds it, with the PEFT adapter in the folder `adapter` if given.

    Raises ModelError if either cannot be loaded.
    """
    loaded, tokenizer = load_language_model(model, device)
    if adapter is None:
        return Policy(loaded, tokenizer, str(model))
    from peft import PeftModel

    try:
        with silent():
            loaded = PeftModel.from_pretrained(loaded, str(adapter))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{adapter}: is not an adapter of {model} ({one_line(error)}); give the folder that train wrote"
        ) from error
    return Policy(loaded, tokenizer, str(model), Path(adapter))
