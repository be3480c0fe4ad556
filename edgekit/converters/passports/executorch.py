"""Facts of a `.pte` file: ops, delegates, tensors, and inside an XNNPACK delegate its own graph.

Read with executorch's own deserializer and, for the delegate, with the flatc and the schema in its wheel.
Only ever called in a child process.
"""

from __future__ import annotations

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
OLDEST_RUNTIME = "1.4.0"
"""executorch-numpy-runtime 1.4.0 runs the XNNPACK-only files that executorch 1.5.1 writes (measured)."""


def read_executorch(path: Path) -> FileFacts:
    """What the file says. Raises ArtifactError when it is no sound `.pte`."""
    try:
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as e:
        raise MissingDependencyError("reading .pte files", extra="executorch", package="executorch") from e
    data = path.read_bytes()
    if data[4:6] != b"ET":
        raise ArtifactError(f"{path}: not an ExecuTorch program (no ET mark)")
    _check_length(path, data)
    try:
        program = deserialize_pte_binary(data).program
    except Exception as e:  # the reader raises whatever a wrong offset leads to
        raise ArtifactError(
            f"{path}: corrupt or truncated .pte file: {type(e).__name__}: {str(e)[:200]}", hint="convert it again"
        ) from e
    return _facts(path, program)


def _check_length(path: Path, data: bytes) -> None:
    """The extended header (program.fbs: `eh00`) tells how long the file must be."""
    if data[8:12] != b"eh00":
        return
    program_size = int.from_bytes(data[16:24], "little")
    base = int.from_bytes(data[24:32], "little")
    header_size = int.from_bytes(data[12:16], "little")
    segments = int.from_bytes(data[32:40], "little") if header_size >= 32 else 0
    expected = max(program_size, base + segments if base else 0)
    if expected > len(data):
        raise ArtifactError(f"{path}: truncated .pte file: {len(data)} of {expected} bytes", hint="copy it again")


def _facts(path: Path, program: Any) -> FileFacts:
    plan = next((p for p in program.execution_plan if p.name == "forward"), program.execution_plan[0])
    graphs = [_xnnpack_graph(path, program, d) for d in plan.delegates if d.id == _XNNPACK]
    inside = [node for graph in graphs for node in _delegate_nodes(graph)]
    outside = _kernel_nodes(plan)
    total = len(inside) + len(outside)
    names = sorted({delegate.id for delegate in plan.delegates})
    delegates = tuple(Delegate(name=n, nodes=len(inside) if n == _XNNPACK else 0, total=total) for n in names)
    foreign = tuple(f"delegate {n}: its payload is opaque, its ops are not counted" for n in names if n != _XNNPACK)
    return FileFacts(
        inputs=tuple(_spec(plan.values[i].val, f"input_{n}") for n, i in enumerate(plan.inputs)),
        outputs=tuple(_spec(plan.values[i].val, f"output_{n}") for n, i in enumerate(plan.outputs)),
        ops=count_ops([*inside, *outside]),
        float_ops=unquantized([*inside, *outside], _REASON),
        delegates=delegates,
        per_channel_weights=sum(_per_channel_weights(graph) for graph in graphs),
        minimum_runtime={"executorch": OLDEST_RUNTIME} if names == [_XNNPACK] and not outside else {},
        warnings=foreign + (() if delegates else ("no delegate: every op runs in executorch's portable kernels",)),
    )


def _spec(value: Any, name: str) -> TensorSpec:
    if not hasattr(value, "scalar_type"):
        return TensorSpec(name=name, shape=(), dtype=type(value).__name__.lower())
    return TensorSpec(name=name, shape=tuple(int(n) for n in value.sizes), dtype=_scalar(value))


def _scalar(tensor: Any) -> str:
    names = {"FLOAT": "float32", "DOUBLE": "float64", "HALF": "float16", "LONG": "int64", "INT": "int32"}
    names |= {"SHORT": "int16", "CHAR": "int8", "BYTE": "uint8", "BOOL": "bool", "BFLOAT16": "bfloat16"}
    name = str(tensor.scalar_type.name)
    return names.get(name, name.lower())


def _kernel_nodes(plan: Any) -> list[Node]:
    """The ops that run outside every delegate, with the type of their last tensor argument (the out tensor)."""
    nodes = []
    for chain in plan.chains:
        for index, instruction in enumerate(chain.instructions):
            call = instruction.instr_args
            if type(call).__name__ != "KernelCall":
                continue
            operator = plan.operators[call.op_index]
            op = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
            tensors = [plan.values[i].val for i in call.args if hasattr(plan.values[i].val, "scalar_type")]
            is_boundary = "quantize_per" in op or "choose_qparams" in op
            dtype = BOUNDARY if is_boundary else _scalar(tensors[-1]) if tensors else "none"
            nodes.append(Node(op, dtype, f"{plan.name} instruction {index}", is_delegated=False))
    return nodes


def _xnnpack_graph(path: Path, program: Any, delegate: Any) -> dict[str, Any]:
    """The XNNGraph inside a delegate, as flatc prints it."""
    payload = program.backend_delegate_data[delegate.processed.index].data
    if payload[4:8] != b"XH00" or len(payload) < _XNN_HEADER_BYTES:
        raise ArtifactError(f"{path}: the XNNPACK delegate's payload has no XH00 header")
    start, size = int.from_bytes(payload[10:14], "little"), int.from_bytes(payload[14:18], "little")
    if start + size > len(payload):
        raise ArtifactError(f"{path}: the XNNPACK delegate's graph reaches beyond its payload")
    try:
        return _as_json(bytes(payload[start : start + size]))
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        raise ArtifactError(f"{path}: the XNNPACK delegate's graph cannot be read: {e}") from e


def _as_json(graph: bytes) -> dict[str, Any]:
    from importlib import resources

    schema = resources.files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs")
    flatc = resources.files("executorch.data.bin").joinpath("flatc")
    with tempfile.TemporaryDirectory() as folder, resources.as_file(flatc) as program:
        work = Path(folder)
        (work / "schema.fbs").write_bytes(schema.read_bytes())
        (work / "graph.bin").write_bytes(graph)
        argv = [str(program), "--json", "--strict-json", "--defaults-json", "--raw-binary", "-o", folder]
        argv += [str(work / "schema.fbs"), "--", str(work / "graph.bin")]
        subprocess.run(argv, check=True, capture_output=True, timeout=_FLATC_SECONDS)
        text = (work / "graph.json").read_text(errors="replace")
    # flatc prints bare inf and nan, which JSON does not have; none of them is read here
    value = json.loads(re.sub(r"(?<=[\s:\[,])[-+]?(inf|nan)(?=[\s,\]}])", "null", text))
    if not isinstance(value, dict) or not isinstance(value.get("xnodes"), list):
        raise ValueError("no nodes in it")
    return value


def _values(graph: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Each value of the graph by id: its tensor, with `quant` where it has quantization parameters."""
    values = {}
    for entry in graph.get("xvalues", ()):
        union = entry["xvalue_union"]
        tensor = dict(union.get("tensor_value", union))
        if "quant_params" in union:
            tensor["quant"] = union["quant_params"]
        values[int(tensor["id_out"])] = tensor
    return values


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
