"""The examples' recipes and workloads: they load, split honestly, and say what data they lack."""

from __future__ import annotations

import importlib.util
import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.errors import MissingDependencyError, WorkloadError
from edgekit.recipe import load_recipe
from edgekit.workload import Workload, load_workload

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("vision", "speech", "text", "sensor")


def loaded(name: str, **params: object) -> Workload:
    return load_workload(f"{name}/workload.py", params, base=EXAMPLES).workload


def gives_logits(workload: Workload) -> bool:
    """The model takes the example inputs and a batch of training data, and gives a logit for each class."""
    model = workload.build_model().eval()
    assert workload.train is not None
    batch = torch.stack([workload.train[i][0] for i in range(3)])
    return model(*workload.example_inputs).shape[1] == model(batch).shape[1] == len(workload.classes)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_goes_to_int8_in_three_formats(name: str) -> None:
    """Each recipe is valid, compresses, and converts to int8 for TFLite, ExecuTorch and ONNX."""
    recipe = load_recipe(EXAMPLES / name / "recipe.yaml")
    assert recipe.convert.to == ("tflite", "executorch", "onnx")
    assert [scheme.value for scheme in recipe.convert.schemes] == ["static_w8a8"]
    assert len(recipe.student) == 2


def test_vision_takes_the_digits_that_scikit_learn_brings() -> None:
    """1,797 digits, none on both sides."""
    workload = loaded("vision", data="digits")
    assert workload.train is not None
    assert (len(workload.train), len(workload.evaluation)) == (1438, 359)
    assert gives_logits(workload)
    with pytest.raises(WorkloadError, match="no such path or data set"):
        loaded("vision", data="digit")


def test_text_splits_by_the_text_itself(tmp_path: Path) -> None:
    """A file of lines: a text counts once, so it is on one side; numbers are below the vocabulary; rare labels go."""
    file = tmp_path / "lines.tsv"
    file.write_text("".join(f"{'net' if i % 2 else 'mail'}\tserver {i}\n" for i in range(400)) * 2 + "x11\tone\n")
    workload = loaded("text", data=str(file), classes=2)
    assert workload.train is not None
    assert set(workload.classes) == {"net", "mail"}
    assert len(workload.train) + len(workload.evaluation) == 400
    assert 20 < len(workload.evaluation) < 60
    seen = [workload.train[i][0].tolist() for i in range(len(workload.train))]
    assert workload.example_inputs[0].dtype == torch.int64
    assert 0 <= min(map(min, seen)) < max(map(max, seen)) < 4096
    assert gives_logits(workload)
    with pytest.raises(WorkloadError, match="no such file") as caught:
        loaded("text", data="nowhere.tsv")
    assert "apt-get update" in (caught.value.hint or "")


@pytest.mark.skipif(importlib.util.find_spec("seglearn") is None, reason="pip install 'edgekit[examples]'")
def test_sensor_tests_on_people_it_has_not_seen() -> None:
    """Windows of the unseen people are the test, all others the training; standardised by the latter."""
    workload = loaded("sensor")
    fewer = loaded("sensor", unseen="10")
    assert workload.train is not None
    assert fewer.train is not None
    assert len(workload.train) + len(workload.evaluation) == len(fewer.train) + len(fewer.evaluation)
    assert len(fewer.evaluation) < len(workload.evaluation)
    windows = torch.stack([workload.train[i][0] for i in range(len(workload.train))])
    assert windows.mean((0, 2)).abs().max() < 0.1  # overlapping windows weigh the ends of a recording less
    assert gives_logits(workload)
    with pytest.raises(WorkloadError, match="leaves nobody on one side"):
        loaded("sensor", unseen="11")


def test_sensor_says_which_package_brings_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without seglearn: what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "seglearn" else find(name, *a))
    with pytest.raises(MissingDependencyError, match="seglearn") as caught:
        loaded("sensor")
    assert caught.value.hint == "pip install 'edgekit[examples]'"


def test_speech_hears_its_test_speaker_only_in_the_test(tmp_path: Path) -> None:
    """A folder with both files: the split is by speaker; without one, and without the speaker, it says what to give."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        rows = [(digit, speaker) for digit in range(10) for speaker in ("ann", "bob", "theo")]
        columns = {
            "wav": [tone(rng.integers(2000, 12000)) for _ in rows],
            "label": np.array([digit for digit, _ in rows], np.uint8),
            "speaker": [speaker for _, speaker in rows],
        }
        parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    workload = loaded("speech", data=str(tmp_path))
    assert workload.train is not None
    assert (len(workload.train), len(workload.evaluation)) == (40, 20)
    assert workload.example_inputs[0].shape == (1, 1, 61, 32)
    assert gives_logits(workload)
    with pytest.raises(WorkloadError, match="no package ships the spoken digits"):
        loaded("speech")
    with pytest.raises(WorkloadError, match="no speaker 'lucas'") as caught:
        loaded("speech", data=str(tmp_path), speaker="lucas")
    assert "ann, bob, theo" in (caught.value.hint or "")


def tone(length: int) -> bytes:
    """A WAV of a 440 Hz tone, `length` samples at 8 kHz."""
    sound = (8000 * np.sin(2 * np.pi * 440 * np.arange(length) / 8000)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(sound.tobytes())
    return buffer.getvalue()
