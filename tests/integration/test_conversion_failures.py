"""Conversions that fail: by death of the child, by its own error, by a bad request.

The backend here is a package of three lines found through its entry point, as a third party's would be, so that a
child can be made to die on purpose; everything around it is the real thing.
"""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.artifact import Scheme  # noqa: E402
from edgekit.converters.conversion import ConversionOptions, convert_model  # noqa: E402
from edgekit.errors import ArtifactError, ConversionError, HostError, UnsupportedError, UserError, WorkloadError  # noqa: E402

FAKE = """
import os, sys, time
from edgekit.artifact import Artifact, Fidelity, Format, OutputFidelity, Passport, Scheme, TensorSpec
from edgekit.converters.base import Capability
from edgekit.errors import ConversionError
from edgekit.schema import sha256_of

class Converter:
    format = Format.ONNX

    def capabilities(self):
        return tuple(Capability(scheme=s, supported=s is not Scheme.FP16, note="nearest: fp32") for s in Scheme)

    def check(self, request):
        return ()

    def convert(self, request):
        path = request.output_dir / "model.onnx"
        path.write_bytes(b"half a")
        if request.scheme is Scheme.STATIC_W8A8:
            print("the kernel is unhappy", file=sys.stderr, flush=True)
            os.abort()
        if request.scheme is Scheme.DYNAMIC_W8:
            raise ConversionError("no such tensor", backend="fake", stage="quantize", op="aten.foo", hint="try fp32")
        if request.scheme is Scheme.STATIC_W8A16:
            with open("/dev/full", "w") as full:  # a device that is always full: ENOSPC
                full.write("weights")
        if request.scheme is Scheme.WEIGHT_W8:
            time.sleep(600)
        path.write_bytes(b"a whole model")
        spec = TensorSpec(name="x", shape=(1, 4), dtype="float32")
        artifact = Artifact(path=path, passport=Passport(
            name="n", format=Format.ONNX, scheme=request.scheme, file=path.name, sha256=sha256_of(path),
            size_bytes=path.stat().st_size, inputs=(spec,), outputs=(spec,), ops=(),
            fidelity=None if request.scheme is Scheme.WEIGHT_W4 else Fidelity(
                samples=1, source="example", runtime="fake 1", outputs=(OutputFidelity(
                    name="x", sqnr_db=None, exact=True, cosine=1.0, max_abs_error=0.0, non_finite=0),))))
        artifact.save_passport()
        return artifact
"""


@pytest.fixture(autouse=True)
def fake_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the entry point `fake` in `edgekit.converters`, seen by this process and its children."""
    site = tmp_path / "site"
    facts = site / "fakekit-0.1.dist-info"
    facts.mkdir(parents=True)
    (site / "fakekit.py").write_text(textwrap.dedent(FAKE))
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: fakekit\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text("[edgekit.converters]\nfake = fakekit:Converter\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))


def convert(folder: Path, schemes: list[Scheme], *, targets=("fake",), **changes):
    torch.manual_seed(0)
    options = changes.pop("options", ConversionOptions())
    given = {"calibration": [(np.arange(4, dtype=np.float32)[None],)], "name": "m"} | changes
    return convert_model(
        torch.nn.Linear(4, 4),
        (torch.zeros(1, 4),),
        targets=targets,
        schemes=schemes,
        output_dir=folder,
        options=options,
        **given,
    )


def test_a_third_party_backend_is_found_and_its_artifact_kept(tmp_path: Path) -> None:
    """An entry point is enough: the artifact lies complete under its name, and a second one takes its place."""
    outcome = convert(tmp_path / "out", [Scheme.FP32])
    assert outcome.failures == ()
    assert outcome.artifacts[0].path.read_bytes() == b"a whole model"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.fp32.fake"]
    # the same again replaces it, whole
    (tmp_path / "out" / "m.fp32.fake" / "old").write_text("of the first")
    convert(tmp_path / "out", [Scheme.FP32])
    assert sorted(path.name for path in (tmp_path / "out" / "m.fp32.fake").iterdir()) == ["model.onnx", "passport.json"]


def test_an_abort_in_the_child_is_an_error_and_what_was_finished_stays(tmp_path: Path) -> None:
    """The death is told with signal, scheme and stderr; no half file is left; the scheme before it is kept."""
    outcome = convert(tmp_path / "out", [Scheme.FP32, Scheme.STATIC_W8A8])
    assert [artifact.passport.scheme for artifact in outcome.artifacts] == [Scheme.FP32]
    (failure,) = outcome.failures
    assert (failure.target, failure.scheme) == ("fake", Scheme.STATIC_W8A8)
    assert isinstance(failure.error, ConversionError)
    assert "SIGABRT" in failure.error.message
    assert "static_w8a8 convert" in failure.error.stage
    assert "the kernel is unhappy" in failure.error.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.fp32.fake"]
    with pytest.raises(ConversionError, match="SIGABRT"):
        outcome.raise_failures()


def test_an_artifact_that_nobody_compared_with_pytorch_is_refused(tmp_path: Path) -> None:
    """A backend that writes no fidelity into its passport has proved nothing; only --allow-lossy keeps such a file."""
    outcome = convert(tmp_path / "out", [Scheme.WEIGHT_W4])
    assert "was not compared with PyTorch" in outcome.failures[0].error.message
    kept = convert(tmp_path / "out", [Scheme.WEIGHT_W4], options=ConversionOptions(allow_lossy=True))
    assert kept.artifacts[0].passport.warnings == ("kept although it was not compared with PyTorch",)


def test_a_full_disk_is_the_hosts_error(tmp_path: Path) -> None:
    """The child's disk is full: told as such, and neither as the model's nor as the backend's fault."""
    outcome = convert(tmp_path / "out", [Scheme.STATIC_W8A16])
    error = outcome.failures[0].error
    assert isinstance(error, HostError)
    assert "static_w8a16 convert: no space left on this disk" in error.message
    assert list((tmp_path / "out").iterdir()) == []


def test_a_child_that_holds_too_much_memory_is_told_with_the_limit(tmp_path: Path) -> None:
    """torch alone holds more than 100 MB: the conversion is ended, and what to raise is named."""
    outcome = convert(tmp_path / "out", [Scheme.FP32], options=ConversionOptions(memory_bytes=100_000_000))
    assert "of the 100 MB allowed" in outcome.failures[0].error.message
    assert list((tmp_path / "out").iterdir()) == []


def test_an_error_of_one_scheme_does_not_stop_the_next(tmp_path: Path) -> None:
    """A ConversionError crosses to the parent whole (stage, op, hint), and the scheme after it is made."""
    outcome = convert(tmp_path / "out", [Scheme.DYNAMIC_W8, Scheme.FP32])
    assert len(outcome.artifacts) == 1
    error = outcome.failures[0].error
    assert isinstance(error, ConversionError)
    assert (error.stage, error.op, error.hint) == ("quantize", "aten.foo", "try fp32")
    assert error.message.endswith("no such tensor")


def test_a_hang_ends_at_the_limit(tmp_path: Path) -> None:
    """The wall-clock limit ends the child with an error that says so; nothing is left behind."""
    outcome = convert(tmp_path / "out", [Scheme.WEIGHT_W8], options=ConversionOptions(timeout_seconds=2))
    assert "did not finish within 2 s" in outcome.failures[0].error.message
    assert list((tmp_path / "out").iterdir()) == []


def test_a_scheme_the_backend_has_not_is_told_with_the_nearest(tmp_path: Path) -> None:
    """No child is started for it; the other schemes are made."""
    outcome = convert(tmp_path / "out", [Scheme.FP16, Scheme.FP32])
    assert len(outcome.artifacts) == 1
    assert isinstance(outcome.failures[0].error, UnsupportedError)
    assert "cannot write fp16: nearest: fp32" in outcome.failures[0].error.message


def test_ctrl_c_ends_the_child_and_leaves_what_was_finished(tmp_path: Path) -> None:
    """An interrupt while a child hangs: it goes on up, no process and no work folder is left, fp32 stays."""
    stages: list[str] = []

    def interrupt(progress) -> None:
        stages.append(f"{progress.scheme} {progress.stage}")
        if stages[-1] == "weight_w8 convert":
            os.kill(os.getpid(), signal.SIGINT)  # to the main thread, as the terminal sends it

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "out", [Scheme.FP32, Scheme.WEIGHT_W8], on_progress=interrupt)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.fp32.fake"]
    assert stages[0] == "fp32 import"
    assert "fp32 done" in stages


def test_folders_of_a_killed_run_are_removed_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    """A work folder belongs to the process in its name: a dead one's goes, a living one's stays."""
    out = tmp_path / "out"
    dead, living = out / ".convert-4194305-abc", out / f".convert-{os.getppid()}-abc"  # above pid_max; our parent
    dead.mkdir(parents=True)
    living.mkdir()
    convert(out, [Scheme.FP32])
    assert not dead.exists()
    assert living.exists()


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"targets": ("onyx",)}, UserError, "did you mean 'onnx'"),
        ({"name": "../m"}, UserError, "cannot name an artifact"),
        ({"calibration": []}, UserError, "needs calibration"),
        ({"calibration": [(np.full((1, 4), np.nan, np.float32),)]}, WorkloadError, "NaN or infinite"),
        ({"verification": [(np.zeros((2, 4), np.float32),)]}, WorkloadError, "verification sample 0"),
    ],
)
def test_a_bad_request_is_refused_before_any_child(tmp_path: Path, changes, error: type[Exception], told: str) -> None:
    """Unknown target, unsafe name, unfit samples: one clear error, and nothing is written."""
    with pytest.raises(error) as caught:
        convert(tmp_path / "out", [Scheme.STATIC_W8A8], **changes)
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_program_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """convert_program opens no file whose sha256 is not the given one."""
    from edgekit.converters.conversion import convert_program

    foreign = tmp_path / "program.pt2"
    foreign.write_bytes(b"anything")
    with pytest.raises(ArtifactError, match="not the program edgekit wrote"):
        convert_program(
            foreign, "0" * 64, name="m", targets=["fake"], schemes=[Scheme.FP32], output_dir=tmp_path / "out"
        )
