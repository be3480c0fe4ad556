"""A small real workload for tests: scikit-learn's 8x8 digits and a CNN that trains in a second."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import edgekit


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def workload(limit: int = 1797, classes: int = 10) -> edgekit.Workload:
    digits = load_digits()
    images = torch.tensor(digits.images[:limit] / 16.0, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target[:limit], dtype=torch.long)
    cut = len(images) * 4 // 5
    return edgekit.Workload(
        name="digits",
        model=build_model,
        example_inputs=(torch.zeros(1, 1, 8, 8),),
        train=TensorDataset(images[:cut], labels[:cut]),
        evaluation=TensorDataset(images[cut:], labels[cut:]),
        classes=tuple(str(n) for n in range(classes)),
        data_name="digits",
        data_source="scikit-learn load_digits",
        input_layouts=("NCHW",),
    )
