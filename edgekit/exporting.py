"""From the user's `nn.Module` to the `torch.export` program every converter starts from.

A program file is opened only when its sha256 is the one `save_program` returned: `torch.export.load` runs code
out of a hostile file, so `.pt2` is a private exchange between edgekit and its own children, never an input.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import linecache
import logging
import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ArtifactError, ExportError, MissingDependencyError
from edgekit.schema import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

__all__ = [
    "check_inputs",
    "count_macs",
    "count_parameters",
    "data_dependence_hint",
    "export_program",
    "is_user_file",
    "load_own_program",
    "save_program",
]

_log = logging.getLogger(__name__)

_CONTROL_FLOW_HINT = (
    "the branch or size depends on values inside a tensor, which is unknown when exporting: use torch.where for "
    "a choice between values, torch.cond for a choice between computations, or a fixed size"
)
_ITEM_HINT = (
    "a tensor's value becomes a Python number here (.item(), int(), float(), bool(), .tolist()): keep it a "
    "tensor, or compute it once outside forward and store it as an attribute"
)
_UNSUPPORTED_HINT = (
    "torch.export cannot follow this Python: move it out of forward (into __init__ or the data pipeline) or "
    "write it with torch operations"
)


def export_program(
    model: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    name: str,
    dynamic_shapes: tuple[dict[int, Any], ...] | None = None,
) -> ExportedProgram:
    """The model as a `torch.export` program: eval mode, no gradients, the shapes of the example inputs.

    `dynamic_shapes` frees some axes (see `converters.shapes.dynamic_shapes`). The model's training flags are put back
    as they were; its weights are shared with the program, not copied.
    Raises ExportError, which names the line of the user's model and what to change.
    """
    torch = _torch()
    inputs = check_inputs(model, example_inputs, name)
    with _evaluating(model), torch.no_grad():
        _run_once(model, inputs, name)
        told = io.StringIO()  # torch prints the graph it had so far, whatever its log level
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                program: ExportedProgram = torch.export.export(
                    model, inputs, dynamic_shapes=_for_each_argument(model, inputs, dynamic_shapes), strict=False
                )
        except Exception as e:
            _log.debug("torch.export of %s said: %s", name, told.getvalue())
            raise _export_error(e, name) from e
    return program


def _for_each_argument(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], shapes: tuple[dict[int, Any], ...] | None
) -> Any:
    """The shapes as torch.export wants them: a forward of `*args` has one argument, which is a tuple."""
    if shapes is None:
        return None
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    fixed = sum(kind is not inspect.Parameter.VAR_POSITIONAL for kind in kinds[: len(inputs)])
    return (*shapes[:fixed], shapes[fixed:]) if fixed < len(inputs) else shapes


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise MissingDependencyError("exporting a model", extra="train", package="torch") from e
    return torch


def check_inputs(model: object, example_inputs: object, name: str) -> tuple[torch.Tensor, ...]:
    """The example inputs, detached; raises ExportError when they, or the model, are not of the kind to export."""
    torch = _torch()
    if not isinstance(model, torch.nn.Module):
        raise ExportError(
            f"{name}: the model is a {type(model).__name__}, not a torch.nn.Module",
            hint="give the module itself, not its class, its state_dict or a function",
        )
    if isinstance(example_inputs, torch.Tensor):
        raise ExportError(
            f"{name}: example_inputs is one tensor; give a tuple with one tensor for each argument of forward",
            hint="write (x,) rather than x",
        )
    if not isinstance(example_inputs, tuple | list) or not example_inputs:
        raise ExportError(f"{name}: example_inputs must be a non-empty tuple of tensors", hint="for example (x,)")
    for index, value in enumerate(example_inputs):
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"{name}: example input {index} is a {type(value).__name__}, not a tensor",
                hint="wrap numbers and arrays with torch.as_tensor; make settings attributes of the module",
            )
    return tuple(value.detach().contiguous() for value in example_inputs)  # samples are arrays in plain order


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, each submodule's own flag put back afterwards."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def _run_once(model: nn.Module, inputs: tuple[torch.Tensor, ...], name: str) -> None:
    """Run the plain model, so that inputs that do not fit it are told apart from what cannot be exported."""
    try:
        model(*inputs)
    except Exception as e:
        shapes = ", ".join(f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for value in inputs)
        source = _user_line(e)
        raise ExportError(
            f"{name}: the model does not run on its example inputs ({shapes}){_at(source)}: {_first_line(e)}",
            source=source,
            hint="example_inputs must be what forward takes: the same number, order, shapes (with the batch axis) "
            "and dtypes",
        ) from e


def _export_error(error: BaseException, name: str) -> ExportError:
    source = _user_line(error)
    return ExportError(
        f"{name}: torch.export cannot export this model{_at(source)}: {_first_line(error)}",
        source=source,
        hint=_hint_for(error, source),
    )


def _hint_for(error: BaseException, source: str | None) -> str:
    kinds = {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}
    text = " ".join(str(link) for link in _chain(error)).lower()
    if _makes_a_number(code := _code_at(source)):
        return data_dependence_hint(code)
    if "GuardOnDataDependentSymNode" in kinds or "data-dependent" in text or "data dependent" in text:
        return _CONTROL_FLOW_HINT
    return _UNSUPPORTED_HINT


def _makes_a_number(code: str) -> bool:
    return any(call in code for call in (".item(", "int(", "float(", "bool(", ".tolist(", ".numpy("))


def data_dependence_hint(code: str) -> str:
    """What to change in a line whose result depends on the values in a tensor."""
    return _ITEM_HINT if _makes_a_number(code) else _CONTROL_FLOW_HINT


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _user_line(error: BaseException) -> str | None:
    """`file.py:line` of the deepest frame that is neither torch, the standard library nor edgekit."""
    for link in _chain(error):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if is_user_file(frame.filename):
                return f"{frame.filename}:{frame.lineno}"
    return None


def is_user_file(filename: str) -> bool:
    """Whether a file of a stack trace is the user's own: neither torch, the standard library nor edgekit."""
    if filename.startswith("<") or not os.path.isabs(filename):
        return False
    if f"{os.sep}torch{os.sep}" in filename and "site-packages" in filename:
        return False
    here = str(Path(__file__).parent) + os.sep
    standard = sysconfig.get_paths()["stdlib"] + os.sep
    return not filename.startswith(here) and ("site-packages" in filename or not filename.startswith(standard))


def _code_at(source: str | None) -> str:
    if source is None:
        return ""
    filename, _, line = source.rpartition(":")
    return linecache.getline(filename, int(line)).strip()


def _at(source: str | None) -> str:
    if source is None:
        return ""
    code = _code_at(source)
    return f" at {source}" + (f" (`{code}`)" if code else "")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def save_program(program: ExportedProgram, path: Path) -> str:
    """sha256 (hex) of the file written at `path`, which `load_own_program` asks for."""
    buffer = io.BytesIO()
    _torch().export.save(program, buffer)
    data = buffer.getvalue()
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def load_own_program(path: Path, sha256: str) -> ExportedProgram:
    """The program in a file that edgekit itself wrote: refused, unopened, when its sha256 is another."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be read: {e}") from e
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ArtifactError(
            f"{path}: not the program edgekit wrote (sha256 {found[:12]}…, expected {sha256[:12]}…)",
            hint="exported programs can run code when loaded, so only edgekit's own are opened; export again",
        )
    if b"quantized_decomposed" in data:
        _know_quantized_ops()
    # The bytes that were hashed are the bytes that are loaded: the file cannot change in between.
    program: ExportedProgram = _torch().export.load(io.BytesIO(data))
    return program


def _know_quantized_ops() -> None:
    """Register the ops of a trained program, which torch does not know by itself."""
    try:
        import torchao.quantization.pt2e  # noqa: F401
    except ImportError as e:
        raise MissingDependencyError("a trained program", extra="executorch", package="torchao") from e


def count_parameters(program: ExportedProgram) -> int:
    """Number of trainable values in the program (its parameters; buffers such as running means are not counted)."""
    return sum(int(value.numel()) for _, value in program.named_parameters())


def count_macs(program: ExportedProgram, inputs: tuple[torch.Tensor, ...] | None = None) -> int:
    """Multiply-accumulates of one inference on `inputs` (by default the example inputs), batch included.

    Counted by torch's FlopCounterMode from the shapes each convolution, matrix product and attention really sees
    (2 FLOPs = 1 MAC). Element-wise ops, pooling, normalisation and fused recurrent kernels (LSTM, GRU on CPU)
    are not counted, as is usual.
    """
    torch = _torch()
    from torch.utils.flop_counter import FlopCounterMode

    if inputs is None and program.example_inputs is None:
        raise ArtifactError("the program carries no example inputs, so its work cannot be counted")
    args = inputs if inputs is not None else program.example_inputs[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module()(*args)
    return int(counter.get_total_flops()) // 2
