"""What a batch holds, told by its dtype and axes or by the options."""

from __future__ import annotations

from torch import Tensor

from edgekit.errors import UserError, WorkloadError
from edgekit.pretrain.options import Modality, PretrainMethod, PretrainOptions

__all__ = ["time_axis_of", "told_modality"]

_AXES = {
    Modality.IMAGE: ((4,), "[batch, channels, height, width]"),
    Modality.AUDIO: ((2, 3), "[batch, time] or [batch, channels, time]"),
    Modality.SPECTROGRAM: ((3, 4), "[batch, bins, time] or [batch, channels, bins, time]"),
    Modality.SENSOR: ((3,), "[batch, channels, time]"),
    Modality.TOKENS: ((2,), "[batch, time]"),
}


def told_modality(x: Tensor, options: PretrainOptions) -> Modality:
    """What the batch `x` is: as the options say, or by dtype and axes; raises WorkloadError for what does not fit."""
    kind = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    modality = options.modality or _guessed(x, kind)
    axes, layout = _AXES[modality]
    if x.is_floating_point() == (modality is Modality.TOKENS):
        raise WorkloadError(
            f"a batch of {modality} data is {'integers' if modality is Modality.TOKENS else 'float'} {layout}; "
            f"this one is {kind}",
            hint="modality: tokens" if not x.is_floating_point() and x.ndim == 2 else "convert it in the data set",
        )
    if x.ndim not in axes:
        raise WorkloadError(f"a batch of {modality} data is {layout}; this one is {kind}")
    if modality is Modality.TOKENS and options.method is not PretrainMethod.MASKED:
        raise WorkloadError(
            f"{options.method} compares augmented views, and there are no augmentations for tokens ({kind})",
            hint="use method: masked",
        )
    return modality


def _guessed(x: Tensor, kind: str) -> Modality:
    if not x.is_floating_point():
        if x.ndim == 2:
            return Modality.TOKENS
        raise WorkloadError(
            f"a batch of {kind} is no image or signal: those are float", hint="convert it in the data set (x.float())"
        )
    guess = {4: Modality.IMAGE, 3: Modality.SENSOR}.get(x.ndim)
    if guess is None:
        raise WorkloadError(
            f"what a batch of {kind} holds cannot be told from its shape",
            hint=f"give modality: one of {', '.join(Modality)}",
        )
    return guess


def time_axis_of(x: Tensor, modality: Modality, options: PretrainOptions) -> int:
    """The axis of time of a batch: as the options say, else the longer one of sensor data, else the last."""
    if options.time_axis is not None:
        if not 1 <= options.time_axis < x.ndim:
            raise UserError(
                f"time_axis is {options.time_axis}; the batch has the axes 1 to {x.ndim - 1} besides its own"
            )
        return options.time_axis
    is_turned = modality in (Modality.SENSOR, Modality.AUDIO) and x.ndim == 3 and x.shape[1] > x.shape[2]
    return 1 if is_turned else x.ndim - 1
