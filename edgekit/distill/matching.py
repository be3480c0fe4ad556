"""Layer selection: which of the teacher's layers each of the student's is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.training.features import check_names

__all__ = ["LayerMatch", "counterparts", "match_layers"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A number that is a whole part of a name: of `layers.3.linear1` the 3."""

_LAYER = re.compile(r"(.*_l)(\d+)((?:_reverse)?)")
"""A parameter of one layer of a recurrent module: `weight_ih_l0_reverse`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMatch:
    """A student's module and the adjacent teacher's modules that its parameters are projected from."""

    student: str
    teachers: tuple[str, ...]


def match_layers(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: Mapping[str, str | Sequence[str]] | None = None,
    exclude: Sequence[str] = (),
) -> list[LayerMatch]:
    """A match for every student module with parameters of its own that the teacher has a counterpart of.

    `layers` decides for the modules it names; a container there gives its submodules to those of the same name below
    the other. The others are matched by role (the name with its numbers left out) and kind where the teacher has the
    same, else by kind (type, axes of the weights, kernel, grouping), else by type and axes alone, each from what is
    left of the teacher. Within each the teacher's n layers are dealt out in order to the student's m, n/m adjacent
    ones each. `exclude` leaves modules, and all below them, out.

    Raises WorkloadError for a name that does not exist, and when nothing at all is matched.
    """
    given = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in (layers or {}).items()}
    check_names(student, [*given, *exclude], who="student")
    check_names(teacher, [name for names in given.values() for name in names], who="teacher")
    ours, theirs = _owners(student), _owners(teacher)
    kept = {n: m for n, m in ours.items() if not any(n == e or n.startswith(f"{e}.") for e in exclude)}
    found = _dealt(kept, theirs, _given(given, kept, theirs))
    matches = [LayerMatch(student=name, teachers=found[name]) for name in ours if name in found]
    if not matches:
        raise WorkloadError(
            "no layer of the student has a counterpart in the teacher to be made from",
            hint="name them: layers: {student module: teacher module}",
        )
    return matches


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that holds parameters itself, in the order of registration."""
    return {name: m for name, m in model.named_modules() if any(True for _ in m.named_parameters(recurse=False))}


def _given(
    given: Mapping[str, tuple[str, ...]], ours: Mapping[str, nn.Module], theirs: Mapping[str, nn.Module]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, teachers in given.items():
        below = [n for n in ours if n == name or n.startswith(f"{name}.")]
        for inner in below:
            candidates = tuple(t + inner.removeprefix(name) for t in teachers)
            fitting = tuple(t for t in candidates if t in theirs and _is_alike(ours[inner], theirs[t]))
            if fitting:
                found[inner] = fitting
        if not any(n in found for n in below):
            raise WorkloadError(
                f"layers: '{name}' of the student cannot be made from {', '.join(teachers)}: "
                "their parameters are not of the same kind",
                hint="pair layers of one kind whose weights have the same axes",
            )
    return found


def _is_alike(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether every parameter of `ours` has one in `theirs` with as many axes."""
    if isinstance(ours, nn.RNNBase):
        return _kind("", ours) == _kind("", theirs)
    axes = {name: p.ndim for name, p in theirs.named_parameters(recurse=False)}
    return all(axes.get(name) == p.ndim for name, p in ours.named_parameters(recurse=False))


def _dealt(
    ours: Mapping[str, nn.Module], theirs: Mapping[str, nn.Module], given: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    found = dict(given)
    for sort in (_role, _kind, _type):
        used = {teacher for names in found.values() for teacher in names}
        left = {name: module for name, module in ours.items() if name not in found}
        free = {name: module for name, module in theirs.items() if name not in used}
        for key in dict.fromkeys(sort(name, module) for name, module in left.items()):
            students = [n for n, m in left.items() if sort(n, m) == key]
            teachers = [n for n, m in free.items() if sort(n, m) == key]
            if teachers:
                found |= dict(zip(students, _groups(teachers, len(students)), strict=True))
    return found


def _role(name: str, module: nn.Module) -> tuple[object, ...]:
    """The name with its numbers left out, and the kind; a name of nothing but numbers says no role."""
    if not re.search(r"[A-Za-z]", name):
        return ("no role", id(module))
    return (_NUMBER.sub("#", name), *_kind(name, module))


def _kind(_name: str, module: nn.Module) -> tuple[object, ...]:
    if isinstance(module, nn.RNNBase):  # its layers are dealt out within the module, by `counterparts`
        return (type(module).__name__, (module.bias, module.bidirectional), None, False)
    axes = tuple((n, p.ndim) for n, p in module.named_parameters(recurse=False))
    grouped = getattr(module, "groups", 1) > 1
    return (type(module).__name__, axes, getattr(module, "kernel_size", None), grouped)


def _type(name: str, module: nn.Module) -> tuple[object, ...]:
    return _kind(name, module)[:2]


def counterparts(name: str, ours: nn.Module, theirs: nn.Module) -> list[Tensor]:
    """The parameters of `theirs` that `name` of `ours` is made from: the one of that name, or, in a recurrent module of
    several layers, those of the layers dealt to this one."""
    found = _LAYER.fullmatch(name)
    if found is None or not isinstance(ours, nn.RNNBase) or not isinstance(theirs, nn.RNNBase):
        return [getattr(theirs, name)]
    head, layer, tail = found.groups()
    groups = _groups([str(index) for index in range(theirs.num_layers)], ours.num_layers)
    return [getattr(theirs, f"{head}{index}{tail}") for index in groups[int(layer)]]


def _groups(teachers: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """`count` runs of adjacent teachers, as even as can be; with fewer teachers than that some serve twice."""
    total = len(teachers)
    found = []
    for index in range(count):
        low, high = index * total // count, (index + 1) * total // count
        found.append(tuple(teachers[low : max(high, low + 1)]))
    return found
