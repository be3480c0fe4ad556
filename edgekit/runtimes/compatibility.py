"""Whether a runtime is new enough for a file, told before anything is pushed."""

from __future__ import annotations

import re

from edgekit.artifact import Passport
from edgekit.errors import Problem, UnsupportedError

__all__ = ["require_new_enough"]

_DISTRIBUTIONS = {
    "executorch": ("executorch", "executorch-numpy-runtime"),
    "onnxruntime": ("onnxruntime",),
    "tflite-runtime": ("tflite-runtime",),
}
"""Name in a passport's `minimum_runtime` to the distributions whose versions count as its."""


def require_new_enough(passport: Passport, identity: str) -> None:
    """Raise UnsupportedError when a runtime in `identity` (`numpy==2.5.5+onnxruntime==1.32.0`) is too old for the file.

    A runtime whose oldest version is not known is not judged; the run itself will tell.
    """
    present = dict(part.split("==", 1) for part in identity.split("+") if "==" in part)
    problems = [
        Problem(
            backend=name,
            message=f"{passport.name} needs {name} {oldest} or newer; this device has {distribution} "
            f"{present[distribution]}",
            hint="upgrade the runtime, or convert with the toolchain of its version",
        )
        for name, oldest in passport.minimum_runtime.items()
        for distribution in _DISTRIBUTIONS.get(name, ())
        if distribution in present and _numbers(present[distribution]) < _numbers(oldest)
    ]
    if problems:
        raise UnsupportedError(problems)


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version: `1.32.0+cpu` -> (1, 32, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])
