"""Int8 files by the backends' own APIs, as a script without edgekit makes them: what `edgekit convert` is measured by.

    python scripts/plain_routes.py --network resnet18 --backend onnx --route minmax --output model.onnx

Exports, lowers, calibrates, quantizes, writes the file, runs it on held-out images in its runtime and prints its SQNR
against PyTorch: the same work `edgekit convert` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Samples = Sequence[tuple[np.ndarray, ...]]
SUFFIX = {"onnx": ".onnx", "tflite": ".tflite", "executorch": ".pte"}


def onnx_route(method: str) -> Callable[[Any, Any, Samples, Path], None]:
    """onnxruntime's quantize_static on torch's export, per-channel QDQ, with one of its calibration methods."""

    def write(model: Any, example: Any, samples: Samples, path: Path) -> None:
        import torch
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            exported, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
            torch.onnx.export(model, example, exported, dynamo=True, external_data=False, verbose=False)
            quant_pre_process(str(exported), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(path),
                _Reader(samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=getattr(CalibrationMethod, method),
            )

    return write


class _Reader:
    """Samples for onnxruntime; rewound where a method asks for a second pass."""

    def __init__(self, samples: Samples) -> None:
        self._samples, self._next = samples, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self._next == len(self._samples):
            return None
        self._next += 1
        return {"x": self._samples[self._next - 1][0]}

    def rewind(self) -> None:
        self._next = 0


def tflite_route(rule: str) -> Callable[[Any, Any, Samples, Path], None]:
    """litert-torch and ai-edge-quantizer: its default moving average, or exact min/max through its calibrator."""

    def write(model: Any, example: Any, samples: Samples, path: Path) -> None:
        import litert_torch
        from ai_edge_quantizer import calibrator, quantizer, recipe
        from ai_edge_quantizer.utils import qsv_utils

        content = bytes(litert_torch.convert(model, example).model_content())
        worker = quantizer.Quantizer(content)
        worker.load_quantization_recipe(recipe.static_wi8_ai8())
        data = {"serving_default": [{"args_0": sample[0]} for sample in samples]}
        if rule == "default":
            ranges = worker.calibrate(data)
        else:
            observer = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
            observer.calibrate(data, worker._recipe_manager)
            ranges = observer.get_model_qsvs()
        path.write_bytes(bytes(worker.quantize(ranges).quantized_model))

    return write


def executorch_route(rule: str) -> Callable[[Any, Any, Samples, Path], None]:
    """PT2E with XNNPACKQuantizer, per channel: its default histogram observer, or min/max."""

    def write(model: Any, example: Any, samples: Samples, path: Path) -> None:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from executorch.exir import to_edge_transform_and_lower
        from torchao.quantization.pt2e import MinMaxObserver
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        config = get_symmetric_quantization_config(is_per_channel=True)
        if rule == "minmax":
            observer = MinMaxObserver.with_args(eps=2**-12)
            parts = {
                field: dataclasses.replace(getattr(config, field), observer_or_fake_quant_ctr=observer)
                for field in ("input_activation", "output_activation")
            }
            config = dataclasses.replace(config, **parts)
        prepared = prepare_pt2e(torch.export.export(model, example).module(), XNNPACKQuantizer().set_global(config))
        with torch.no_grad():
            for sample in samples:
                prepared(*(torch.from_numpy(array) for array in sample))
        program = torch.export.export(convert_pt2e(prepared), example)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)

    return write


ROUTES: dict[str, dict[str, Callable[[Any, Any, Samples, Path], None]]] = {
    "onnx": {rule: onnx_route(method) for rule, method in
             (("minmax", "MinMax"), ("percentile", "Percentile"), ("entropy", "Entropy"))},
    "tflite": {rule: tflite_route(rule) for rule in ("minmax", "default")},
    "executorch": {rule: executorch_route(rule) for rule in ("minmax", "default")},
}  # fmt: skip


def answers(path: Path, samples: Samples) -> np.ndarray:
    """The file's first output for each sample, by its runtime's own API; float in and out."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: sample[0]})[0] for sample in samples])
    if path.suffix == ".tflite":
        return _tflite_answers(path, samples)
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return np.concatenate([method.execute([torch.from_numpy(s[0])])[0].numpy().copy() for s in samples])


def _tflite_answers(path: Path, samples: Samples) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = []
    for (array,) in samples:
        scale, zero = taken["quantization"]
        value = np.clip(np.rint(array / scale) + zero, -128, 127).astype(np.int8) if scale else array
        interpreter.set_tensor(taken["index"], value)
        interpreter.invoke()
        output = interpreter.get_tensor(given["index"])
        scale, zero = given["quantization"]
        found.append((output.astype(np.float32) - zero) * scale if scale else output)
    return np.concatenate(found)


def sqnr(reference: np.ndarray, found: np.ndarray) -> float:
    """10·log10(Σ ref² / Σ (ref − found)²), dB."""
    noise = np.sum((reference - found.astype(np.float64)) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise))


def main() -> None:
    """One network, one route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", required=True)
    parser.add_argument("--backend", required=True, choices=list(ROUTES))
    parser.add_argument("--route", default="minmax")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--verification", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import bench_networks
    import torch

    torch.set_num_threads(1)
    images = bench_networks.load_images(arguments.data)
    model = bench_networks.trained(arguments.network, images)
    route = ROUTES[arguments.backend][arguments.route]
    route(model, (torch.zeros(1, 3, 32, 32),), images.samples(0, arguments.calibration), arguments.output)
    held_out = images.samples(0, arguments.verification, held_out=True)
    with torch.no_grad():
        reference = np.concatenate([model(torch.from_numpy(sample[0])).numpy() for sample in held_out])
    print(f"{sqnr(reference, answers(arguments.output, held_out)):.2f} dB")


if __name__ == "__main__":
    main()
