"""`edgekit why` on a classifier one layer of which no 8-bit range can hold."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from edgekit.api import convert_workload
from edgekit.artifact import Artifact, RuleAction, Scheme
from edgekit.cli.app import run_command_line
from edgekit.converters.base import QuantizationOptions
from edgekit.converters.target_run import ConversionOptions
from edgekit.diagnosis.explain import WhyOptions, why
from edgekit.diagnosis.page import render_page
from edgekit.diagnosis.subject import lowest_sqnr
from edgekit.diagnosis.values import Diagnosis
from edgekit.errors import WorkloadError

WORKLOAD = str(Path(__file__).parents[1] / "support" / "broken_workload.py")
FORMATS = ("tflite", "onnx", "executorch")
pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

BREAKING = {"conv2d_1", "relu_1"}
"""`wide` and its activation: which of the two a file shows depends on what it fuses."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The int8 artifacts, which are far below the floor and kept on purpose."""
    outcome = convert_workload(
        f"{WORKLOAD}:workload",
        params={},
        targets=FORMATS,
        schemes=["fp32", "static_w8a8"],
        output_dir=tmp_path_factory.mktemp("broken"),
        calibration=32,
        verification=16,
        options=ConversionOptions(quantization=QuantizationOptions(), allow_lossy=True, jobs=2),
    )
    outcome.raise_failures()
    return {a.passport.format.value: a for a in outcome.artifacts if a.passport.scheme is Scheme.STATIC_W8A8}


@pytest.fixture(scope="module")
def found(made: dict[str, Artifact]) -> Diagnosis:
    """All three diagnosed at once."""
    options = WhyOptions(samples=4, suggest=False, sensitivity=True)
    return why([artifact.path for artifact in made.values()], f"{WORKLOAD}:workload", options=options)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_breaking_layer_is_named(found: Diagnosis, kind: str) -> None:
    """In each format the first layer that breaks is the one that was broken, with its module and the reason."""
    diagnosis = next(one for one in found.artifacts if one.format == kind)
    assert diagnosis.first_break in BREAKING
    layer = next(layer for layer in found.layers if layer.node == diagnosis.first_break)
    assert layer.module == "wide"
    assert "channels are one value" in diagnosis.reason
    ranked = found.sensitivity[diagnosis.name]
    assert {ranked[0].node, ranked[1].node} & BREAKING


@pytest.mark.parametrize("kind", FORMATS)
def test_looking_changes_nothing(found: Diagnosis, kind: str) -> None:
    """The tapped file's own outputs are those of the untapped one: there is no note that they differ."""
    diagnosis = next(one for one in found.artifacts if one.format == kind)
    assert diagnosis.notes == ()
    assert len(diagnosis.layers) >= 6  # input, three or four convolutions with their ReLU, mean, head


def test_the_page_is_offline_and_escaped(found: Diagnosis) -> None:
    """The page loads nothing, and a name from a file cannot become markup."""
    hostile = "<img src=x onerror=alert(1)>"
    layers = tuple(one.model_copy(update={"module": hostile}) for one in found.layers)
    page = render_page(found.model_copy(update={"layers": layers, "workload": hostile}))
    assert "<img src=x" not in page
    assert "default-src 'none'" in html.unescape(page)
    assert 'src="http' not in page


@pytest.fixture(scope="module")
def repaired(made: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> tuple[Diagnosis, Path]:
    """What was tried for the ONNX file, and the folder for what is kept."""
    folder = tmp_path_factory.mktemp("applied")
    options = WhyOptions(samples=4, apply=True, output=folder)
    return why([made["onnx"].path], f"{WORKLOAD}:workload", options=options), folder


def test_the_rule_repairs_on_held_out_data(repaired: tuple[Diagnosis, Path], made: dict[str, Artifact]) -> None:
    """`--apply` keeps an artifact whose passport has the rules, far better on data the choice did not see."""
    diagnosis, folder = repaired
    artifact = Artifact.open(folder / made["onnx"].folder.name)
    assert artifact.passport.calibration is not None
    rules = artifact.passport.calibration.rules
    assert {rule.action for rule in rules} <= {RuleAction.FLOAT, RuleAction.INT16}
    assert rules
    (record,) = diagnosis.repairs
    assert record.rules == rules
    before, after = lowest_sqnr(record.held_out_before), lowest_sqnr(artifact.passport.fidelity)
    assert before is not None
    assert after is not None
    # 8-bit layers of a sound network have over 30 dB each, and there are five
    assert after > 20.0 > before + 10.0
    assert made["onnx"].passport.sha256 != artifact.passport.sha256


def test_a_bound_is_verified_on_other_data(made: dict[str, Artifact]) -> None:
    """The search ends with float layers that hold the bound; the verdict is of evaluation data, with its interval."""
    options = WhyOptions(samples=2, max_drop=4.0, searched=64, verified=300)
    (result,) = why([made["onnx"].path], f"{WORKLOAD}:workload", options=options).searches
    assert result.float_layers
    assert set(result.float_layers) & BREAKING
    assert len(result.float_layers) < result.layers
    assert result.trials[0][0] == 0
    assert (result.trials[0][1] or 0.0) > 4.0
    assert result.on_search is not None
    assert "training" in result.on_search.data
    assert result.on_evaluation is not None
    assert "300 evaluation" in result.on_evaluation.data
    drop = result.on_evaluation.drop
    assert drop.low <= drop.value <= drop.high
    assert (result.verdict == "PASS") == (drop.high * 100 <= 4.0)


def test_a_bound_that_is_not_held_fails(made: dict[str, Artifact]) -> None:
    """Without time to search, the file as it is is judged, and does not pass."""
    options = WhyOptions(samples=2, max_drop=1.0, searched=64, verified=300, budget_seconds=0.001)
    (result,) = why([made["onnx"].path], f"{WORKLOAD}:workload", options=options).searches
    assert result.verdict == "FAIL"
    assert result.stopped is not None


def test_other_weights_are_refused(made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]) -> None:
    """An artifact is not diagnosed against weights it was not made from, even where its outputs are far off anyhow."""
    with pytest.raises(WorkloadError, match="not made from this workload's weights"):
        why([made["onnx"].path], f"{WORKLOAD}:other_weights", options=WhyOptions(samples=2, suggest=False))
    status = run_command_line(
        ["why", str(made["onnx"].folder), "--workload", f"{WORKLOAD}:other_weights", "--no-suggest", "--samples", "2"]
    )
    assert status == 2
    assert "--weights" in capsys.readouterr().err


def test_layers_on_a_device(made: dict[str, Artifact], tmp_path: Path) -> None:
    """A device gives each layer's value; this host, as a device, gives the very same."""
    options = WhyOptions(samples=2, suggest=False, device="local", workspace=tmp_path)
    (diagnosis,) = why([made["tflite"].path], f"{WORKLOAD}:workload", options=options).artifacts
    known = [layer for layer in diagnosis.layers if layer.device_exact is not None]
    assert len(known) >= 4
    assert diagnosis.device_differs is None
    assert all(layer.device_exact for layer in known)
