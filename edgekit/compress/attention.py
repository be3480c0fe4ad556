"""Attention heads as prunable units.

Modules that project queries, keys and values by linear layers of their own (transformers' way) lose heads as they are.
`nn.MultiheadAttention` packs its projections and cannot have fewer heads than its width says; it is first opened into
`OpenAttention`, which computes the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.compress.student import AttentionEdit

__all__ = ["OpenAttention", "head_count", "open_attention", "restore", "update_head_counts"]

_WIDTHS = ("all_head_size", "inner_dim", "attn_dim")
"""Attributes of attention modules that hold heads times head width."""


class OpenAttention(nn.Module):
    """Multi-head attention with its four projections as linear layers, called like `nn.MultiheadAttention`.

    The inner width is `num_heads * head_dim`, whatever the width outside.
    """

    # What nn.TransformerEncoderLayer asks for before it would take its fused path, which needs packed projections.
    in_proj_weight: Tensor | None = None
    in_proj_bias: Tensor | None = None
    _qkv_same_embed_dim = False

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        width = source.embed_dim
        self.embed_dim, self.num_heads, self.head_dim = width, source.num_heads, source.head_dim
        self.batch_first, self.dropout = source.batch_first, source.dropout
        has_bias = source.in_proj_bias is not None
        self.q_proj = nn.Linear(width, width, bias=has_bias)
        self.k_proj = nn.Linear(source.kdim or width, width, bias=has_bias)
        self.v_proj = nn.Linear(source.vdim or width, width, bias=has_bias)
        self.out_proj = nn.Linear(width, width, bias=source.out_proj.bias is not None)
        with torch.no_grad():
            for layer, weight in zip(self._inner(), _weights(source), strict=True):
                layer.weight.copy_(weight)
            if has_bias:
                for layer, bias in zip(self._inner(), source.in_proj_bias.chunk(3), strict=True):
                    layer.bias.copy_(bias)
            self.out_proj.load_state_dict(source.out_proj.state_dict())
        self.train(source.training)

    def _inner(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`[B, L, E]` where batch_first, else `[L, B, E]`, or `[L, E]` unbatched; the weights `[B, L, S]` if asked."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says what attn_mask is, and there is none")
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = key_padding_mask[None] if key_padding_mask is not None else None
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (self._split(layer(x)) for layer, x in zip(self._inner(), (query, key, value), strict=True))
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            mixed = F.dropout(weights, dropout, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not is_batched:
            return output[0], weights[0] if weights is not None else None
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one to add, broadcastable to `[B, heads, L, S]`."""
        mask: Tensor | None = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            if mask.dim() == 3:  # [B * heads, L, S], of the heads there were at first
                mask = mask.reshape(q.shape[0], -1, *mask.shape[1:])
                if mask.shape[1] != q.shape[1]:
                    raise ValueError(f"attn_mask is for {mask.shape[1]} heads; {q.shape[1]} are left after pruning")
        if padding is not None:
            added = _additive(padding, q.dtype)[:, None, None, :]
            mask = added if mask is None else mask + added
        return mask


def _weights(source: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    if source.in_proj_weight is not None:
        return tuple(source.in_proj_weight.chunk(3))
    return source.q_proj_weight, source.k_proj_weight, source.v_proj_weight


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


def open_attention(module: nn.Module, *, keep: frozenset[str] = frozenset()) -> tuple[nn.Module, list[AttentionEdit]]:
    """A copy of `module` with its `nn.MultiheadAttention`s opened, and the edits that say so; `keep` names those that
    stay. One with `bias_k` or `add_zero_attn` stays too."""
    edits = [
        AttentionEdit(module=name)
        for name, found in module.named_modules()
        if type(found) is nn.MultiheadAttention
        and name not in keep
        and found.bias_k is None
        and not found.add_zero_attn
    ]
    return (restore(module, edits, ()) if edits else copy.deepcopy(module)), edits


def restore(module: nn.Module, edits: Sequence[AttentionEdit], _example_inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of `module` with the attention modules of `edits` opened; raises ValueError for one that is not there."""
    module = copy.deepcopy(module)
    for edit in edits:
        found = dict(module.named_modules()).get(edit.module)
        if not isinstance(found, nn.MultiheadAttention):
            raise ValueError(f"'{edit.module}' is no nn.MultiheadAttention")
        module = _replaced(module, found, OpenAttention(found))
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False  # its fused path reads packed projections
    return module


def _replaced(module: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`module` with `new` wherever `old` was."""
    if module is old:
        return new
    for parent in module.modules():
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
    return module


def head_count(grad_fn: Any, batch: int) -> int | None:
    """The heads of the attention an autograd node computes, 0 where they cannot be told; None if it is none."""
    name = grad_fn.name() if hasattr(grad_fn, "name") else ""
    if "ScaledDotProduct" in name:
        shape = getattr(grad_fn, "_saved_query", torch.empty(0)).shape
        return int(shape[1]) if len(shape) == 4 else 0
    if "Bmm" in name:
        saved = getattr(grad_fn, "_saved_self", None)
        if saved is None:
            saved = getattr(grad_fn, "_saved_mat2", None)
        return saved.shape[0] // batch if saved is not None and saved.shape[0] % batch == 0 else 0
    return None


def update_head_counts(module: nn.Module, layer: str, *, before: int, after: int, width: int) -> None:
    """Correct what the modules around the projection `layer` say of their heads: `num_heads`, `all_head_size`, …"""
    places = layer.split(".")
    for depth in (1, 2):
        if len(places) < depth:
            return
        owner = module.get_submodule(".".join(places[:-depth]))
        for name, value in list(vars(owner).items()):
            if type(value) is not int:
                continue
            if "head" in name and "dim" not in name and "size" not in name and value == before:
                setattr(owner, name, after)
            elif name in _WIDTHS and value == before * width:
                setattr(owner, name, after * width)
