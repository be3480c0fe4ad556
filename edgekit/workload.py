"""The user's model, data and task: what a recipe starts from.

A workload is what the user's function returns. The recipe names the function as `module:function` or
`path/to/file.py:function`; its keyword arguments come from the recipe's `params`:

    import torch, edgekit
    from my_project import MyNet, train_set, test_set

    def workload() -> edgekit.Workload:
        return edgekit.Workload(
            name="my-net",
            model=MyNet,                                  # or a trained instance
            example_inputs=(torch.zeros(1, 3, 32, 32),),
            train=train_set, evaluation=test_set,         # any map-style dataset of (input, target)
            classes=("cat", "dog"),
        )

Loading a workload runs the user's own Python, as importing it would; it is never read from a model file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.errors import EdgekitError, MissingDependencyError, WorkloadError
from edgekit.extras import missing_dependency
from edgekit.schema import near_miss

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MapDataset", "Task", "Workload", "WorkloadSource", "load_workload"]


class MapDataset(Protocol):
    """Anything with a length whose items are `(input, target)`; `input` is a tensor or a tuple of tensors.

    `(first, second, …, target)` is the same as `((first, second, …), target)`. Inputs carry no batch axis. A
    `torch.utils.data.Dataset` with `__len__` is one. An item of unlabelled data is the input tensor itself, or a tuple
    or list whose first element is the input and whose others are not looked at: any labelled data will do. For a model
    of several inputs it is `((first, second), …)`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Task(StrEnum):
    """What the outputs mean, and so how accuracy is judged."""

    CLASSIFICATION = "classification"
    """Output 0 is `[N, classes]` logits; the metric is top-1 accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model with what it takes to train, calibrate and judge it."""

    name: str
    model: nn.Module | Callable[[], nn.Module]
    """The teacher: a module as it is (trained or not), or a factory of a fresh one."""
    student: nn.Module | Callable[[], nn.Module] | None = None
    """A student of another architecture, for the recipe's step `architecture`; a module or a factory."""
    example_inputs: tuple[Tensor, ...]
    """One batch as the app will send it; its batch size is the artifact's (usually 1)."""
    evaluation: MapDataset
    """Held-out data; never used to train or calibrate."""
    train: MapDataset | None = None
    calibration: MapDataset | None = None
    """Taken from `train` when None (seeded)."""
    unlabelled: MapDataset | None = None
    """More inputs of the same kind, without targets (`MapDataset` says how its items look), for the steps that need
    none: pretraining, distillation."""
    task: Task | str = Task.CLASSIFICATION
    classes: tuple[str, ...] = ()
    augment: Callable[[Tensor], Tensor] | None = None
    """Applied to a training batch's first input, on the tensor; must be random only through torch's generator."""
    data_name: str = "user data"
    data_source: str = "given by the workload"
    input_layouts: tuple[str | None, ...] = ()
    """`NCHW`, … per input, for the passport."""

    def __post_init__(self) -> None:
        _check_workload(self)

    def build_model(self) -> nn.Module:
        """A fresh copy of the teacher's architecture, with the weights of `model` where it is an instance."""
        return self._built("model", self.model)

    def build_student(self) -> nn.Module:
        """A fresh copy of `student`, with its weights where it is an instance; raises WorkloadError without one."""
        if self.student is None:
            raise WorkloadError(
                f"workload '{self.name}' has no student",
                hint="give edgekit.Workload(…, student=) a module, or a function that makes one",
            )
        return self._built("student", self.student)

    def build_base(self, base: str) -> nn.Module:
        """The architecture a stored student was made from: `model` or `student`."""
        return self.build_student() if base == "student" else self.build_model()

    def _built(self, field: str, given: nn.Module | Callable[[], nn.Module]) -> nn.Module:
        import copy

        from torch import nn

        module = copy.deepcopy(given) if isinstance(given, nn.Module) else given()
        if not isinstance(module, nn.Module):
            raise WorkloadError(
                f"workload '{self.name}': {field}() returned {type(module).__name__}, not a torch.nn.Module"
            )
        return module

    @property
    def has_weights(self) -> bool:
        """Whether `model` came as an instance (with weights) rather than as a factory."""
        from torch import nn

        return isinstance(self.model, nn.Module)


def _check_workload(workload: Workload) -> None:
    """Raise WorkloadError naming the first field that is not what a workload needs."""
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise MissingDependencyError("a workload", extra="train", package="torch") from e
    wrong = (
        _wrong_models(workload)
        or _wrong_examples(workload.example_inputs)
        or _wrong_task(workload.task)
        or _wrong_data(workload)
    )
    if wrong:
        raise WorkloadError(f"workload '{workload.name}': {wrong}")


def _wrong_models(workload: Workload) -> str | None:
    from torch import nn

    for field in ("model", "student"):
        given = getattr(workload, field)
        if not (isinstance(given, nn.Module) or callable(given) or (given is None and field == "student")):
            return f"{field} is {type(given).__name__}; give a torch.nn.Module or a function that returns one"
    return None


def _wrong_examples(examples: Any) -> str | None:
    import torch

    if not isinstance(examples, tuple) or not examples:
        return "example_inputs must be a non-empty tuple of tensors, such as (torch.zeros(1, 3, 32, 32),)"
    for i, value in enumerate(examples):
        if not isinstance(value, torch.Tensor):
            return f"example_inputs[{i}] is {type(value).__name__}, not a tensor"
    return None


def _wrong_task(task: str) -> str | None:
    if task in tuple(Task):
        return None
    return f"unknown task '{task}'; {near_miss(str(task), [t.value for t in Task])}"


def _wrong_data(workload: Workload) -> str | None:
    for field in ("evaluation", "train", "calibration", "unlabelled"):
        data = getattr(workload, field)
        if data is None and field != "evaluation":
            continue
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            return f"{field} is {type(data).__name__}; give a map-style dataset with __len__ and __getitem__"
        if len(data) == 0:
            return f"{field} is empty"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSource:
    """Where a workload is defined: `module` or `file`, and the function's name."""

    reference: str
    module: str | None
    file: Path | None
    function: str

    @classmethod
    def parse(cls, reference: str, *, base: Path) -> WorkloadSource:
        """`module:function`, `file.py:function`, `file.py` or a folder holding `workload.py`."""
        place, separator, function = reference.rpartition(":")
        if not separator:
            place, function = reference, "workload"
        if not function.isidentifier():
            raise WorkloadError(
                f"'{reference}' is not a workload", hint="write module:function or path/to/file.py:function"
            )
        path = (base / place).resolve()
        if path.is_dir():
            path = path / "workload.py"
        if place.endswith(".py") or path.is_file():
            if not path.is_file():
                raise WorkloadError(f"{path}: no such file", hint="`edgekit init DIR` writes a workload to start from")
            return cls(reference=reference, module=None, file=path, function=function)
        if all(part.isidentifier() for part in place.split(".")):
            return cls(reference=reference, module=place, file=None, function=function)
        raise WorkloadError(
            f"'{reference}': no such file or module", hint="write module:function or path/to/file.py:function"
        )

    def import_module(self) -> ModuleType:
        """Import the module, the user's own errors shown as theirs."""
        try:
            if self.file is not None:
                return _import_file(self.file)
            return importlib.import_module(self.module or "")
        except ModuleNotFoundError as e:
            if e.name == self.module:
                raise WorkloadError(
                    f"'{self.reference}': no module named '{self.module}'",
                    hint="run edgekit where the module can be imported, or give path/to/file.py:function",
                ) from e
            missing = missing_dependency(e, what=f"'{self.reference}'")
            raise missing or WorkloadError(f"'{self.reference}' imports '{e.name}', which is not installed") from e
        except Exception as e:  # the user's code may raise anything; it is shown with its own line
            raise WorkloadError(f"'{self.reference}' failed to import: {_blame(e)}") from e


def _import_file(path: Path) -> ModuleType:
    name = f"edgekit_workload_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise WorkloadError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _blame(error: Exception) -> str:
    """`ValueError: text (file.py:12)` with the innermost line that is the user's."""
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if "site-packages" not in filename and f"{Path(__file__).parent}" not in filename and "<frozen" not in filename:
            place = f" ({filename}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return f"{type(error).__name__}: {error}{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWorkload:
    """A workload and the identity of what defined it."""

    workload: Workload
    source: WorkloadSource
    source_sha256: str
    """Over the user's file and the .py files of its folder that it had imported; stages are keyed by it."""


def load_workload(
    reference: str | Callable[..., Workload], params: Mapping[str, Any] | None = None, *, base: Path | None = None
) -> LoadedWorkload:
    """Call the user's function and return its workload with the hash of its source.

    Raises WorkloadError: no such file, module or function; wrong parameters; not a Workload returned.
    """
    params = dict(params or {})
    if callable(reference):
        source = WorkloadSource(
            reference=f"{reference.__module__}:{reference.__qualname__}", module=None, file=None, function="workload"
        )
        function: Any = reference
        module: ModuleType | None = sys.modules.get(reference.__module__)
    else:
        source = WorkloadSource.parse(reference, base=base or Path.cwd())
        module = source.import_module()
        function = _find_function(module, source)
    _check_params(function, source, params)
    workload = _call(function, source, params)
    return LoadedWorkload(workload=workload, source=source, source_sha256=_source_hash(module))


def _find_function(module: ModuleType, source: WorkloadSource) -> Any:
    function = getattr(module, source.function, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise WorkloadError(
            f"'{source.reference}': no function '{source.function}'; {near_miss(source.function, known)}"
        )
    return function


def _check_params(function: Any, source: WorkloadSource, params: Mapping[str, Any]) -> None:
    signature = inspect.signature(function)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    for name in params:
        if name not in signature.parameters:
            raise WorkloadError(
                f"'{source.reference}' takes no parameter '{name}'; {near_miss(name, list(signature.parameters))}"
            )


def _call(function: Any, source: WorkloadSource, params: Mapping[str, Any]) -> Workload:
    try:
        workload = function(**params)
    except EdgekitError:
        raise
    except Exception as e:  # the user's code may raise anything; it is shown with its own line
        raise WorkloadError(f"'{source.reference}' failed: {_blame(e)}") from e
    if not isinstance(workload, Workload):
        raise WorkloadError(
            f"'{source.reference}' returned {type(workload).__name__}, not an edgekit.Workload",
            hint="`edgekit init DIR` writes an example",
        )
    if isinstance(workload.task, str) and not isinstance(workload.task, Task):
        workload = replace(workload, task=Task(workload.task))
    return workload


def _source_hash(module: ModuleType | None) -> str:
    """sha256 over the module's file and every imported .py file in or below its folder."""
    file = getattr(module, "__file__", None)
    if file is None:
        return hashlib.sha256(b"interactive").hexdigest()
    folder = Path(file).resolve().parent
    paths = {Path(file).resolve()}
    for path in _loaded_files():
        if folder in path.parents and "site-packages" not in path.relative_to(folder).parts:
            paths.add(path)
    hasher = hashlib.sha256()
    for path in sorted(paths):
        hasher.update(f"{path.relative_to(folder)}\0".encode())
        hasher.update(hashlib.sha256(path.read_bytes()).digest())
    return hasher.hexdigest()


def _loaded_files() -> Iterator[Path]:
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py") and os.path.isabs(file) and os.path.isfile(file):
            yield Path(file).resolve()  # some modules name a file that is none (torch.classes: `_classes.py`)


def sample_digest(data: MapDataset | None, *, samples: int = 256) -> str | None:
    """sha256 over the length of `data` and `samples` of its items, evenly spaced: its identity for caching.

    A change that touches none of those items is not seen; state a new `name` or `params` for it.
    """
    if data is None:
        return None
    import numpy as np

    hasher = hashlib.sha256(str(len(data)).encode())
    for index in np.linspace(0, len(data) - 1, num=min(samples, len(data))).astype(int).tolist():
        for value in _flatten(data[index]):
            array = np.ascontiguousarray(np.asarray(value))
            hasher.update(f"{array.dtype}{array.shape}".encode())
            hasher.update(array.tobytes())
    return hasher.hexdigest()


def _flatten(item: Any) -> Sequence[Any]:
    if isinstance(item, (tuple, list)):
        return [leaf for part in item for leaf in _flatten(part)]
    return [item]
