"""The options of the `prune` and `low_rank` steps, as a recipe writes them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgekit.compress.options import TrainOptions
from edgekit.distill.options import DistillOptions
from edgekit.schema import Record

__all__ = ["TARGETS", "BetweenRounds", "LowRankOptions", "PruneOptions"]

Fraction = Annotated[float, Field(gt=0, le=1)]

TARGETS = {
    "macs_ratio": "of the MACs",
    "parameters_ratio": "of the parameters",
    "channels_ratio": "of the prunable channels",
    "latency_ratio": "of the latency",
}
"""What a pruning target is a share of, by option."""


class BetweenRounds(Record):
    """What trains the student between two rounds of pruning: one of the two."""

    distill: DistillOptions | None = None
    finetune: TrainOptions | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.distill is None) == (self.finetune is None):
            raise ValueError("give one of 'distill' and 'finetune', with its options ({} for the defaults)")
        return self


class PruneOptions(Record):
    """Structured channel pruning by dependency groups (Fang et al. 2023, DepGraph)."""

    importance: Literal["l1", "l2", "bn_scale", "taylor"] = "l2"
    """Norm of a channel's weights (Li et al. 2017), batch norm scale (Liu et al. 2017), or the squared first-order
    change of the loss when the channel goes (Molchanov et al. 2019, eq. 8), over batches of the training data."""
    ranking: Literal["uniform", "global"] = "uniform"
    """`uniform` takes the same share of every group; `global` takes the least important channels wherever they are."""
    macs_ratio: Fraction | None = None
    """MACs to keep, of those before pruning; 0.5 where no target is given."""
    parameters_ratio: Fraction | None = None
    channels_ratio: Fraction | None = None
    """Of the channels of all groups that can be pruned."""
    latency_ratio: Fraction | None = None
    """Of the latency a table of measured layers gives; see `compress.latency`."""
    latency_table: str | None = None
    """A file written by `LatencyTable.save`; None measures this host's ONNX Runtime, one thread."""
    exclude: tuple[str, ...] = ()
    """Modules that keep all their channels, by name or glob; the output layer always does."""
    round_to: Annotated[int, Field(ge=1)] = 8
    """Channel counts are multiples of this, which is what the int8 kernels like; attention loses whole heads."""
    samples: Annotated[int, Field(ge=1)] = 512
    """Training samples the Taylor importance is taken over, in batches of 32."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds of pruning, each by the same factor; a target is reached in the last."""
    between: BetweenRounds | None = None
    """Training after each round but the last."""

    @model_validator(mode="before")
    @classmethod
    def _default_target(cls, value: object) -> object:
        if isinstance(value, dict) and all(value.get(name) is None for name in TARGETS):
            return {**value, "macs_ratio": 0.5}
        return value

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one target, not {' and '.join(given)}")
        if self.latency_table is not None and self.latency_ratio is None:
            raise ValueError("latency_table is read for latency_ratio, which is not given")
        if self.between is not None and self.rounds == 1:
            raise ValueError("'between' trains between rounds, and rounds is 1; a step of its own trains afterwards")
        return self

    @property
    def target(self) -> tuple[str, float]:
        """(which of TARGETS, the share to keep)."""
        return next((name, getattr(self, name)) for name in TARGETS if getattr(self, name) is not None)


class LowRankOptions(Record):
    """Factors in place of weights: truncated SVD of linear layers and 1x1 convolutions, Tucker-2 of the others
    (Kim et al. 2016)."""

    energy: Fraction | None = None
    """Share of a layer's squared singular values that its factors keep; 0.9 where no budget is given."""
    parameters_ratio: Fraction | None = None
    """Parameters of the model to keep: ranks are then such that all factored layers keep the same energy."""
    macs_ratio: Fraction | None = None
    exclude: tuple[str, ...] = ()
    """Modules left as they are, by name or glob."""
    round_to: Annotated[int, Field(ge=1)] = 4
    """Ranks are multiples of this."""

    @model_validator(mode="before")
    @classmethod
    def _default_target(cls, value: object) -> object:
        if isinstance(value, dict) and all(
            value.get(name) is None for name in ("energy", "parameters_ratio", "macs_ratio")
        ):
            return {**value, "energy": 0.9}
        return value

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in ("energy", "parameters_ratio", "macs_ratio") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of energy, parameters_ratio and macs_ratio, not {' and '.join(given)}")
        return self
