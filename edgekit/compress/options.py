"""The options of the training and compression steps, as a recipe writes them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgekit.schema import Record

__all__ = ["Fraction", "TrainOptions"]

Fraction = Annotated[float, Field(gt=0, le=1)]


class TrainOptions(Record):
    """One training run: by default AdamW (Loshchilov and Hutter 2019), one-cycle learning rate (Smith and Topin 2018).

    What cannot change the weights (`logger`, `workers`) is not part of what a stage is keyed by.
    """

    epochs: Annotated[int, Field(ge=1)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Samples a step, over all devices together."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """The highest of the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd."""
    nesterov: bool = False
    """Of sgd (Sutskever et al. 2013)."""
    schedule: Literal["one_cycle", "cosine", "constant", "step"] = "one_cycle"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Linear rise from 0; for one_cycle the length of its rise (0: 30 % of the run, its own default)."""
    step_epochs: Annotated[int, Field(ge=1)] | None = None
    """schedule: step multiplies the rate by `step_factor` every so many epochs; None: three times in the run."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    """The largest norm of all gradients together (Pascanu et al. 2013)."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training data held out (seeded) to choose the best epoch's weights by; never evaluation data."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better one on the validation share."""
    monitor: Literal["loss", "accuracy"] = "loss"
    """What is better on the validation share."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 are mixed: weights stay fp32 (Micikevicius et al. 2018)."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    """Processes, one a device, whose gradients are averaged (DDP, Li et al. 2020)."""
    workers: Annotated[int, Field(ge=0)] = Field(default=0, exclude=True)
    """Processes that fetch items, for a data set that is slow to read; they do not change what is read."""
    logger: Literal["tensorboard", "csv", "wandb", "none"] = Field(default="tensorboard", exclude=True)
    threads: Annotated[int, Field(ge=1)] | None = None
    """torch's intra-op threads; None leaves torch's own choice."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer: sgd and a momentum above 0")
        if self.patience is not None and self.validation == 0:
            raise ValueError("patience needs a validation share to judge by, such as validation: 0.1")
        if 0 < self.warmup_epochs >= self.epochs:  # some steps take no epochs
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs; it must be less")
        if self.step_epochs is not None and self.schedule != "step":
            raise ValueError("step_epochs needs schedule: step")
        return self
