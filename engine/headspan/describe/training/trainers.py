"""TRL's trainers, set up for descriptions: they print nothing, reach no network, and write checkpoints only.

Reward functions get the columns of the prompts' rows. With PEFT, the untrained model is the model with its adapter
switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from headspan.describe.training.prompts import ordered
from headspan.describe.training.settings import RLOO, TrainingSettings

# Without a penalty TRL does not run the untrained model, and the divergence would stay unknown. In float32, a reward
# less this times a divergence is the reward.
_NO_PENALTY = 1e-30
_CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {each.name for each in fields(RLOOConfig)}
)


class _Silent:
    """What TRL's trainers do beside training, left out."""

    def _send_telemetry(self) -> None:
        """Reach no network."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card beside checkpoints."""


class _Rloo(_Silent, RLOOTrainer):
    """RLOO, silent."""


class _Grpo(_Silent, GRPOTrainer):
    """GRPO, silent."""


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
        "beta": settings.beta or _NO_PENALTY,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "constant",
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
    trainer.remove_callback(PrinterCallback)
    # By this name PEFT would ask the hub, at each checkpoint, whether the vocabulary has changed.
    trainer.model.peft_config["default"].base_model_name_or_path = ""
    return trainer
