"""Where a training run computes and in what precision; what the machine cannot do is refused before it begins."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from edgekit.errors import UserError

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions

__all__ = ["Hardware", "choose_hardware"]

_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a run uses: `kind` is never `auto`."""

    kind: Literal["cpu", "gpu", "mps"]
    devices: int
    precision: str

    def trainer_arguments(self) -> dict[str, Any]:
        """For Lightning's Trainer; more than one device needs `processes.forked_ddp` besides."""
        return {
            "accelerator": "cuda" if self.kind == "gpu" else self.kind,
            "devices": self.devices,
            "precision": _LIGHTNING_PRECISION[self.precision],
        }

    @property
    def backend(self) -> str:
        """torch.distributed's."""
        return "nccl" if self.kind == "gpu" else "gloo"


def choose_hardware(options: TrainOptions) -> Hardware:
    """The hardware that `options` ask for; raises UserError saying what this machine lacks."""
    kind = _kind(options.accelerator)
    _check_devices(kind, options)
    _check_precision(kind, options.precision)
    return Hardware(kind=kind, devices=options.devices, precision=options.precision)


def _kind(wanted: str) -> Literal["cpu", "gpu", "mps"]:
    has_gpu, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "gpu":
        if not has_gpu:
            raise UserError(
                f"accelerator: gpu: torch {torch.__version__} sees no CUDA or ROCm device on this machine",
                hint="accelerator: auto takes what there is; a +cpu build of torch never sees a GPU",
            )
        return "gpu"
    if wanted == "mps":
        if not has_mps:
            raise UserError(
                "accelerator: mps: torch sees no Apple GPU on this machine",
                hint="accelerator: auto takes what there is",
            )
        return "mps"
    if wanted == "auto" and (has_gpu or has_mps):
        return "gpu" if has_gpu else "mps"
    return "cpu"


def _check_devices(kind: str, options: TrainOptions) -> None:
    count = options.devices
    if count == 1:
        return
    if kind == "mps":
        raise UserError(f"devices: {count}: an Apple GPU is one device")
    if kind == "gpu" and count > torch.cuda.device_count():
        raise UserError(f"devices: {count}, but torch sees {torch.cuda.device_count()} GPUs")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError(f"devices: {count}: training in several processes forks, which this system cannot")
    if kind == "gpu" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UserError(
            f"devices: {count}: this process has used a GPU already, so it cannot fork for others to use them",
            hint="move no tensor to a GPU before training (in the workload, say), or give devices: 1",
        )
    if options.batch_size % count:
        raise UserError(
            f"a batch of {options.batch_size} cannot be shared equally by {count} devices",
            hint=f"batch_size: {max(1, options.batch_size // count) * count} can",
        )


def _check_precision(kind: str, precision: str) -> None:
    if precision == "fp16" and kind == "cpu":
        raise UserError(
            "precision: fp16 is for GPUs; on the CPU torch's mixed precision is bf16",
            hint="precision: bf16, or fp32",
        )
    if precision == "bf16" and kind == "gpu" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"precision: bf16: {torch.cuda.get_device_name()} has no bfloat16 arithmetic", hint="precision: fp16"
        )
