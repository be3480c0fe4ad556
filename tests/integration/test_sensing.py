"""A sensed student through a whole recipe: its files take m numbers, the node's encoder makes them, in every format."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit
from edgekit.artifact import Artifact
from edgekit.compress.storage import load_student
from edgekit.pipeline.run import RunOptions, run_recipe
from edgekit.recipe import Recipe
from edgekit.sensing.deployment import split
from edgekit.sensing.unrolled import UnrolledRecovery, image_sensor

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

DIGITS = Path(__file__).parents[1] / "support" / "digits"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def test_a_recipe_with_a_front_end(tmp_path: Path) -> None:
    """The teacher's file takes the 64 pixels, the students' 16 measurements; accuracy and SQNR are judged as ever."""
    shutil.copy(DIGITS / "workload.py", tmp_path)
    training = {"epochs": 8, "batch_size": 64, "learning_rate": 0.02, "threads": 1}
    recipe = Recipe.model_validate(
        {
            "name": "sensed",
            "workload": "workload.py:workload",
            "teacher": {"train": training},
            "student": [{"sense": {"ratio": 0.25, "block": 4, "learned": True}}, {"finetune": training}],
            "convert": {
                "to": ["tflite", "executorch", "onnx"],
                "schemes": ["fp32", "static_w8a8"],
                "calibration": 64,
                "verification": 32,
            },
            "devices": ["local"],
            "plan": {"cold_starts": 1, "min_samples": 50, "min_seconds": 0.05, "warmup_max_seconds": 0.5},
        }
    )
    outcome = run_recipe(recipe, RunOptions(workspace=tmp_path / "runs", base=tmp_path))
    assert outcome.error is None
    report = outcome.report
    assert len(report.rows) == 7
    taken = {p.name: p.inputs[0].shape for p in report.artifacts}
    assert len(taken) == 13
    for name, shape in taken.items():
        numbers = int(np.prod([int(n) for n in shape]))
        assert numbers == (16 if name.startswith("student") else 64), name
    for passport in report.artifacts:
        if passport.name.startswith("encoder"):
            assert int(np.prod([int(n) for n in passport.outputs[0].shape])) == 16, passport.name
    for row in report.rows:
        assert row.status == "ok", (row.id, row.error)
        assert row.sqnr_db is not None
        assert row.sqnr_db > (60 if row.scheme == "fp32" else 12), row.id  # the digits recipe's own gate for int8
        assert row.accuracy is not None
        assert row.accuracy.value > 0.7, row.id  # ten classes: chance is 0.1
    artifacts = outcome.folder / "artifacts"
    assert (artifacts / "encoder.static_w8a8.tflite").is_dir()

    stage = next((tmp_path / "runs" / "stages").glob("2-finetune-*/student.json")).parent
    workload = edgekit.load_workload("workload.py:workload", base=tmp_path).workload
    student = load_student(stage, workload.build_model(), workload.example_inputs)
    sensor, reader = split(student.module)
    signal = workload.evaluation[0][0][None]
    _answers_alike(Artifact.open(artifacts / "encoder.fp32.onnx"), signal, sensor(signal))
    _answers_alike(Artifact.open(artifacts / "student.fp32.onnx"), sensor(signal), reader(sensor(signal)))

    again = run_recipe(recipe, RunOptions(workspace=tmp_path / "runs", base=tmp_path))
    assert again.did_nothing


def _answers_alike(artifact: Artifact, given: torch.Tensor, expected: torch.Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(artifact.path))
    (output,) = session.run(None, {session.get_inputs()[0].name: given.detach().numpy()})
    np.testing.assert_allclose(output, expected.detach().numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["tflite", "executorch", "onnx"])
def test_unrolled_recovery_converts(target: str, tmp_path: Path) -> None:
    """A recovery network becomes a file of each format, in fp32 and int8, checked against PyTorch by the converter."""
    torch.manual_seed(0)
    sensor = image_sensor(0.25, block=4)
    model = UnrolledRecovery(sensor, stages=2, channels=4).eval()
    images = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = [(sensor(image[None]).numpy(),) for image in images]
    for scheme in ("fp32", "static_w8a8"):
        (artifact,) = edgekit.convert(
            model,
            (torch.from_numpy(samples[0][0]),),
            targets=[target],
            scheme=scheme,
            calibration=samples[:16],
            verification=samples[16:],
            output_dir=tmp_path,
        )
        assert artifact.passport.inputs[0].shape[0] == 1
        assert int(np.prod([int(n) for n in artifact.passport.inputs[0].shape])) == 64
        assert int(np.prod([int(n) for n in artifact.passport.outputs[0].shape])) == 256
        # sums and thresholds are float where a runtime has no integer form of them; the convolutions never
        assert not [left for left in artifact.passport.unquantized_ops if "Conv" in left.op or "CONV" in left.op]
