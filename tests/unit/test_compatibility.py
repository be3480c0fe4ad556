"""A file that is too new for a runtime is refused before it is pushed."""

import pytest

from edgekit.artifact import Delegate, Format, OpCount, Passport
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import UnsupportedError
from edgekit.runtimes.compatibility import examine, require_new_enough


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


def board(**changes: object) -> DeviceInfo:
    facts = {"abi": "aarch64", "python": "3.13.5", "ram_bytes": 1_000_000_000, **changes}
    return DeviceInfo(spec="adb:1", kind="adb", serial="1", **facts)


def refused(passport: Passport, info: DeviceInfo) -> dict[str, str]:
    return {finding.what: finding.detail for finding in examine(passport, info) if finding.is_ok is False}


def test_a_file_that_fits_is_not_refused() -> None:
    """Python, wheels, version, ops and memory are all looked at, and none stands in the way."""
    fits = passport({"executorch": "1.4.0"}).model_copy(
        update={"ops": (OpCount(name="XNNConv2d", dtype="int8", count=1),), "peak_activation_bytes": 1000}
    )
    found = examine(fits, board())
    assert [finding.what for finding in found] == ["Python", "runtime version", "ops", "memory"]
    assert all(finding.is_ok for finding in found)


@pytest.mark.parametrize(
    ("change", "info", "what", "said"),
    [
        ({}, board(python=None), "Python", "the device has none"),
        ({}, board(abi="armv7l"), "runtime", "no wheels of executorch are published for armv7l"),
        ({}, board(python="3.9.2"), "runtime", "for Python 3.9.2"),
        ({"minimum_runtime": {"executorch": "9.0"}}, board(), "runtime version", "needs executorch 9.0 or newer"),
        ({"delegates": (Delegate(name="QnnBackend", nodes=1, total=1),)}, board(), "ops", "QnnBackend"),
        ({"size_bytes": 900_000_000, "peak_activation_bytes": 1}, board(), "memory", "the device has 1000 MB"),
    ],
)
def test_what_keeps_a_file_from_loading_is_named(
    change: dict[str, object], info: DeviceInfo, what: str, said: str
) -> None:
    """Each obstacle is told before anything is pushed, with the fact that decides it."""
    assert said in refused(passport({}).model_copy(update=change), info)[what]


def test_a_flex_op_does_not_load_in_the_published_runtime() -> None:
    """An op the built-in kernels do not have is refused by name."""
    flex = passport({}).model_copy(
        update={"format": Format.TFLITE, "ops": (OpCount(name="FlexErf", dtype="float32", count=1),)}
    )
    assert "FlexErf" in refused(flex, board())["ops"]


def test_what_cannot_be_told_is_not_refused() -> None:
    """An unknown oldest version and unknown activations are question marks, neither a yes nor a no."""
    unknown = {finding.what for finding in examine(passport({}), board()) if finding.is_ok is None}
    assert unknown == {"runtime version", "memory"}
