"""`check`: every obstacle to a conversion at once, before any is tried.

What torch.export refuses is found with its draft mode, which goes on past each refusal; then each backend looks up
every op of the program in its own registry, in a child process as for a conversion.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Scheme
from edgekit.converters.conversion import ConversionOptions, convert_program, export_all
from edgekit.converters.target_run import ConversionProgress
from edgekit.errors import ConversionError, EdgekitError, ExportError, Problem, UnsupportedError
from edgekit.exporting import data_dependence_hint, is_user_file, save_program

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["CheckReport", "check_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Every obstacle found, and which (target, scheme) pairs have none."""

    problems: tuple[Problem, ...]
    clear: tuple[tuple[str, Scheme], ...]


def check_model(
    model: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    name: str,
    targets: Sequence[str],
    schemes: Sequence[Scheme],
    options: ConversionOptions | None = None,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> CheckReport:
    """What stands in the way of each target and scheme. Raises UserError and ExportError for what is no model."""
    options = replace(options or ConversionOptions(), only_check=True)
    refusals: tuple[Problem, ...] = ()
    try:
        program = export_all(model, example_inputs, name, {}, options).programs[0][1]
    except ExportError as error:
        refusals, draft = _refusals(model, example_inputs, error)
        if draft is None:
            return CheckReport(problems=refusals, clear=())
        program = draft
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as folder:
        path = Path(folder) / "program.pt2"
        try:
            sha256 = save_program(program, path)
            outcome = convert_program(
                path,
                sha256,
                name=name,
                targets=targets,
                schemes=schemes,
                output_dir=Path(folder) / "out",
                options=options,
                on_progress=on_progress,
            )
        except EdgekitError:
            raise
        except Exception as e:  # a draft is not always a whole program; what it told stands
            if not refusals:
                raise
            logging.getLogger(__name__).debug("a draft program could not be looked up: %s", e)
            return CheckReport(problems=refusals, clear=())
    found = [problem for failure in outcome.failures for problem in _problems_of(failure.target, failure.error)]
    if refusals:  # the draft holds an assertion for each refusal, which no backend has
        found = [problem for problem in found if not (problem.op or "").startswith("aten._assert")]
    failed = {(failure.target, failure.scheme) for failure in outcome.failures}
    pairs = [(target, scheme) for target in dict.fromkeys(targets) for scheme in dict.fromkeys(schemes)]
    clear = () if refusals else tuple(pair for pair in pairs if pair not in failed)
    return CheckReport(problems=(*refusals, *dict.fromkeys(found)), clear=clear)


def _problems_of(target: str, error: EdgekitError) -> tuple[Problem, ...]:
    if isinstance(error, UnsupportedError) and error.problems:
        return error.problems
    message = error.message.removeprefix(f"{target}: ") if isinstance(error, ConversionError) else error.message
    return (Problem(backend=target, message=message, hint=error.hint),)


def _refusals(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], error: ExportError
) -> tuple[tuple[Problem, ...], ExportedProgram | None]:
    """Everything torch.export refuses, and the program it would be without that; the one error where it cannot tell."""
    single = (Problem(backend="torch.export", message=error.message, source=error.source, hint=error.hint),)
    try:
        with _quiet():
            draft = _draft(model, inputs)
    except ExportError as e:
        logging.getLogger(__name__).debug("%s", e)
        return single, None
    report: Any = getattr(draft, "_report", None)
    files = _file_names() | dict(report.str_to_filename if report is not None else {})
    found = tuple(_refusal(failure, files) for failure in report.failures) if report is not None else ()
    return tuple(dict.fromkeys(found)) or single, draft


def _file_names() -> dict[int, str]:
    """Numbers that stand for file names in torch's traces; a report has only those that were not told before it."""
    from torch._logging import structured

    return {number: name for name, number in structured.INTERN_TABLE.items()}


def _draft(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    import torch
    from torch.export import draft_export

    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return draft_export(model, inputs, strict=False)
    except Exception as e:  # what it cannot trace at all ends it with any error
        raise ExportError(f"torch.export's draft mode gave up: {e}") from e
    finally:
        for module, training in was_training.items():
            module.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints and logs about each refusal; it is told as a Problem.

    Its loggers stay on: the draft mode reads its own trace through one of them.
    """
    handlers = [*logging.getLogger("torch").handlers, *logging.root.handlers]
    for handler in handlers:
        handler.addFilter(_is_not_torchs)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_not_torchs)


def _is_not_torchs(record: logging.LogRecord) -> bool:
    return not record.name.startswith("torch")


def _refusal(failure: Any, files: dict[int, str]) -> Problem:
    """One refusal as a Problem with the user's deepest line."""
    frames = [
        (str(files.get(frame["filename"], frame["filename"])), frame["line"], frame.get("loc", ""))
        for frame in failure.data.get("user_stack") or failure.data.get("stack") or ()
    ]
    own = [frame for frame in frames if is_user_file(frame[0])]
    place, line, code = own[-1] if own else ("", 0, "")
    kind = str(failure.failure_type.name).lower().replace("_", " ")
    what = failure.data.get("op") or failure.data.get("expr") or ""
    return Problem(
        backend="torch.export",
        message=f"{kind} ({what}){f': `{code.strip()}`' if code else ''}",
        source=f"{place}:{line}" if place else None,
        hint=data_dependence_hint(code),
    )
