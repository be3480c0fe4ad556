"""Small models of every kind for the tests of pretraining, and real digits for them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOCABULARY = 20


def convnet(classes: int = 10) -> nn.Module:
    """`[B, 1, 8, 8]`; the representation is 16 wide."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, classes),
    )  # fmt: skip


class PatchTransformer(nn.Module):
    """A vision transformer with a class token: `[B, 1, 8, 8]`, 16 patches of 2x2."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, 2)
        self.first = nn.Parameter(torch.zeros(1, 1, 16))
        self.places = nn.Parameter(0.1 * torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], dim=1) + self.places
        logits: Tensor = self.head(self.norm(self.encoder(tokens))[:, 0])
        return logits


class Recurrent(nn.Module):
    """A GRU over sensor data `[B, T, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 12, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(x)[0][:, -1])
        return logits


class TokenModel(nn.Module):
    """Tokens `[B, T]` int64, with position embeddings and a mean over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16, padding_idx=0)
        self.places = nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.places(torch.arange(tokens.shape[1]))
        logits: Tensor = self.head(self.encoder(self.embedding(tokens) + places).mean(dim=1))
        return logits


class TwoInputs(nn.Module):
    """An image `[B, 1, 8, 8]` and three facts `[B, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten())
        self.facts = nn.Linear(3, 4)
        self.head = nn.Linear(8 * 9 + 4, 10)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.image(image), self.facts(facts)], dim=1))
        return logits


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.images / 8.0 - 1, dtype=torch.float32)[:, None], torch.tensor(bunch.target)


def digits(start: int = 0, stop: int = 320) -> TensorDataset:
    """scikit-learn's 8x8 digits: `[N, 1, 8, 8]` in -1 to 1, classes 0 to 9."""
    images, targets = _digits()
    return TensorDataset(images[start:stop], targets[start:stop])


def sentences(count: int = 64) -> Tensor:
    """`[N, 12]`: runs of consecutive tokens from 1, so that a hidden one can be told from its neighbours; 0 pads."""
    start = torch.arange(count).unsqueeze(1) % 7 + 1
    tokens = start + torch.arange(12)
    tokens[::4, 9:] = 0
    return tokens


def motion(count: int = 64) -> Tensor:
    """`[N, 3, 48]`: sines of a frequency of each sample's own, a phase for each channel."""
    time = torch.linspace(0, 6.28, 48)
    frequency = 1 + torch.arange(count).reshape(-1, 1, 1) % 5
    return torch.sin(frequency * time + torch.tensor([0.0, 1.0, 2.0]).reshape(1, 3, 1))
