"""A latency model made of measurements: what each layer costs in a runtime, at several widths.

    table = LatencyTable.measure(module, (torch.zeros(1, 3, 32, 32),))
    table.save(Path("latency.json"))
    student = prune(module, inputs, PruneOptions(latency_ratio=0.4), table=table)

Convolutions and linear layers are timed one by one as ONNX files in ONNX Runtime (one thread, this host) and read by
bilinear interpolation over their input and output channels; a convolution is timed with the ReLU that usually follows.
What else a model does is not in the table: the sum orders candidates and is compared with itself, it is no forecast of
a device's milliseconds. `edgekit.api.latency_tables.measure_latency_table` times the same files on a phone or board.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.compress.cost import count_macs, macs_by_module
from edgekit.errors import HostError, MissingDependencyError, Problem, UnsupportedError, UserError
from edgekit.schema import Record, read_record, write_atomically

if TYPE_CHECKING:
    from edgekit.compress.prune_options import PruneOptions

__all__ = ["LatencyTable", "LayerShape", "Timer", "host_timer", "layer_shapes", "table_for"]


FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of a layer's widths, at which it is timed."""
ROUNDS, WARM_UP = 15, 3
LEAST_COVERED = 0.8
"""A model of whose MACs the table's layers do less than this share has no latency target."""


class LayerShape(Record):
    """All that a layer's latency depends on; `family` leaves the two widths out."""

    op: Literal["conv", "linear"]
    inputs: int
    outputs: int
    size: tuple[int, ...]
    """Of the input, without channels: `(N, H, W)`; of a linear layer the rows `(N·…,)`."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    """0 where each channel is a group of its own."""

    @property
    def family(self) -> str:
        if self.op == "linear":
            return f"linear rows={self.size[0]}"
        return (
            f"conv in={list(self.size)} kernel={list(self.kernel)} stride={list(self.stride)} "
            f"padding={list(self.padding)} dilation={list(self.dilation)} groups={self.groups or 'depthwise'}"
        )

    def at(self, inputs: int, outputs: int) -> LayerShape:
        """The same layer at other widths."""
        return self.model_copy(update={"inputs": inputs, "outputs": outputs})


class Timing(Record):
    """One measured point of a family."""

    inputs: int
    outputs: int
    latency_ns: float


Timer = Callable[[Sequence[Path]], Sequence[float]]
"""ONNX files to the latency of each in ns."""


class LatencyTable(Record):
    """Measured layers by family."""

    schema_version: Literal[1] = 1
    runtime: str
    families: dict[str, tuple[Timing, ...]]

    @classmethod
    def measure(
        cls,
        module: nn.Module,
        example_inputs: Sequence[Tensor],
        *,
        timer: Timer | None = None,
        runtime: str | None = None,
    ) -> Self:
        """Time every kind of layer of `module` at a grid of widths up to its own; about a minute for a ResNet-18.

        Raises MissingDependencyError without onnx and onnxruntime.
        """
        grids: dict[str, dict[tuple[int, int], LayerShape]] = {}
        for shape in layer_shapes(module, example_inputs).values():
            points = {(p.inputs, p.outputs): p for p in _grid(shape)}
            grids.setdefault(shape.family, {}).update(points)
        shapes = [shape for points in grids.values() for shape in points.values()]
        with tempfile.TemporaryDirectory() as folder:
            files = [_written(shape, Path(folder) / f"{index}.onnx") for index, shape in enumerate(shapes)]
            times = (timer or host_timer)(files)
        found = dict(zip(((s.family, s.inputs, s.outputs) for s in shapes), times, strict=True))
        families = {
            family: tuple(Timing(inputs=i, outputs=o, latency_ns=found[family, i, o]) for i, o in sorted(points))
            for family, points in grids.items()
        }
        told = "onnxruntime on this host, 1 thread" if timer is None else "given"
        return cls(runtime=runtime or told, families=families)

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """The table in a file; raises UserError for one that is none."""
        try:
            return read_record(cls, path)
        except FileNotFoundError as e:
            raise UserError(f"{path}: no such latency table", hint="LatencyTable.measure(…).save makes one") from e
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: not a latency table: {e}") from e

    def total(self, module: nn.Module, example_inputs: Sequence[Tensor]) -> float:
        """The sum over the layers of `module`, in ns; raises UnsupportedError where they are too little of it, or a
        layer is not in the table."""
        return sum(self.by_module(module, example_inputs).values())

    def by_module(self, module: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, float]:
        """The latency of each layer in ns, by name."""
        shapes = layer_shapes(module, example_inputs)
        _check_covered(module, example_inputs, shapes)
        return {name: self.latency_ns(shape, name) for name, shape in shapes.items()}

    def latency_ns(self, shape: LayerShape, name: str = "layer") -> float:
        """Interpolated over the measured widths; beyond them the nearest counts."""
        points = self.families.get(shape.family)
        if points is None:
            problem = Problem(backend="pruning", message=f"the latency table has no {shape.family}", module=name)
            raise UnsupportedError((problem,), hint="measure the table on this model and these example inputs")
        if shape.groups == 0:
            return _linear([(p.outputs, p.latency_ns) for p in points], shape.outputs)
        return _bilinear(points, shape.inputs, shape.outputs)


def _bilinear(points: Sequence[Timing], inputs: int, outputs: int) -> float:
    """Along the outputs at each measured input width, then along the inputs."""
    rows: dict[int, list[tuple[int, float]]] = {}
    for point in points:
        rows.setdefault(point.inputs, []).append((point.outputs, point.latency_ns))
    return _linear([(width, _linear(row, outputs)) for width, row in rows.items()], inputs)


def _linear(points: Sequence[tuple[int, float]], at: int) -> float:
    ordered = sorted(points)
    return float(np.interp(at, [width for width, _ in ordered], [value for _, value in ordered]))


def _grid(shape: LayerShape) -> Iterable[LayerShape]:
    if shape.groups == 0:
        return [shape.at(width, width) for width in _widths(shape.outputs, 1)]
    pairs = itertools.product(_widths(shape.inputs, shape.groups), _widths(shape.outputs, shape.groups))
    return [shape.at(inputs, outputs) for inputs, outputs in pairs]


def _widths(full: int, multiple: int) -> list[int]:
    if full <= 4:
        return [full]
    return sorted({max(multiple, round(full * fraction / multiple) * multiple) for fraction in FRACTIONS})


def layer_shapes(module: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, LayerShape]:
    """The convolutions and linear layers that run on `example_inputs`, by name; one that runs twice counts once."""
    found: dict[str, LayerShape] = {}

    def hook(name: str) -> Any:
        def saw(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            found[name] = _shape_of(layer, inputs[0])

        return saw

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [m.register_forward_hook(hook(n)) for n, m in module.named_modules() if isinstance(m, kinds)]
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            module(*example_inputs)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return found


def _shape_of(layer: nn.Module, x: Tensor) -> LayerShape:
    if isinstance(layer, nn.Linear):
        rows = x.numel() // x.shape[-1]
        return LayerShape(op="linear", inputs=layer.in_features, outputs=layer.out_features, size=(rows,))
    assert isinstance(layer, nn.modules.conv._ConvNd)  # noqa: S101 - the only other kind that is hooked
    is_depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1
    return LayerShape(
        op="conv",
        inputs=layer.in_channels,
        outputs=layer.out_channels,
        size=(x.shape[0], *x.shape[2:]),
        kernel=tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        padding=_pads(layer),
        dilation=tuple(layer.dilation),
        groups=0 if is_depthwise else layer.groups,
    )


def _pads(layer: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    """As ONNX has them: all begins, then all ends."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return (0,) * (2 * len(layer.kernel_size))
        whole = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return (*(w // 2 for w in whole), *(w - w // 2 for w in whole))
    return tuple(layer.padding) * 2


def _check_covered(module: nn.Module, example_inputs: Sequence[Tensor], shapes: dict[str, LayerShape]) -> None:
    counts = macs_by_module(module, example_inputs)
    total = count_macs(module, example_inputs)
    covered = sum(count for name, count in counts.items() if name in shapes)
    if covered < LEAST_COVERED * total:
        most = max((n for n in counts if n not in shapes), key=lambda n: counts[n], default="")
        problem = Problem(
            backend="pruning",
            message=f"convolutions and linear layers do {covered / total:.0%} of the MACs, too little for a latency "
            "table made of them",
            module=most or None,
        )
        raise UnsupportedError((problem,), hint="use macs_ratio")


def _written(shape: LayerShape, path: Path) -> Path:
    """The layer as an ONNX file with random weights."""
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as e:
        raise MissingDependencyError("a latency table", extra="onnx", package="onnx") from e
    rng = np.random.default_rng(0)
    if shape.op == "linear":
        weight = rng.standard_normal((shape.inputs, shape.outputs)).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
        taken: tuple[int, ...] = (shape.size[0], shape.inputs)
    else:
        groups = shape.groups or shape.outputs
        weight = rng.standard_normal((shape.outputs, shape.inputs // groups, *shape.kernel)).astype(np.float32)
        attributes = {
            "kernel_shape": shape.kernel,
            "strides": shape.stride,
            "pads": shape.padding,
            "dilations": shape.dilation,
            "group": groups,
        }
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], **attributes), helper.make_node("Relu", ["c"], ["y"])]
        taken = (shape.size[0], shape.inputs, *shape.size[1:])
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.zeros(shape.outputs, np.float32), "b"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def host_timer(files: Sequence[Path]) -> list[float]:
    """The least of several runs of each file in ONNX Runtime on this host, one thread, in ns; taken in turns, so that
    what else the machine does hits all alike."""
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingDependencyError("a latency table", extra="onnx", package="onnxruntime") from e
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    ready = []
    for file in files:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        spec = session.get_inputs()[0]
        feed = {spec.name: np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)}
        for _ in range(WARM_UP):
            session.run(None, feed)
        ready.append((session, feed))
    best = [float("inf")] * len(ready)
    order, rng = list(range(len(ready))), random.Random(0)  # noqa: S311 - an order, not a secret
    for _ in range(ROUNDS):
        rng.shuffle(order)
        for index in order:
            session, feed = ready[index]
            session.run(None, feed)  # warm caches, whatever ran before
            began = time.perf_counter_ns()
            session.run(None, feed)
            best[index] = min(best[index], float(time.perf_counter_ns() - began))
    return best


def table_for(
    module: nn.Module, example_inputs: Sequence[Tensor], options: PruneOptions, work_dir: Path
) -> LatencyTable | None:
    """The table a prune step needs: none, a file's, or one measured now and kept in `work_dir` for a resumed run."""
    if options.latency_ratio is None:
        return None
    if options.latency_table is not None:
        return LatencyTable.load(Path(options.latency_table))
    path = work_dir / "latency.json"
    if path.is_file():
        return LatencyTable.load(path)
    table = LatencyTable.measure(module, example_inputs)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        table.save(path)
    except OSError as e:
        raise HostError(f"{path}: the latency table cannot be written: {e}") from e
    return table
