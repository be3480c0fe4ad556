"""Pretraining as objectives of the one training loop: two views of a sample, or what was hidden of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.pretrain.augment import Augmentation, described
from edgekit.pretrain.heads import Reconstruction, predictor, projector, token_head
from edgekit.pretrain.losses import byol_loss, masked_l1, nt_xent, simsiam_loss
from edgekit.pretrain.masking import corrupted_tokens, hidden_patches
from edgekit.pretrain.options import Modality, PretrainMethod, PretrainOptions
from edgekit.pretrain.representation import Representation, pooled
from edgekit.schema import digest
from edgekit.training.objective import Batch, Objective, StepOutcome

__all__ = ["MaskedSignals", "MaskedTokens", "TwoViews", "require_finite", "signal_layout"]


def require_finite(batch: Batch) -> Tensor:
    """The first input; raises WorkloadError, naming the samples, where it holds NaN or infinity."""
    x = batch.inputs[0]
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = batch.indices[~torch.isfinite(x).flatten(1).all(dim=1).cpu()].tolist()
        raise WorkloadError(
            f"pretraining data: values that are not finite in {len(bad)} of {len(batch)} samples of a batch, such as "
            f"samples {', '.join(map(str, bad[:5]))}",
            hint="drop or repair those samples in the data set",
        )
    return x


class _Pretext(Objective):
    """An objective without labels whose `parts` are its head; `key` tells everything that the loss depends on."""

    def __init__(self, options: PretrainOptions, place: Representation, *extra: object) -> None:
        self.options = options
        self.place = place
        self._parts = nn.ModuleDict()
        self._key = digest(
            "pretrain", options.model_dump(mode="json"), str(place), place.channels_last, *map(str, extra)
        )

    @property
    def key(self) -> str:
        return self._key

    @property
    def needs_targets(self) -> bool:
        return False

    @property
    def parts(self) -> nn.Module:
        return self._parts

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError("pretraining looks inside the model: `step`")


class TwoViews(_Pretext):
    """SimCLR, SimSiam or BYOL: both views of a batch go through the model in one pass of 2B samples."""

    def __init__(
        self,
        model: nn.Module,
        place: Representation,
        width: int,
        augment: Augmentation,
        options: PretrainOptions,
        *,
        total_steps: int,
    ) -> None:
        super().__init__(options, place, described(augment))
        self.augment = augment
        self.total_steps = total_steps
        hidden, projection, method = options.hidden, options.projection, options.method
        parts = self._parts
        parts["projector"] = projector(width, hidden, projection, is_deep=method is PretrainMethod.SIMSIAM)
        if method is PretrainMethod.SIMSIAM:
            parts["predictor"] = predictor(projection, max(projection // 4, 1))
        elif method is PretrainMethod.BYOL:
            parts["predictor"] = predictor(projection, hidden)
            target = nn.ModuleDict({"model": copy.deepcopy(model), "projector": copy.deepcopy(parts["projector"])})
            parts["target"] = target.requires_grad_(False)
            parts.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        """The loss of two views of the first input; other inputs go with both as they are."""
        x = require_finite(batch)
        if len(x) < 2 and self._parts.training:
            raise WorkloadError(f"{self.options.method} needs two samples in a batch at least, and got {len(x)}")
        views = torch.cat([self.augment(x), self.augment(x)])
        inputs = (views, *(torch.cat([value, value]) for value in batch.inputs[1:]))
        projections = self._parts["projector"](pooled(self.place.read(model, inputs)))
        return StepOutcome(loss=self._loss(model, inputs, projections))

    def _loss(self, model: nn.Module, inputs: Sequence[Tensor], projections: Tensor) -> Tensor:
        first, second = projections.chunk(2)
        if self.options.method is PretrainMethod.SIMCLR:
            return nt_xent(first, second, temperature=self.options.temperature)
        one, other = self._parts["predictor"](projections).chunk(2)
        if self.options.method is PretrainMethod.SIMSIAM:
            return simsiam_loss((one, other), (first, second))
        target = self._followed_target(model)
        with torch.no_grad():
            seen = pooled(self.place.read(target["model"], inputs))
            slow, slower = target["projector"](seen).chunk(2)
        return byol_loss((one, other), (slow, slower))

    @torch.no_grad()
    def _followed_target(self, model: nn.Module) -> Any:
        """The target network, moved towards the online one once for each optimizer step before this one.

        xi <- tau xi + (1 - tau) theta with tau = 1 - (1 - tau_0) (cos(pi k / K) + 1) / 2 (Grill et al. 2020, eq. 1 and
        section 3.2). Done here and not after the step: a checkpoint between the two would lose it.
        """
        target: Any = self._parts["target"]
        if not self._parts.training:
            return target
        steps: Any = self._parts.get_buffer("steps")
        done = int(steps)
        if done:
            tau = 1 - (1 - self.options.target_momentum) * (math.cos(math.pi * (done - 1) / self.total_steps) + 1) / 2
            for slow, fast in (("model", model), ("projector", self._parts["projector"])):
                for mine, theirs in zip(target[slow].parameters(), fast.parameters(), strict=True):
                    mine.lerp_(theirs, 1 - tau)
        steps += 1
        return target


def signal_layout(x: Tensor, modality: Modality, time_axis: int) -> Tensor:
    """A view of `x` as `[B, C, *axes]`, the axes being those that are hidden: rows and columns, bins and time, time."""
    if modality in (Modality.IMAGE, Modality.SPECTROGRAM):
        return x if x.ndim == 4 else x.unsqueeze(1)
    return x.unsqueeze(1) if x.ndim == 2 else x.movedim(time_axis, -1)


class MaskedSignals(_Pretext):
    """Masked prediction of images, spectrograms, audio and sensor data (SimMIM, Xie et al. 2022).

    A learned value a channel stands for what is hidden, the model sees the whole, and the error counts where it was
    hidden.
    """

    def __init__(
        self,
        place: Representation,
        feature: Tensor,
        example: Tensor,
        modality: Modality,
        time_axis: int,
        options: PretrainOptions,
    ) -> None:
        super().__init__(options, place, modality, time_axis)
        self.modality, self.time_axis = modality, time_axis
        shape = tuple(signal_layout(example, modality, time_axis).shape[1:])
        is_flat = len(shape) == 2
        self.patch = options.patch or max(1, shape[1] // 16 if is_flat else min(shape[1:]) // 8)
        self.ratio = options.mask_ratio or (0.5 if is_flat else 0.6)
        self._parts["head"] = Reconstruction(feature.shape[1], tuple(feature.shape[2:]), shape, options.hidden)
        self._parts.register_parameter("hidden_value", nn.Parameter(torch.zeros(shape[0])))

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        """The L1 error of what was hidden."""
        true = signal_layout(require_finite(batch), self.modality, self.time_axis)
        hidden = hidden_patches(len(true), true.shape[2:], patch=self.patch, ratio=self.ratio).to(true.device)
        value = self._parts.get_parameter("hidden_value").reshape(-1, *[1] * (true.ndim - 2))
        seen = self._given_back(torch.where(hidden.unsqueeze(1), value.to(true.dtype), true), batch.inputs[0])
        feature = self.place.read(model, (seen, *batch.inputs[1:]))
        return StepOutcome(loss=masked_l1(self._parts["head"](feature), true, hidden))

    def _given_back(self, signal: Tensor, like: Tensor) -> Tensor:
        if signal.ndim != like.ndim:
            return signal.squeeze(1)
        is_moved = self.modality not in (Modality.IMAGE, Modality.SPECTROGRAM)
        return signal.movedim(-1, self.time_axis) if is_moved else signal


class MaskedTokens(_Pretext):
    """Masked prediction of tokens (BERT, Devlin et al. 2019): which token stood there, scored at those positions."""

    def __init__(
        self,
        place: Representation,
        width: int,
        embedding: str | None,
        vocabulary: int,
        options: PretrainOptions,
        *,
        pad_token: int | None,
        embedding_width: int = 0,
    ) -> None:
        super().__init__(options, place, embedding, vocabulary, pad_token)
        self.embedding, self.vocabulary, self.pad_token = embedding, vocabulary, pad_token
        self.ratio = options.mask_ratio or 0.15
        self._parts["head"] = token_head(width, options.hidden, vocabulary)
        if options.mask_token is None:
            self._parts.register_parameter("mask_vector", nn.Parameter(torch.zeros(embedding_width)))

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        """Mean cross-entropy over the tokens to predict."""
        tokens = batch.inputs[0]
        seen, chosen, masked = corrupted_tokens(
            tokens,
            vocabulary=self.vocabulary,
            ratio=self.ratio,
            mask_token=self.options.mask_token,
            pad_token=self.pad_token,
        )
        feature = self._read(model, (seen, *batch.inputs[1:]), masked)
        if feature.ndim != 3 or feature.shape[2] != tokens.shape[1]:
            raise WorkloadError(
                f"features '{self.place}' are {list(feature.shape)}; masked tokens need one for each of the "
                f"{tokens.shape[1]} positions",
                hint="name a submodule before the pooling (`features: encoder`)",
            )
        scores = self._parts["head"](feature.transpose(1, 2)[chosen])
        # A batch of nothing but padding has nothing to predict: a loss of 0 that still has a gradient.
        loss = F.cross_entropy(scores, tokens[chosen].long()) if len(scores) else feature.sum() * 0
        return StepOutcome(loss=loss)

    def _read(self, model: nn.Module, inputs: Sequence[Tensor], masked: Tensor) -> Tensor:
        if self.options.mask_token is not None or self.embedding is None:
            return self.place.read(model, inputs)
        vector = self._parts.get_parameter("mask_vector")

        def hide(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            if arguments and arguments[0].shape == masked.shape:
                return torch.where(masked.unsqueeze(-1), vector.to(output.dtype), output)
            return output

        handle = model.get_submodule(self.embedding).register_forward_hook(hide)
        try:
            return self.place.read(model, inputs)
        finally:
            handle.remove()
