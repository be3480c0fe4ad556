"""From a model file to its tapped form: which layers of the program can be looked at, and where the file has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact import Format, Scheme
from edgekit.converters.alignment import AlignedTensor, align, node_values
from edgekit.converters.host_runtimes import load_runtime
from edgekit.diagnosis.taps.values import TapOutput, TappedFile
from edgekit.diagnosis.wire import ProbeRequest, Tap
from edgekit.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Probed", "probe", "real_values"]

Samples = Sequence[tuple[np.ndarray, ...]]

ALIGNING_SAMPLES = 2
LOOSE_TOLERANCE = 0.3
"""For a tensor of a quantized file whose name the float file does not have: 10 dB, which a wrong one never reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A tapped file on disk and its taps, in the order of the program."""

    path: Path
    taps: tuple[Tap, ...]
    own_outputs: int


def probe(
    request: ProbeRequest, program: ExportedProgram, samples: Samples, calibration: Samples, folder: Path
) -> Probed:
    """The tapped form of the file. Raises UnsupportedError, ArtifactError, ConversionError."""
    if request.format is Format.EXECUTORCH:
        return _probe_program(request, program, calibration, folder)
    return _probe_file(request, program, samples[:ALIGNING_SAMPLES], folder)


def _tapping(kind: Format) -> ModuleType:
    if kind is Format.TFLITE:
        from edgekit.diagnosis.taps import tflite

        return tflite
    from edgekit.diagnosis.taps import onnx

    return onnx


def _probe_file(request: ProbeRequest, program: ExportedProgram, samples: Samples, folder: Path) -> Probed:
    """Of a file whose graph can be edited: aligned in the float file, found by name in this one."""
    tapping, suffix = _tapping(request.format), request.format.suffix
    float_path = Path(request.float_path or request.path)
    values = [node_values(program, sample) for sample in samples]
    every = tapping.open_all(float_path)
    aligned = align(program, samples, _run(every, request.format, folder / f"all{suffix}", samples), values=values)
    by_tensor = [*_given(program, tapping.input_names(float_path), values), *_first_of_each(aligned.values())]
    names = list(dict.fromkeys(name for a in by_tensor for name in (a.tensor, *a.others)))
    chosen = tapping.open_chosen(Path(request.path), names)
    found = _found(by_tensor, chosen)
    held = _run(chosen, request.format, folder / f"tapped{suffix}", samples)
    found = [(_carried_node(a, tap, program, held, values, found), tap) for a, tap in found]
    missing = _missing(program, by_tensor, found)
    if request.scheme not in (None, Scheme.FP32) and missing > len(by_tensor) // 4:
        chosen, found, held = _by_resemblance(request, program, values, samples, folder, tapping)
    if request.batch is not None:
        names = [tap.name for _, tap in found if held[0][tap.name].shape[:1] == (request.batch,)]
        chosen = tapping.open_chosen(Path(request.path), names)
        (folder / f"tapped{suffix}").write_bytes(chosen.content)
        again = {tap.name: tap for tap in chosen.taps}
        found = [(a, again[tap.name]) for a, tap in found if tap.name in again]
    return Probed(
        path=folder / f"tapped{suffix}",
        taps=tuple(_tap(a, tap) for a, tap in _ordered(program, found)),
        own_outputs=chosen.own_outputs,
    )


def _run(tapped: TappedFile, kind: Format, path: Path, samples: Samples) -> list[dict[str, np.ndarray]]:
    """What the taps hold on each sample, by name, in real numbers."""
    path.write_bytes(tapped.content)
    run = load_runtime(path, kind)
    held = []
    for sample in samples:
        outputs = run(sample)
        held.append({tap.name: _dequantized(outputs[tap.position], tap) for tap in tapped.taps})
    return held


def _dequantized(array: np.ndarray, tap: TapOutput | Tap) -> np.ndarray:
    if tap.quantization is None or not np.issubdtype(array.dtype, np.integer):
        return array
    (scale, *_), (point, *_) = tap.quantization.scale, tap.quantization.zero_point
    real: np.ndarray = (array.astype(np.float32) - point) * np.float32(scale)
    return real


def real_values(array: np.ndarray, tap: Tap) -> np.ndarray:
    """What a runtime gave for a tap, in PyTorch's axes and real numbers (float32)."""
    place = AlignedTensor(node=tap.node, tensor=tap.tensor, permutation=tap.permutation, shape=tap.shape, error=0.0)
    return np.ascontiguousarray(place.restored(_dequantized(array, tap)), dtype=np.float32)


def _first_of_each(aligned: Iterable[AlignedTensor]) -> list[AlignedTensor]:
    """One node for each tensor: the first, since those after it only pass its values on."""
    firsts: dict[str, AlignedTensor] = {}
    for item in aligned:
        firsts.setdefault(item.tensor, item)
    return list(firsts.values())


def _given(
    program: ExportedProgram, names: Sequence[str], values: Sequence[Mapping[str, np.ndarray]]
) -> list[AlignedTensor]:
    """The inputs: of a file that takes floats and quantizes them, what they become can be looked at."""
    return [
        AlignedTensor(
            node=str(node),
            tensor=name,
            permutation=tuple(range(values[0][node].ndim)),
            shape=values[0][node].shape,
            error=0.0,
        )
        for node, name in zip(program.graph_signature.user_inputs, names, strict=False)
        if node in values[0] and np.issubdtype(values[0][node].dtype, np.floating)
    ]


def _missing(
    program: ExportedProgram, by_tensor: Sequence[AlignedTensor], found: Sequence[tuple[AlignedTensor, TapOutput]]
) -> int:
    """How many aligned nodes the file does not show, neither themselves nor what they were fused into."""
    present = {item.node for item, _ in found}
    nodes = {node.name: node for node in program.graph.nodes}

    def is_shown(name: str) -> bool:
        node = nodes[name]
        while node.name not in present and len(node.users) == 1:
            node = next(iter(node.users))
        return node.name in present

    return sum(not is_shown(item.node) for item in by_tensor if nodes[item.node].op == "call_function")


def _found(by_tensor: Sequence[AlignedTensor], chosen: TappedFile) -> list[tuple[AlignedTensor, TapOutput]]:
    """Each aligned tensor with its tap in the chosen file, where that has it or a copy of it."""
    taps = {tap.name: tap for tap in chosen.taps}
    found, used = [], set()
    for item in by_tensor:
        # a copy may lie in another order of axes, so that only one of the very same name keeps the permutation
        if item.tensor in taps and taps[item.tensor].position not in used:
            used.add(taps[item.tensor].position)
            found.append((item, taps[item.tensor]))
    return found


def _carried_node(
    item: AlignedTensor,
    tap: TapOutput,
    program: ExportedProgram,
    held: Sequence[Mapping[str, np.ndarray]],
    values: Sequence[Mapping[str, np.ndarray]],
    found: Sequence[tuple[AlignedTensor, TapOutput]],
) -> AlignedTensor:
    """The node whose value the tensor holds now: a quantizer drops an activation that its range does anyway."""
    from dataclasses import replace

    present = {other.node for other, _ in found}
    nodes = {node.name: node for node in program.graph.nodes}
    best, node = item, nodes[item.node]
    reference, restored = values[0][item.node], item.restored(held[0][tap.name])
    least = _distance(reference, restored)
    while len(node.users) == 1:
        node = next(iter(node.users))
        reached = values[0].get(node.name)
        if node.name in present or reached is None or reached.shape != item.shape:
            break
        distance = _distance(reached, restored)
        if distance < least * 0.9:
            best, least = replace(item, node=node.name), distance
    return best


def _distance(reference: np.ndarray, values: np.ndarray) -> float:
    return float(np.linalg.norm(reference.astype(np.float64).reshape(-1) - values.astype(np.float64).reshape(-1)))


def _by_resemblance(
    request: ProbeRequest,
    program: ExportedProgram,
    values: Sequence[Mapping[str, np.ndarray]],
    samples: Samples,
    folder: Path,
    tapping: ModuleType,
) -> tuple[TappedFile, list[tuple[AlignedTensor, TapOutput]], list[dict[str, np.ndarray]]]:
    """As far as names have changed on the way: tensors of the quantized file that come near a node's value."""
    path = folder / f"tapped{request.format.suffix}"
    every = tapping.open_all(Path(request.path))
    held = _run(every, request.format, path, samples)
    aligned = align(program, samples, held, values=values, tolerance=LOOSE_TOLERANCE)
    found = _found(_first_of_each(aligned.values()), every)
    if not found:
        raise UnsupportedError((), hint=f"{request.path}: none of its tensors could be told to be a layer's")
    return every, found, held


def _ordered(
    program: ExportedProgram, found: Sequence[tuple[AlignedTensor, TapOutput]]
) -> list[tuple[AlignedTensor, TapOutput]]:
    """In graph order, one tap a node."""
    place = {node.name: index for index, node in enumerate(program.graph.nodes)}
    by_node = {item.node: (item, tap) for item, tap in reversed(found)}
    return sorted(by_node.values(), key=lambda pair: place[pair[0].node])


def _tap(item: AlignedTensor, tap: TapOutput) -> Tap:
    return Tap(
        node=item.node,
        tensor=item.tensor,
        position=tap.position,
        permutation=item.permutation,
        shape=item.shape,
        dtype=tap.dtype,
        quantization=tap.quantization,
    )


def _probe_program(request: ProbeRequest, program: ExportedProgram, calibration: Samples, folder: Path) -> Probed:
    """Of ExecuTorch: lowered again with taps, from the program the artifact was lowered from."""
    from edgekit.diagnosis.taps import executorch

    lowered_from = executorch.source_program(request, program, calibration, folder)
    wanted, taps = executorch.taps_of(program, lowered_from)
    nodes = {node.name: node for node in program.graph.nodes}
    if request.batch is not None:
        taps = [tap for tap in taps if tuple(nodes[tap.name].meta["val"].shape[:1]) == (request.batch,)]
    path = folder / f"tapped{request.format.suffix}"
    own = executorch.write_tapped(lowered_from, [wanted[tap.name] for tap in taps], path)
    placed = []
    for position, tap in enumerate(taps):
        shape = tuple(int(extent) for extent in nodes[tap.name].meta["val"].shape)
        placed.append(
            Tap(
                node=tap.name,
                tensor=wanted[tap.name],
                position=own + position,
                permutation=tuple(range(len(shape))),
                shape=shape,
                dtype=tap.dtype,
                quantization=tap.quantization,
            )
        )
    return Probed(path=path, taps=tuple(placed), own_outputs=own)
