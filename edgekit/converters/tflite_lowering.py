"""From exported programs to a float `.tflite` file, by the steps `litert_torch.convert` takes.

`litert_torch.convert` itself would export the program's module once more. Given the program as it is, the file comes
out the same to the byte (measured on a convolutional network) in less time; every tensor carries the name of the
program's node it comes from, and an error can be traced to the user's line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.converters.provenance import source_line
from edgekit.converters.tflite_rewrites import named_copy, rewrite
from edgekit.errors import ConversionError, MissingDependencyError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["DEFAULT_SIGNATURE", "decomposed", "lowered"]

DEFAULT_SIGNATURE = "serving_default"
"""Name of the entry point in a file that has one, as TensorFlow's own converter writes it."""
_TOOLS = ("torch", "litert_torch", "litert_converter", "jax")
_Result = TypeVar("_Result")


def lowered(programs: Mapping[str, ExportedProgram]) -> bytes:
    """The float file with one entry point for each program: inputs `args_0`, …, outputs `output_0`, …

    Raises ConversionError with the stage, and the op and the user's line where they can be told.
    """
    try:
        from litert_converter.mlir._mlir_libs import converter_api_ext as api
        from litert_torch import backend
        from litert_torch.backend import inline_consts
    except ImportError as e:
        raise MissingDependencyError("converting to TFLite", extra="tflite", package="litert-torch") from e
    context = backend.export_utils.create_ir_context()
    shared = inline_consts.InlineConstsContext(enable_resource_constants=False)
    modules = []
    for name, program in programs.items():
        ready = _told("decompose", program, lambda p=program: _optimized(p))  # type: ignore[misc]
        mlir = _told(
            "lower",
            program,
            lambda p=ready: backend.export.exported_program_to_mlir(  # type: ignore[misc]
                p, ir_context=context, lowering_context_plugins=[shared]
            ),
        )
        inputs = [spec for spec in mlir.input_signature if spec.input_spec.is_user_input]
        api.set_signature(
            mlir.module.operation,
            signature_name=name,
            input_names=[f"args_{index}" for index in range(len(inputs))],
            output_names=[f"output_{index}" for index in range(len(mlir.output_signature))],
        )
        modules.append(mlir.module)
    first = next(iter(programs.values()))
    return _told("write", first, lambda: _written(context, api.merge_modules(modules)))


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """A copy in the ops litert-torch starts from, with edgekit's own rewriting done."""
    from litert_torch import fx_infra

    ready = named_copy(program)
    rewrite(ready)
    ready = fx_infra.graph_utils.reset_from_node_meta(ready)
    out: ExportedProgram = fx_infra.safe_run_decompositions(ready, fx_infra.decomp.pre_convert_decomp(), can_skip=False)
    return out


def _optimized(program: ExportedProgram) -> Any:
    from litert_torch._convert import core

    return core._run_convert_passes(decomposed(program))


def _written(context: Any, module: Any) -> bytes:
    """The flatbuffer of a lowered module; the settings are those of `litert_torch.convert`."""
    from litert_converter.mlir import passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as api

    config = api.ConvertToTFLConfig()
    config.model_origin_framework = "PYTORCH"
    config.unsafe_fuse_dynamic_shaped_broadcast = True
    config.canonicalizing_inf_as_min_max_float = False
    config.enable_x64 = False  # 64-bit integers become 32-bit ones, as runtimes want them
    with context:
        api.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
    operation = getattr(module, "operation", module)
    return bytes(api.export_flatbuffer_to_bytes(operation))


def _told(stage: str, program: ExportedProgram, step: Callable[[], _Result]) -> _Result:
    """What `step` returns; whatever the toolchain raises, as a ConversionError."""
    try:
        return step()
    except MissingDependencyError:
        raise
    except Exception as e:  # litert-torch raises RuntimeError, ValueError, MLIR's own errors, …
        op, source = _place(str(e), program)
        said = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
        where = f" at {source}" if source else ""
        raise ConversionError(
            f"{type(e).__name__}{where}: {said[:600]}",
            backend="tflite",
            stage=stage,
            op=op,
            hint="ONNX may take this model; or write this part of it with other operations",
        ) from e


def _place(message: str, program: ExportedProgram) -> tuple[str | None, str | None]:
    """The op and the user's line that an error speaks of: by node name, else by the file it quotes."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
    executing = re.search(r"While executing %(\w+)", message)
    op = re.search(r"target=(?:torch\.ops\.)?([\w.]+)", message) or re.search(r"operation '([\w.]+)'", message)
    named = nodes.get(executing.group(1)) if executing else None
    if named is not None:
        return str(named.target), source_line(named)
    frames = re.findall(r'File "([^"]+)", line (\d+)', message) + re.findall(r"(/[^\s:\"']+\.py):(\d+)", message)
    own = [f"{file}:{line}" for file, line in frames if not any(f"/{tool}/" in file for tool in _TOOLS)]
    if own:
        return op.group(1) if op else None, own[-1]
    # an MLIR error quotes torch's own line (`…/conv.py:1198`): the nodes that passed there, if they are one
    passed = {source_line(n) for n in nodes.values() for file, line in frames if f'"{file}", line {line}' in _trace(n)}
    return op.group(1) if op else None, passed.pop() if len(passed) == 1 else None


def _trace(node: Any) -> str:
    return str(node.meta.get("stack_trace") or "")
