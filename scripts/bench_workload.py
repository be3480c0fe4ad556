"""The benchmark's networks as a workload for `edgekit convert scripts/bench_workload.py:workload --param network=…`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_networks
import torch
from torch.utils.data import TensorDataset

from edgekit.workload import Workload


def workload(network: str = "resnet18", data: str = "") -> Workload:
    """A trained network with its images; `data` as `bench_networks --data`."""
    images = bench_networks.load_images(Path(data) if data else None)
    train, test = (
        TensorDataset(torch.from_numpy(pixels), torch.from_numpy(labels))
        for pixels, labels in ((images.train, images.train_labels), (images.test, images.test_labels))
    )
    return Workload(
        name=network,
        model=bench_networks.trained(network, images),
        example_inputs=(torch.zeros(1, 3, 32, 32),),
        train=train,
        evaluation=test,
        classes=tuple("0123456789"),
        data_name=images.name,
        input_layouts=("NCHW",),
    )
