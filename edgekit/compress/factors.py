"""Truncated SVD and Tucker-2 of a layer's weight, and the layers that compute with the factors.

A linear layer or 1x1 convolution of weight `[out, in]` becomes two of rank r (Eckart and Young 1936). A convolution
`[out, in, k, …]` becomes 1x1 to r_in, the kernel from r_in to r_out, 1x1 to out (Kim et al. 2016, eq. 3): Tucker
decomposition of the two channel modes, by HOSVD and a few rounds of higher-order orthogonal iteration
(De Lathauwer et al. 2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Spectrum", "factored", "is_pointwise", "spectrum", "why_not"]

ITERATIONS = 3
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def why_not(layer: nn.Module) -> str | None:
    """Why the layer cannot be factored; None where it can."""
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return "transposed convolutions are left as they are"
    if isinstance(layer, _CONVOLUTIONS):
        return None if layer.groups == 1 else f"it has {layer.groups} groups, which share no channels to factor"
    if type(layer) is nn.Linear:
        return None
    return f"{type(layer).__name__} computes with its weight in its own way"


def is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer is one matrix on the channels: its factors are two."""
    return isinstance(layer, nn.Linear) or all(k == 1 for k in getattr(layer, "kernel_size", ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Squared singular values of a weight's unfoldings, falling: one for a matrix, (input, output) for Tucker-2."""

    modes: tuple[Tensor, ...]

    def ranks(self, energy: float, round_to: int) -> tuple[int, ...]:
        """The least ranks whose singular values hold `energy` of the sum of squares in each mode, rounded up."""
        return tuple(_rank(values, energy, round_to) for values in self.modes)

    def energies(self) -> Tensor:
        """Every energy at which a rank changes, in [0, 1]."""
        return torch.cat([values.cumsum(0) / values.sum().clamp_min(1e-30) for values in self.modes])


def _rank(squares: Tensor, energy: float, round_to: int) -> int:
    held = squares.double().cumsum(0) / squares.double().sum().clamp_min(1e-30)
    # the sum's own rounding is no reason for one more rank
    count = int((held < energy - 1e-9).sum()) + 1
    return min(-(-count // round_to) * round_to, len(squares))


def spectrum(layer: nn.Module) -> Spectrum:
    """The squared singular values of the layer's weight, by mode."""
    weight: Any = layer.weight
    weight = weight.detach().double()
    if is_pointwise(layer):
        return Spectrum(modes=(torch.linalg.svdvals(weight.flatten(1)) ** 2,))
    return Spectrum(modes=tuple(torch.linalg.eigvalsh(_gram(weight, mode)).flip(0).clamp_min(0) for mode in (1, 0)))


def _gram(weight: Tensor, mode: int) -> Tensor:
    unfolded = weight.transpose(0, mode).flatten(1)
    return unfolded @ unfolded.T


def factored(layer: nn.Module, ranks: Sequence[int]) -> nn.Sequential:
    """The layers that compute with factors of `ranks`; raises ValueError for ranks that do not fit the layer."""
    if why_not(layer) is not None:
        raise ValueError(str(why_not(layer)))
    weight: Any = layer.weight
    limits = (min(weight.shape[:2]),) if is_pointwise(layer) else (weight.shape[1], weight.shape[0])
    if len(ranks) != len(limits) or any(not 1 <= r <= limit for r, limit in zip(ranks, limits, strict=False)):
        raise ValueError(f"ranks {tuple(ranks)} do not fit a layer that takes up to {limits}")
    made = _two(layer, ranks[0]) if is_pointwise(layer) else _three(layer, ranks[0], ranks[1])
    made.train(layer.training)
    for parameter in made.parameters():
        parameter.requires_grad_(weight.requires_grad)
    return made


def _two(layer: Any, rank: int) -> nn.Sequential:
    matrix = layer.weight.detach().double().flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()  # halves of the scale on either side: neither factor's gradients dwarf the other's
    first, second = root[:, None] * v[:rank], u[:, :rank] * root
    bias = layer.bias
    if isinstance(layer, nn.Linear):
        layers: tuple[Any, Any] = (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=bias is not None),
        )
    else:
        kind = type(layer)
        layers = (
            kind(layer.in_channels, rank, 1, layer.stride, layer.padding, bias=False, padding_mode=layer.padding_mode),
            kind(rank, layer.out_channels, 1, bias=bias is not None),
        )
    return _filled(layer, layers, (first, second))


def _three(layer: Any, rank_in: int, rank_out: int) -> nn.Sequential:
    weight = layer.weight.detach().double()
    into, out_of = _leading(_gram(weight, 1), rank_in), _leading(_gram(weight, 0), rank_out)
    for _ in range(ITERATIONS):
        into = _leading(_gram(torch.einsum("oi...,or->ri...", weight, out_of), 1), rank_in)
        out_of = _leading(_gram(torch.einsum("oi...,ir->or...", weight, into), 0), rank_out)
    core = torch.einsum("oi...,or,iq->rq...", weight, out_of, into)
    kind = type(layer)
    layers = (
        kind(layer.in_channels, rank_in, 1, bias=False),
        kind(
            rank_in,
            rank_out,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=False,
            padding_mode=layer.padding_mode,
        ),
        kind(rank_out, layer.out_channels, 1, bias=layer.bias is not None),
    )
    return _filled(layer, layers, (into.T, core, out_of))


def _leading(gram: Tensor, rank: int) -> Tensor:
    """The eigenvectors `[n, rank]` of the largest eigenvalues, signs fixed by their largest entry."""
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    signed: Tensor = vectors * torch.where(largest < 0, -1.0, 1.0)
    return signed


def _filled(layer: Any, layers: Sequence[Any], weights: Sequence[Tensor]) -> nn.Sequential:
    with torch.no_grad():
        for made, value in zip(layers, weights, strict=True):
            made.to(layer.weight.device, layer.weight.dtype)
            made.weight.copy_(value.reshape(made.weight.shape))
        if layer.bias is not None:
            layers[-1].bias.copy_(layer.bias)
    return nn.Sequential(*layers)
