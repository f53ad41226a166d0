"""TRL's trainers, set up for descriptions: they print nothing, reach no network, and write checkpoints only.

Reward functions get the columns of the prompts' rows. With PEFT, the untrained model is the model with its adapter
switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from headspan.describe.policy.trees import Sampled, log_probabilities, sample, takes_trees
from headspan.describe.training.prefix_baseline import prefix_advantages
from headspan.describe.training.prompts import ordered
from headspan.describe.training.settings import PREFIX, RLOO, TrainingSettings
from headspan.describe.training.untrained import UntrainedAnswers

# Without a penalty TRL does not run the untrained model, and the divergence would stay unknown. In float32, a reward
# less this times a divergence is the reward.
_NO_PENALTY = 1e-30
_CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {each.name for each in fields(RLOOConfig)}
)


class _Quick:
    """What TRL's trainers do beside training, left out, and what they compute twice, computed once."""

    model: Any
    args: Any

    def _send_telemetry(self) -> None:
        """Reach no network."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card beside checkpoints."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with merged(self.model):
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]


class _Rloo(_Quick, RLOOTrainer):
    """RLOO, silent and quick."""

    # Whether what answers have in common is computed once, and whether log-probabilities at sampling are those of the
    # loss, as they are without dropout.
    _in_trees = _reuses = False
    # The newest answers with their log-probabilities, if they are known, and those by the untrained model.
    _sampled: Sampled | None = None
    _reference: Tensor
    # Where some answers to each prompt are drawn from, and how many of them.
    _untrained: UntrainedAnswers | None = None
    _untrained_each = 0
    # Whether tokens are compared with descriptions of the same beginning; and the last log-probabilities computed.
    _by_prefix = False
    _log_p: Tensor

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self._untrained is None:
            return self._own_answers(prompt_ids, *args, **kwargs)
        each, step = self.num_generations, self.state.global_step
        own = each - self._untrained_each
        asked = [prompt for place, prompt in enumerate(prompt_ids) if place % each < own]
        drawn, found = self._own_answers(asked, *args, **kwargs), []
        for place in range(len(prompt_ids) // each):
            found += drawn[place * own : (place + 1) * own]
            found += self._untrained.draw(prompt_ids[place * each], self._untrained_each, step, place)
        self._sampled = None
        return found

    def _own_answers(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
        if not self._in_trees:
            found: list[list[int]] = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            return found
        self.model.eval()
        with merged(self.model), torch.no_grad():
            self._sampled = sample(self.model, prompt_ids, self.args.max_completion_length, self.eos_token_ids)
        self.model.train()
        return self._sampled.answers

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        if self._by_prefix:
            prompts = _without_padding(found["prompt_ids"], found["prompt_mask"])
            answers = _without_padding(found["completion_ids"], found["completion_mask"])
            width = found["completion_ids"].shape[1]
            found["token_advantages"] = prefix_advantages(found["advantages"], prompts, answers, width)
        if self._untrained is not None:
            # What is logged is of the model's own answers.
            mask, ids = found["completion_mask"], found["completion_ids"]
            own = torch.arange(len(mask)) % self.num_generations < self.num_generations - self._untrained_each
            lengths = mask.sum(dim=1)[own].float()
            kl = (found["old_logps"] - (self._reference * mask).sum(dim=1))[own]
            last = ids.gather(1, mask.sum(dim=1, keepdim=True) - 1).squeeze(1)[own]
            ended = torch.isin(last, torch.tensor(self.eos_token_ids, device=last.device)).float()
            metrics = self._metrics["train"]
            metrics["completions/mean_length"][-1] = lengths.mean().item()
            metrics["completions/clipped_ratio"][-1] = 1 - ended.mean().item()
            metrics["kl"][-1] = (kl.mean() / lengths.mean()).item()
        return found

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        if not self._by_prefix:
            return loss
        # Each step samples anew, so this is the policy's gradient with an advantage for each token.
        ratios = (self._log_p - self._log_p.detach()).exp()
        return -(ratios * inputs["token_advantages"]).sum(dim=1).mean()

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Log-probabilities of tokens, and entropies; those of the trained model at sampling are known already."""
        if self._in_trees:
            found = self._in_tree(model, input_ids, attention_mask.bool(), logits_to_keep)
        else:
            found = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        if not _adapted(model):
            self._reference = found[0]
        self._log_p = found[0]
        return found

    def _in_tree(self, model: Any, input_ids: Tensor, kept: Tensor, logits_to_keep: int) -> Any:
        begin = input_ids.shape[1] - logits_to_keep
        answers = [row[keep].tolist() for row, keep in zip(input_ids[:, begin:], kept[:, begin:], strict=True)]
        drawn = self._sampled
        if self._reuses and drawn is not None and not torch.is_grad_enabled() and _adapted(model):
            assert answers == drawn.answers
            found = torch.zeros(len(answers), logits_to_keep)
            for row, each in enumerate(drawn.log_p):
                found[row, : len(each)] = torch.tensor(each)
            return found.to(input_ids.device), None, None
        prompts = [row[keep].tolist() for row, keep in zip(input_ids[:, :begin], kept[:, :begin], strict=True)]
        return *log_probabilities(model, prompts, answers, logits_to_keep), None


class _Grpo(_Quick, GRPOTrainer):
    """GRPO, silent and quick."""


def _without_padding(ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """The tokens of each row that the mask keeps."""
    return [tuple(row[keep].tolist()) for row, keep in zip(ids, mask.bool(), strict=True)]


def _adapted(model: Any) -> bool:
    """Whether the model's adapter is switched on."""
    return not any(layer.disable_adapters for layer in _layers(model))


def _layers(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Add the adapter to the weights within the block, and put the very same weights back afterwards.

    Sampling then takes one small product for each layer and token instead of three. Weights in 16 bits stay as they
    are: their sum would be rounded, and the samples would be another model's.
    """
    layers = [layer for layer in _layers(model) if layer.get_base_layer().weight.dtype == torch.float32]
    if model.device.type != "cpu" or not layers:
        yield
        return
    plain = [layer.get_base_layer().weight.data for layer in layers]
    for layer, weight in zip(layers, plain, strict=True):
        layer.get_base_layer().weight.data = weight.clone()
        layer.merge()
    try:
        yield
    finally:
        for layer, weight in zip(layers, plain, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = weight


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    rewards: Callable[..., list[float]],
    settings: TrainingSettings,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    untrained: UntrainedAnswers | None = None,
) -> Any:
    """TRL's trainer of a method, for a model on the device that it trains on; checkpoints go to `folder`.

    `rows` are all prompts with further columns; the trainer goes through them in the order of `prompts.ordered`.
    """
    on_cpu = model.device.type == "cpu"
    # All steps are one pass over the rows: a resumed trainer would begin a second pass in the order of the first.
    dataset = Dataset.from_list(ordered(rows, settings.steps * settings.prompts, settings.seed))
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.per_pass,
        "gradient_accumulation_steps": settings.batch // settings.per_pass,
        "num_generations": settings.generations,
        "max_completion_length": settings.tokens,
        "temperature": 1.0,
        "beta": settings.beta or _NO_PENALTY,
        "learning_rate": settings.lr,
        **schedule(settings),
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.clip,
        "seed": settings.seed,
        "shuffle_dataset": False,
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
        # The name since transformers 5.19; the one before warns.
        _CHECKPOINTING: False,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 1,
        # A callback asks for checkpoints, and deletes old ones.
        "save_strategy": "no",
    }
    adapter = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    kind: Any = _Rloo
    config: Any = None
    if settings.method == RLOO:
        config = RLOOConfig(**common)
    else:
        # Sums of token losses over a constant, so that reward and penalty keep their proportion.
        kind, config = _Grpo, GRPOConfig(**common, scale_rewards="none", loss_type="dr_grpo")
    # Others may be visible, but the model is on this one.
    config._n_gpu = min(config._n_gpu, 1)
    trainer = kind(
        model=model,
        reward_funcs=rewards,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=list(callbacks),
    )
    if settings.method == RLOO:
        trainer._untrained, trainer._untrained_each = untrained, settings.untrained
        trainer._reuses = settings.dropout == 0
        trainer._by_prefix = settings.baseline == PREFIX
        asked = tokenizer([row["prompt"] for row in rows])["input_ids"]
        trainer._in_trees = takes_trees(trainer.model, list(chain.from_iterable(asked)))
    trainer.remove_callback(PrinterCallback)
    # By this name PEFT would ask the hub, at each checkpoint, whether the vocabulary has changed.
    trainer.model.peft_config["default"].base_model_name_or_path = ""
    return trainer


def schedule(settings: TrainingSettings) -> dict[str, Any]:
    """A constant rate, or one that falls linearly to 0 at the end."""
    if not settings.decay:
        return {"lr_scheduler_type": "constant"}
    falling = {"num_decay_steps": round(settings.decay * settings.steps), "decay_type": "linear"}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": falling}
