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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.artifact import Delegate, Signature
from edgekit.converters.passports.executorch_delegate import read_delegate
from edgekit.converters.passports.executorch_plan import ExecutionPlan, Trace
from edgekit.converters.passports.facts import BOUNDARY, FileFacts, count_ops
from edgekit.errors import ArtifactError, MissingDependencyError

__all__ = ["Trace", "read_executorch"]

_XNNPACK = "XnnpackBackend"
_FLATC_SECONDS = 60
_XNN_HEADER_BYTES = 30
_PROGRAM_HEADER_BYTES = 8
OLDEST_RUNTIME = "1.4.0"
"""executorch-numpy-runtime 1.4.0 runs the XNNPACK-only files that executorch 1.5.1 writes (measured)."""


def read_executorch(path: Path, trace: Trace | None = None, left: Mapping[str, str] | None = None) -> FileFacts:
    """What the file says. Raises ArtifactError when it is no sound `.pte`.

    What the converter knows besides gives places and reasons to float ops: `trace`, and `left`, which has the reason
    of each node that was kept in float.
    """
    root = _executorch_folder()
    data = path.read_bytes()
    if len(data) < _PROGRAM_HEADER_BYTES or data[4:6] != b"ET":
        raise ArtifactError(f"{path}: not an ExecuTorch program (no ET mark)")
    program_size, base = _layout(path, data)
    try:
        program = _as_json(data[:program_size], root / "schema", "program.fbs", root)
        return _facts(path, program, data[base:], root, trace or Trace(), left or {})
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


def _facts(
    path: Path, program: dict[str, Any], segments: bytes, root: Path, trace: Trace, left: Mapping[str, str]
) -> FileFacts:
    plans = {str(plan["name"]): plan for plan in program["execution_plan"]}
    first = "forward" if "forward" in plans else next(iter(plans))
    read = {}
    for name in (first, *(other for other in plans if other != first)):
        graphs = [
            read_delegate(_xnnpack_graph(path, _payload(program, delegate, segments), root))
            if delegate["id"] == _XNNPACK
            else None
            for delegate in plans[name]["delegates"]
        ]
        read[name] = ExecutionPlan(plans[name], graphs)
    plan = read[first]
    names = sorted({str(delegate["id"]) for one in plans.values() for delegate in one["delegates"]})
    foreign = tuple(f"delegate {n}: its payload is opaque, its ops are not counted" for n in names if n != _XNNPACK)
    signatures = tuple(
        Signature(name=n, inputs=one.specs("input"), outputs=one.specs("output")) for n, one in read.items()
    )
    return FileFacts(
        inputs=plan.specs("input"),
        outputs=plan.specs("output"),
        ops=count_ops(plan.nodes()),
        float_ops=plan.float_ops(trace, left),
        float_weights=plan.float_weights(trace, left),
        delegates=tuple(
            Delegate(name=n, nodes=plan.delegated if n == _XNNPACK else 0, total=len(plan.nodes())) for n in names
        ),
        per_channel_weights=sum(graph.per_channel_weights for graph in plan.graphs if graph is not None),
        minimum_runtime={"executorch": OLDEST_RUNTIME} if names == [_XNNPACK] and not plan.kernels else {},
        transposes=plan.transposes(),
        boundaries=sum(node.dtype == BOUNDARY for node in plan.nodes()),
        peak_activation_bytes=plan.peak_bytes(),
        signatures=signatures if len(signatures) > 1 else (),
        warnings=foreign + (() if names else ("no delegate: every op runs in executorch's portable kernels",)),
    )


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
