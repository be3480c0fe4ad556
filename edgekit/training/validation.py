"""What the held-out share of the training data says of each epoch, and the weights of the best one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from edgekit.errors import UserError

__all__ = ["BestWeights", "Judged", "Judgement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One epoch on the validation share."""

    loss: float
    """Mean over the samples."""
    accuracy: float | None
    """Top-1, 0 to 1; None where nothing has targets."""


@dataclass(slots=True)
class Judged:
    """The sums of the epoch being judged, and the latest judgement."""

    sums: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Loss, samples, right answers, samples with a target."""
    latest: Judgement | None = None

    def start(self) -> None:
        """Begin another epoch."""
        self.sums = (0.0, 0.0, 0.0, 0.0)

    def add(self, loss: float, samples: int, right: int, labelled: int) -> None:
        """Take in one batch; `loss` is the sum over its samples."""
        a, b, c, d = self.sums
        self.sums = (a + loss, b + samples, c + right, d + labelled)

    def finish(self, sums: tuple[float, ...]) -> Judgement:
        """The judgement of `sums` (over all devices)."""
        loss, samples, right, labelled = sums
        self.latest = Judgement(loss=loss / samples, accuracy=right / labelled if labelled else None)
        return self.latest

    def dump(self) -> list[float | None] | None:
        """For a checkpoint."""
        return None if self.latest is None else [self.latest.loss, self.latest.accuracy]

    def load(self, values: list[float | None] | None) -> None:
        """From a checkpoint."""
        self.latest = None if values is None else Judgement(loss=values[0] or 0.0, accuracy=values[1])


@dataclass(slots=True)
class BestWeights:
    """The weights of the best epoch so far; part of the checkpoint, so that both are of one moment."""

    monitor: Literal["loss", "accuracy"]
    epoch: int | None = None
    score: float | None = None
    judgement: Judgement | None = None
    state: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, judgement: Judgement, epoch: int, module: nn.Module) -> float:
        """Keep the weights of `module` if this epoch is the best so far; gives its score, which is better when less.

        Raises UserError where accuracy is asked for and nothing has targets.
        """
        if self.monitor == "accuracy" and judgement.accuracy is None:
            raise UserError(
                "monitor: accuracy: this training has no targets to judge by", hint="monitor: loss needs none"
            )
        score = -(judgement.accuracy or 0.0) if self.monitor == "accuracy" else judgement.loss
        if self.score is None or score < self.score:
            self.epoch, self.score, self.judgement = epoch, score, judgement
            self.state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        return score

    def dump(self) -> dict[str, Any]:
        """For a checkpoint."""
        judgement = None if self.judgement is None else [self.judgement.loss, self.judgement.accuracy]
        return {"epoch": self.epoch, "score": self.score, "judgement": judgement, "state": self.state}

    def load(self, values: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.epoch, self.score, self.state = values["epoch"], values["score"], values["state"]
        told = values["judgement"]
        self.judgement = None if told is None else Judgement(loss=told[0], accuracy=told[1])
