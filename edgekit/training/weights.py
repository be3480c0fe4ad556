"""Weights from .safetensors files, the one format that holds nothing but tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from edgekit.errors import MissingDependencyError, WorkloadError
from edgekit.schema import near_miss

__all__ = ["load_weights", "safetensors_function"]


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a .safetensors file into `module`, every tensor of both; raises WorkloadError saying what differs."""
    load_model = safetensors_function("load_model")
    if path.suffix != ".safetensors":
        raise WorkloadError(
            f"{path}: weights are read from .safetensors only; .pt and .pth files can run code when loaded",
            hint="safetensors.torch.save_model(model, 'weights.safetensors') writes one",
        )
    if not path.is_file():
        raise WorkloadError(f"{path}: no such weights file")
    from safetensors import SafetensorError

    try:
        missing, unexpected = load_model(module, str(path), strict=False)
    except (SafetensorError, OSError) as e:
        raise WorkloadError(f"{path}: not a readable .safetensors file ({e})") from e
    except RuntimeError as e:  # torch's shape mismatches, one a line after the first
        lines = [line.strip() for line in str(e).splitlines()]
        raise WorkloadError(f"{path}: {' '.join(lines[1:4]) or lines[0]}") from e
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected:
        raise WorkloadError(_keys_differ(module, path, missing, unexpected))


def _keys_differ(module: nn.Module, path: Path, missing: list[str], unexpected: list[str]) -> str:
    told = [f"{path}: not the weights of this model"]
    if missing:
        told.append(f"missing {', '.join(missing[:5])}" + (f" and {len(missing) - 5} more" if missing[5:] else ""))
    if unexpected:
        shown = ", ".join(unexpected[:5]) + (f" and {len(unexpected) - 5} more" if unexpected[5:] else "")
        told.append(f"unexpected {shown} ({near_miss(unexpected[0], list(module.state_dict())[:20])})")
    return "; ".join(told)


def safetensors_function(function: str) -> Any:
    """A function of `safetensors.torch`; raises MissingDependencyError where it is not installed."""
    try:
        import safetensors.torch
    except ImportError as e:
        raise MissingDependencyError("saving and loading weights", extra="train", package="safetensors") from e
    return getattr(safetensors.torch, function)
