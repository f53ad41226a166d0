"""TRL's trainers, set up for descriptions: they print nothing, reach no network, and write checkpoints only.

Reward functions get the columns of the prompts' rows. With PEFT, the untrained model is the model with its adapter
switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
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
from headspan.describe.training.prompts import ordered
from headspan.describe.training.settings import FALLING, RLOO, TrainingSettings

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
    state: Any
    # The penalty by step, and the rate of LoRA's first matrices as a share of the others'.
    _penalty: Callable[[int], float]
    _first_rate: float

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        self.beta = self._penalty(self.state.global_step)
        return super()._generate_and_score_completions(*args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """AdamW, with a rate of its own for the first matrices of LoRA."""
        optimiser = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        first = {id(each) for name, each in self.model.named_parameters() if "lora_A" in name}
        groups = []
        for group in optimiser.param_groups:
            for share, is_first in ((1.0, False), (self._first_rate, True)):
                if some := [each for each in group["params"] if (id(each) in first) == is_first]:
                    groups.append({**group, "params": some, "lr": share * group["lr"]})
        optimiser.param_groups[:] = groups
        return optimiser

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
    # The newest answers with their log-probabilities.
    _sampled: Sampled | None = None

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._in_trees:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.model.eval()
        with merged(self.model), torch.no_grad():
            self._sampled = sample(self.model, prompt_ids, self.args.max_completion_length, self.eos_token_ids)
        self.model.train()
        return self._sampled.answers

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Log-probabilities of tokens, and entropies; those of the trained model at sampling are known already."""
        if not self._in_trees:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        kept = attention_mask.bool()
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
        "beta": penalty(settings, 0),
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
    trainer._penalty, trainer._first_rate = partial(penalty, settings), settings.first_rate
    if settings.method == RLOO:
        trainer._reuses = settings.dropout == 0
        asked = tokenizer([row["prompt"] for row in rows])["input_ids"]
        trainer._in_trees = takes_trees(trainer.model, list(chain.from_iterable(asked)))
    trainer.remove_callback(PrinterCallback)
    # By this name PEFT would ask the hub, at each checkpoint, whether the vocabulary has changed.
    trainer.model.peft_config["default"].base_model_name_or_path = ""
    return trainer


def penalty(settings: TrainingSettings, step: int) -> float:
    """The penalty of a step, counted from 0: it falls from `first_beta` to `beta` by the same factor in each step."""
    if settings.first_beta is None:
        return settings.beta or _NO_PENALTY
    left = max(0.0, 1 - step / (FALLING * settings.steps))
    return settings.beta * float((settings.first_beta / settings.beta) ** left)


def schedule(settings: TrainingSettings) -> dict[str, Any]:
    """A constant rate, or one that falls linearly to 0 at the end."""
    if not settings.decay:
        return {"lr_scheduler_type": "constant"}
    falling = {"num_decay_steps": round(settings.decay * settings.steps), "decay_type": "linear"}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": falling}
