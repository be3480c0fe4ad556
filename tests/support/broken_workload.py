"""A small classifier, trained in a second, one layer of which no 8-bit range can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit import Workload

OUTLIER = 4000.0
"""How much larger one channel of `wide` is than the others: far more than the 255 steps of 8 bits."""


class Broken(nn.Module):
    """Four convolutions and a head; channel 0 of `wide` is scaled up, and scaled down again where it is read."""

    def __init__(self, outlier: float = OUTLIER) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.wide = nn.Conv2d(12, 12, 3, padding=1)
        self.reading = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)
        self.outlier = outlier

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.wide(x))
        x = torch.relu(self.reading(x))
        x = torch.relu(self.last(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _patterns(count: int, seed: int) -> TensorDataset:
    """Five noisy patterns of colour and stripe, each a class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 5, (count,), generator=generator)
    rows = torch.arange(12).float().reshape(1, 1, 12, 1)
    waves = torch.sin(rows * (targets.reshape(-1, 1, 1, 1) + 1) * 0.5)
    colours = torch.stack([torch.cos(targets + phase) for phase in (0.0, 2.0, 4.0)], 1).reshape(-1, 3, 1, 1)
    images = waves * colours + 0.4 * torch.randn(count, 3, 12, 12, generator=generator)
    return TensorDataset(images, targets)


def _trained(outlier: float) -> Broken:
    torch.manual_seed(0)
    model, data = Broken(outlier), _patterns(512, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, targets = data.tensors
    for step in range(160):
        part = torch.arange(64) + (step * 64) % 512
        loss = nn.functional.cross_entropy(model(images[part]), targets[part])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():  # the same function, its channel 0 far out of scale
        model.wide.weight[0] *= outlier
        model.wide.bias[0] *= outlier  # type: ignore[index]
        model.reading.weight[:, 0] /= outlier
    return model.eval()


def workload(outlier: float = OUTLIER) -> Workload:
    """The broken classifier with its data."""
    return Workload(
        name="broken",
        model=_trained(outlier),
        example_inputs=(torch.zeros(1, 3, 12, 12),),
        train=_patterns(512, 1),
        evaluation=_patterns(600, 2),
    )


def other_weights() -> Workload:
    """The same network with weights of its own."""
    torch.manual_seed(7)
    return Workload(
        name="other",
        model=Broken().eval(),
        example_inputs=(torch.zeros(1, 3, 12, 12),),
        train=_patterns(512, 1),
        evaluation=_patterns(600, 2),
    )
