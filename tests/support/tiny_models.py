"""One tiny network as a .tflite, .onnx and .pte file, made by the toolchains themselves, and its PyTorch outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, Format, Passport, Scheme, TensorSpec
from edgekit.benchmarks.inputs import InputSet
from edgekit.schema import sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModels:
    """The artifacts by format, 40 inputs, and what PyTorch gives for them."""

    artifacts: dict[Format, Artifact]
    inputs: InputSet
    reference: np.ndarray


def make_tiny_models(folder: Path) -> TinyModels:
    """A convolution, ReLU and a linear layer on `[1, 1, 8, 8]`, seeded, in every format."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    ).eval()
    example = (torch.randn(1, 1, 8, 8),)
    data = np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        reference = model(torch.from_numpy(data)).numpy()
    paths = {f: folder / f"tiny{f.suffix}" for f in Format}
    _write_pte(model, example, paths[Format.EXECUTORCH])
    torch.onnx.export(model, example, paths[Format.ONNX], dynamo=True, external_data=False, verbose=False)
    import litert_torch

    litert_torch.convert(model, example).export(str(paths[Format.TFLITE]))
    return TinyModels(
        artifacts={f: _artifact(p, f) for f, p in paths.items()}, inputs=InputSet(arrays=(data,)), reference=reference
    )


def _write_pte(model: Any, example: Any, path: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(torch.export.export(model, example), partitioner=[XnnpackPartitioner()])
    path.write_bytes(program.to_executorch().buffer)


def _artifact(path: Path, format: Format) -> Artifact:
    passport = Passport(
        name=path.name,
        format=format,
        scheme=Scheme.FP32,
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        inputs=(TensorSpec(name="x", shape=(1, 1, 8, 8), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(1, 5), dtype="float32"),),
        ops=(),
    )
    return Artifact(path=path, passport=passport)
