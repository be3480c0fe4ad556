"""A file that is too new for a runtime is refused before it is pushed."""

import pytest

from edgekit.artifact import Format, Passport
from edgekit.errors import UnsupportedError
from edgekit.runtimes.compatibility import require_new_enough


def passport(minimum: dict[str, str]) -> Passport:
    return Passport(
        name="m.pte",
        format=Format.EXECUTORCH,
        scheme=None,
        file="m.pte",
        sha256="0" * 64,
        size_bytes=1,
        inputs=(),
        outputs=(),
        ops=(),
        minimum_runtime=minimum,
    )


@pytest.mark.parametrize(
    ("minimum", "identity"),
    [
        ({"executorch": "1.4.0"}, "numpy==2.5.5+executorch-numpy-runtime==1.3.1"),
        ({"executorch": "1.10.0"}, "executorch==1.9.0"),
        ({"onnxruntime": "1.14"}, "onnxruntime==1.9.1"),
    ],
)
def test_a_runtime_too_old_is_named_with_both_versions(minimum: dict[str, str], identity: str) -> None:
    """Versions compare as numbers, not as text, and the message has what is there and what is needed."""
    with pytest.raises(UnsupportedError, match="or newer; this device has") as caught:
        require_new_enough(passport(minimum), identity)
    assert identity.rpartition("==")[2] in caught.value.message


@pytest.mark.parametrize(
    ("minimum", "identity"),
    [
        ({"executorch": "1.4.0"}, "numpy==2.5.5+executorch-numpy-runtime==1.4.0"),
        ({"executorch": "1.4.0"}, "executorch==1.5.1+cpu"),
        ({}, "executorch==0.1"),
        ({"tflite-runtime": "2.14"}, "ai-edge-litert==2.3.0"),
    ],
)
def test_new_enough_and_unknown_pass(minimum: dict[str, str], identity: str) -> None:
    """Equal and newer versions load; what is not known is left to the run."""
    assert require_new_enough(passport(minimum), identity) is None
