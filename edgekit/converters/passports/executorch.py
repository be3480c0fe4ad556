"""Facts of a `.pte` file: ops, delegates, tensors, and inside an XNNPACK delegate its own graph.

Read with the flatc and the schemas in executorch's wheel, without importing executorch (and with it torch), which
takes seconds. Only ever called in a child process.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from edgekit.artifact import Delegate, TensorSpec
from edgekit.converters.passports.facts import BOUNDARY, HYBRID, FileFacts, Node, count_ops, unquantized
from edgekit.errors import ArtifactError, MissingDependencyError

__all__ = ["read_executorch"]

_XNNPACK = "XnnpackBackend"
_INTEGERS = {
    "qint8": "int8",
    "quint8": "uint8",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int32": "int32",
}
_DYNAMIC = ("qdint8", "qpint8")
_PER_CHANNEL = ("qcint8", "qcint4", "qbint4")
_REASON = "it computes in float in the file: the quantizer did not annotate this op"
_FLATC_SECONDS = 60
_XNN_HEADER_BYTES = 30
_PROGRAM_HEADER_BYTES = 8
_SCALARS = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "HALF": "float16",
    "BFLOAT16": "bfloat16",
    "BOOL": "bool",
    "LONG": "int64",
    "INT": "int32",
    "SHORT": "int16",
    "CHAR": "int8",
    "BYTE": "uint8",
}
OLDEST_RUNTIME = "1.4.0"
"""executorch-numpy-runtime 1.4.0 runs the XNNPACK-only files that executorch 1.5.1 writes (measured)."""


def read_executorch(path: Path) -> FileFacts:
    """What the file says. Raises ArtifactError when it is no sound `.pte`."""
    root = _executorch_folder()
    data = path.read_bytes()
    if len(data) < _PROGRAM_HEADER_BYTES or data[4:6] != b"ET":
        raise ArtifactError(f"{path}: not an ExecuTorch program (no ET mark)")
    program_size, base = _layout(path, data)
    try:
        program = _as_json(data[:program_size], root / "schema", "program.fbs", root)
        return _facts(path, program, data[base:], root)
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as e:
        raise ArtifactError(
            f"{path}: corrupt or truncated .pte file: {type(e).__name__}: {str(e)[:200]}", hint="convert it again"
        ) from e


def _executorch_folder() -> Path:
    """Where executorch is installed; found without importing it, which would take seconds for torch."""
    spec = importlib.util.find_spec("executorch")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec is not None else None
    if folder is None:
        raise MissingDependencyError("reading .pte files", extra="executorch", package="executorch")
    return Path(folder)


def _layout(path: Path, data: bytes) -> tuple[int, int]:
    """(size of the program, where its segments begin), from the extended header; checked against the file's length."""
    if data[8:12] != b"eh00":
        return len(data), len(data)
    header_size = int.from_bytes(data[12:16], "little")
    program_size, base = (int.from_bytes(data[at : at + 8], "little") for at in (16, 24))
    segments = int.from_bytes(data[32:40], "little") if header_size >= 32 else 0
    expected = max(program_size, base + segments if base else 0)
    if expected > len(data):
        raise ArtifactError(f"{path}: truncated .pte file: {len(data)} of {expected} bytes", hint="copy it again")
    return program_size, base


def _facts(path: Path, program: dict[str, Any], segments: bytes, root: Path) -> FileFacts:
    plans = program["execution_plan"]
    plan = next((p for p in plans if p["name"] == "forward"), plans[0])
    graphs = [
        _xnnpack_graph(path, _payload(program, delegate, segments), root)
        for delegate in plan["delegates"]
        if delegate["id"] == _XNNPACK
    ]
    inside = [node for graph in graphs for node in _delegate_nodes(graph)]
    outside = _kernel_nodes(plan)
    total = len(inside) + len(outside)
    names = sorted({str(delegate["id"]) for delegate in plan["delegates"]})
    foreign = tuple(f"delegate {n}: its payload is opaque, its ops are not counted" for n in names if n != _XNNPACK)
    values = plan["values"]
    return FileFacts(
        inputs=tuple(_spec(values[i], f"input_{n}") for n, i in enumerate(plan["inputs"])),
        outputs=tuple(_spec(values[i], f"output_{n}") for n, i in enumerate(plan["outputs"])),
        ops=count_ops([*inside, *outside]),
        float_ops=unquantized([*inside, *outside], _REASON),
        delegates=tuple(Delegate(name=n, nodes=len(inside) if n == _XNNPACK else 0, total=total) for n in names),
        per_channel_weights=sum(_per_channel_weights(graph) for graph in graphs),
        minimum_runtime={"executorch": OLDEST_RUNTIME} if names == [_XNNPACK] and not outside else {},
        warnings=foreign + (() if names else ("no delegate: every op runs in executorch's portable kernels",)),
    )


def _spec(value: dict[str, Any], name: str) -> TensorSpec:
    if value["val_type"] != "Tensor":
        return TensorSpec(name=name, shape=(), dtype=str(value["val_type"]).lower())
    tensor = value["val"]
    return TensorSpec(name=name, shape=tuple(int(n) for n in tensor.get("sizes", ())), dtype=_scalar(tensor))


def _scalar(tensor: dict[str, Any]) -> str:
    name = str(tensor["scalar_type"])
    return _SCALARS.get(name, name.lower())


def _kernel_nodes(plan: dict[str, Any]) -> list[Node]:
    """The ops that run outside every delegate, with the type of their last tensor argument (the out tensor)."""
    nodes = []
    for chain in plan["chains"]:
        for index, instruction in enumerate(chain.get("instructions", ())):
            if instruction["instr_args_type"] != "KernelCall":
                continue
            call = instruction["instr_args"]
            operator = plan["operators"][call["op_index"]]
            op = ".".join(part for part in (operator["name"], operator.get("overload")) if part)
            arguments = [plan["values"][i] for i in call["args"]]
            tensors = [value["val"] for value in arguments if value["val_type"] == "Tensor"]
            is_boundary = "quantize_per" in op or "choose_qparams" in op
            dtype = BOUNDARY if is_boundary else _scalar(tensors[-1]) if tensors else "none"
            nodes.append(Node(op, dtype, f"{plan['name']} instruction {index}", is_delegated=False))
    return nodes


def _payload(program: dict[str, Any], delegate: dict[str, Any], segments: bytes) -> bytes:
    """The bytes of a delegate: in a segment after the program, or inside it."""
    processed = delegate["processed"]
    if processed["location"] == "INLINE":
        return bytes(program["backend_delegate_data"][processed["index"]]["data"])
    segment = program["segments"][processed["index"]]
    start, size = int(segment["offset"]), int(segment["size"])
    if start + size > len(segments):
        raise ValueError(f"a segment reaches to {start + size} of {len(segments)} bytes")
    return segments[start : start + size]


def _xnnpack_graph(path: Path, payload: bytes, root: Path) -> dict[str, Any]:
    """The XNNGraph inside a delegate's payload, as flatc prints it."""
    if payload[4:8] != b"XH00" or len(payload) < _XNN_HEADER_BYTES:
        raise ArtifactError(f"{path}: the XNNPACK delegate's payload has no XH00 header")
    start, size = int.from_bytes(payload[10:14], "little"), int.from_bytes(payload[14:18], "little")
    if start + size > len(payload):
        raise ArtifactError(f"{path}: the XNNPACK delegate's graph reaches beyond its payload")
    schema = root / "backends" / "xnnpack" / "serialization"
    graph = _as_json(payload[start : start + size], schema, "schema.fbs", root)
    if not isinstance(graph.get("xnodes"), list):
        raise ArtifactError(f"{path}: the XNNPACK delegate's graph has no nodes")
    return graph


def _as_json(flatbuffer: bytes, schema_folder: Path, schema: str, root: Path) -> dict[str, Any]:
    """A flatbuffer as executorch's own flatc prints it, defaults included."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "value.bin"
        binary.write_bytes(flatbuffer)
        argv = [str(root / "data" / "bin" / "flatc"), "--json", "--strict-json", "--defaults-json", "--raw-binary"]
        argv += ["-I", str(schema_folder), "-o", folder, str(schema_folder / schema), "--", str(binary)]
        done = subprocess.run(argv, check=False, capture_output=True, timeout=_FLATC_SECONDS)
        if done.returncode != 0:
            raise ValueError(done.stdout.decode(errors="replace").strip()[:200] or f"flatc ended {done.returncode}")
        text = binary.with_suffix(".json").read_text(errors="replace")
    # flatc prints bare inf and nan, which JSON does not have; none of them is read here
    value = json.loads(re.sub(r"(?<=[\s:\[,])[-+]?(inf|nan)(?=[\s,\]}])", "null", text))
    if not isinstance(value, dict):
        raise ValueError("not a table")
    return value


def _values(graph: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The tensor of each value of the graph, by id."""
    unions = [entry["xvalue_union"] for entry in graph.get("xvalues", ())]
    tensors = [union.get("tensor_value", union) for union in unions]
    return {int(tensor["id_out"]): tensor for tensor in tensors}


def _delegate_nodes(graph: dict[str, Any]) -> list[Node]:
    values = _values(graph)
    nodes = []
    for index, entry in enumerate(graph["xnodes"]):
        op, node = entry["xnode_union_type"], entry["xnode_union"]
        dtype = _node_dtype(op, node, values)
        nodes.append(Node(op, dtype, f"XNNPACK node {index}"))
    return nodes


def _node_dtype(op: str, node: dict[str, Any], values: dict[int, dict[str, Any]]) -> str:
    kinds = {key: _kind(values.get(int(node[key]))) for key in node if key.endswith("_id") or key == "output_value_id"}
    given = kinds.get("output_id", kinds.get("output_value_id", ""))
    taken = kinds.get("input_id", kinds.get("input1_id", kinds.get("query_id", "")))
    if op == "XNNConvert" and (taken != given):
        return BOUNDARY
    if kinds.get("filter_id", "") in _PER_CHANNEL and (taken in _DYNAMIC or given in ("fp32", "fp16")):
        return HYBRID
    return _INTEGERS.get(given, given or "none")


def _kind(value: dict[str, Any] | None) -> str:
    return str(value["datatype"]).removeprefix("xnn_datatype_") if value else ""


def _per_channel_weights(graph: dict[str, Any]) -> int:
    values = _values(graph)
    filters = {
        int(entry["xnode_union"]["filter_id"]) for entry in graph["xnodes"] if "filter_id" in entry["xnode_union"]
    }
    return sum(_kind(values.get(i)) in _PER_CHANNEL for i in filters)
