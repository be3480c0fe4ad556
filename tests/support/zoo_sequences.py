"""Networks over text, sound and time series, and ones with unusual inputs and outputs; random weights."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Crnn",
    "DecoderStep",
    "DsCnn",
    "GruNet",
    "HuggingFaceBert",
    "HuggingFaceVit",
    "LstmNet",
    "MultiInputOutput",
    "Tcn",
]


def _spread(module: nn.Module) -> None:
    """Weights as far from zero as trained ones are: transformers' 0.02 leaves every layer nearly linear."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.0 if "embedding" in name else parameter.shape[1] ** -0.5)


class HuggingFaceBert(nn.Module):
    """transformers' BERT with a classifier: int64 token ids and attention mask -> (logits, last hidden state)."""

    def __init__(self, vocabulary: int = 96, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=64,
        )
        self.bert = BertModel(config)
        self.head = nn.Linear(width, 3)
        _spread(self.bert)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return self.head(found.pooler_output), found.last_hidden_state


class HuggingFaceVit(nn.Module):
    """transformers' ViT classifier, wrapped to give the logits alone."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            image_size=32,
            patch_size=8,
            num_labels=10,
        )
        self.vit = ViTForImageClassification(config)
        _spread(self.vit)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.vit(pixel_values=pixel_values).logits


class DecoderStep(nn.Module):
    """One step of a GPT-type decoder.

    token `[N, 1]` int64, position `[1]` int64, keys and values `[layers, N, heads, context, width / heads]` float32
    -> logits `[N, vocabulary]` and the keys and values with this step's written at `position`.
    """

    def __init__(
        self, vocabulary: int = 64, width: int = 32, heads: int = 4, layers: int = 2, context: int = 16
    ) -> None:
        super().__init__()
        self.heads, self.layers, self.context = heads, layers, context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.tokens(token) + self.positions(position)
        places = torch.arange(self.context, device=token.device)
        here = (places == position).reshape(1, 1, -1, 1)
        mask = torch.where(places <= position, 0.0, -1e4).reshape(1, 1, 1, -1)
        new_keys, new_values = [], []
        for layer in range(self.layers):
            x, k, v = self._layer(layer, x, keys[layer], values[layer], here, mask)
            new_keys.append(k)
            new_values.append(v)
        logits = self.norm(x)[:, 0] @ self.tokens.weight.T
        return logits, torch.stack(new_keys), torch.stack(new_values)

    def _layer(
        self, layer: int, x: Tensor, keys: Tensor, values: Tensor, here: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, width = x.shape
        qkv = self.qkv[layer](self.norms[2 * layer](x)).reshape(batch, 1, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        keys, values = torch.where(here, k, keys), torch.where(here, v, values)
        weights = torch.softmax(q @ keys.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask, -1)
        x = x + self.out[layer]((weights @ values).transpose(1, 2).reshape(batch, 1, width))
        return x + self.mlp[layer](self.norms[2 * layer + 1](x)), keys, values


class DsCnn(nn.Module):
    """Depthwise-separable CNN for keyword spotting on `[N, 1, 49, 10]` MFCCs (Zhang et al. 2017)."""

    def __init__(self, width: int = 16, blocks: int = 2, classes: int = 12) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, width, (10, 4), stride=2, padding=(5, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(blocks):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            layers += [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(F.avg_pool2d(x, x.shape[-2:]).flatten(1))


class Crnn(nn.Module):
    """Convolutions over a spectrogram `[N, 1, mels, frames]`, then a bidirectional GRU over the frames."""

    def __init__(self, width: int = 8, hidden: int = 16, classes: int = 12, mels: int = 20) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.rnn = nn.GRU(width * (mels // 2), hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.rnn(frames)[0])


class LstmNet(nn.Module):
    """A two-layer LSTM over `[N, frames, features]`: every step's output and the last one's class."""

    def __init__(self, features: int = 8, hidden: int = 16, layers: int = 2, classes: int = 5) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps, _ = self.rnn(x)
        return self.head(steps[:, -1]), steps


class GruNet(nn.Module):
    """A GRU whose state goes in and comes out, as a streaming app runs it."""

    def __init__(self, features: int = 8, hidden: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.rnn = nn.GRU(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        steps, state = self.rnn(x, state)
        return self.head(steps), state


class Tcn(nn.Module):
    """Causal 1-D convolutions with growing dilation and ways around, on `[N, channels, time]`."""

    def __init__(self, channels: int = 4, width: int = 12, levels: int = 3, classes: int = 5) -> None:
        super().__init__()
        sizes = [channels] + [width] * levels
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inner, outer, 3, dilation=2**level)
            for level, (inner, outer) in enumerate(itertools.pairwise(sizes))
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(levels))
        self.head = nn.Conv1d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for level, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = torch.relu(norm(convolution(F.pad(x, (2 * 2**level, 0)))))
            x = y + x if level else y
        return self.head(x)


class MultiInputOutput(nn.Module):
    """An image, a vector and int64 labels in; a dict with a tuple inside it out, one output being integer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.vector = nn.Linear(6, width)
        self.label = nn.Embedding(7, width)
        self.mix = nn.Linear(6 * width, 2 * width)
        self.boxes, self.scores = nn.Linear(2 * width, 4), nn.Linear(2 * width, 3)

    def forward(self, image: Tensor, vector: Tensor, label: Tensor) -> dict[str, Any]:
        parts = [self.image(image).flatten(1), torch.tanh(self.vector(vector)), self.label(label)]
        mixed = torch.relu(self.mix(torch.cat(parts, 1)))
        scores = self.scores(mixed)
        return {"scores": scores, "pair": (torch.sigmoid(self.boxes(mixed)), mixed), "best": scores.argmax(1)}
