"""The command line: every command explains itself, and every wrong input is one sentence with an exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    *("run", "demo", "convert", "check", "converters", "inspect", "benchmark", "devices", "compare", "report"),
    *("init", "doctor"),
)

WORKLOAD = """\
import torch, edgekit
from torch import nn

DATA = torch.utils.data.TensorDataset(torch.rand(16, 4), torch.zeros(16, dtype=torch.long))

def make(model=None, example=None, **more):
    return edgekit.Workload(name="w", model=model or nn.Linear(4, 2), example_inputs=example or (torch.zeros(1, 4),),
                            evaluation=DATA, train=DATA, **more)

def good(): return make()
def number(): return 3
def wrong_shape(): return make(example=(torch.zeros(1, 5),))

class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def branches(): return make(model=Branches())

def not_finite():
    bad = torch.utils.data.TensorDataset(torch.full((16, 4), float("nan")), torch.zeros(16, dtype=torch.long))
    return make(calibration=bad)

def empty(): return make(calibration=[])
"""


def edgekit(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    environment.pop("EDGEKIT_DEBUG", None)
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *argv],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "workload.py").write_text(WORKLOAD)
    (tmp_path / "recipe.yaml").write_text("name: r\nworkload: workload.py:good\nconvert: {to: [onnx]}\n")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, tmp_path: Path) -> None:
    """Each command's --help has an example and offers --json."""
    done = edgekit(command, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert f"Example: edgekit {command}" in done.stdout
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["run", "none.yaml"], 2, "none.yaml: no such recipe"),
        (["run", "."], 2, "is a folder"),
        (["run", "workload.py"], 2, "workload.py"),
        (["run", "recipe.yaml", "--set", "convert.schemes=[int8]"], 2, "unknown value 'int8'"),
        (["run", "recipe.yaml", "--set", "plans.threads=2"], 2, "did you mean 'plan'"),
        (["run", "recipe.yaml", "--data", "x"], 2, "takes no parameter 'data'"),
        (["run", "recipe.yaml", "--set", "workload=workload.py:god"], 2, "did you mean 'good'"),
        (["run", "recipe.yaml", "--set", "workload=workload.py:number"], 2, "returned int"),
        (["convert", "none.py:f"], 2, "no such file"),
        (["convert", "workload.py:good", "--to", "tflight"], 2, "did you mean 'tflite'"),
        (["convert", "workload.py:good", "--scheme", "static_w8a"], 2, "did you mean 'static_w8a8'"),
        (["convert", "workload.py:good", "--scheme", ","], 2, "name at least one"),
        (["convert", "workload.py:empty"], 2, "calibration is empty"),
        (["convert", "workload.py:good", "--ranges", "mimax"], 2, "did you mean 'minmax'"),
        (["convert", "workload.py:good", "--rule", "fc"], 2, "write it as NODE=ACTION"),
        (["convert", "workload.py:good", "--rule", "fc=flaot"], 2, "did you mean 'float'"),
        (["convert", "workload.py:good", "--dynamic", "batch"], 2, "'batch' is no dynamic axis"),
        (["convert", "workload.py:good", "--signature", "big=1by4"], 2, "is no list of shapes"),
        (["convert", "workload.py:good", "--input-layout", "nhwc"], 2, "no input has a layout"),
        (["convert", "workload.py:good", "--io-dtype", "int4"], 2, "not one of int8, float32"),
        (["check", "workload.py:god"], 2, "did you mean 'good'"),
        (["converters", "--to", "tflight"], 2, "did you mean 'tflite'"),
        (["doctor", "none.onnx"], 6, "none.onnx: no such artifact"),
        (["inspect", "none.tflite"], 6, "none.tflite"),
        (["inspect", "workload.py"], 6, "not a model format"),
        (["inspect", "model.pt2"], 6, "can run code"),
        (["benchmark", "none.onnx"], 6, "none.onnx: no such artifact"),
        (["report", "none", "-w", "empty"], 2, "no run 'none'"),
        (["compare", "a", "b", "-w", "empty"], 12, "no run 'a'"),
        (["compare", "a", "b", "--max-regress", "lots", "-w", "empty"], 12, ""),
        (["devices", "--nonsense"], 2, "nonsense"),
        (["nonsense"], 2, "nonsense"),
        (["init", "recipe.yaml"], 2, "recipe.yaml"),
    ],
)
def test_wrong_input_is_one_sentence(folder: Path, argv: list[str], status: int, said: str) -> None:
    """No traceback, the reason on stderr, the exit status of its kind."""
    done = edgekit(*argv, folder=folder)
    assert done.returncode == status, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("function", "status", "said"),
    [
        ("wrong_shape", 6, "does not run on its example inputs ((1, 5) float32)"),
        ("branches", 6, "workload.py:16"),
        ("not_finite", 2, "finite"),
    ],
)
def test_a_model_that_cannot_be_converted_says_where(folder: Path, function: str, status: int, said: str) -> None:
    """The user's own line, and nothing written."""
    done = edgekit("convert", f"workload.py:{function}", "--to", "onnx", folder=folder)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("artifacts/*/*"))


def test_errors_are_json_where_json_was_asked_for(folder: Path) -> None:
    """`--json` keeps stdout machine-readable in failure too."""
    done = edgekit("run", "none.yaml", "--json", folder=folder)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "RECIPE"
    assert error["blame"] == "user"
    assert error["hint"]


def test_debug_shows_the_traceback(folder: Path) -> None:
    """`--debug`, in any place, adds what a developer needs."""
    assert "Traceback" in edgekit("run", "none.yaml", "--debug", folder=folder).stderr


def test_init_writes_what_it_says_and_never_overwrites(tmp_path: Path) -> None:
    """Two files; a second time is refused and leaves the user's changes alone."""
    done = edgekit("init", "mine", "--json", folder=tmp_path)
    written = [Path(path) for path in json.loads(done.stdout)]
    assert sorted(path.name for path in written) == ["recipe.yaml", "workload.py"]
    (tmp_path / "mine" / "workload.py").write_text("mine")
    assert edgekit("init", "mine", folder=tmp_path).returncode == 2
    assert (tmp_path / "mine" / "workload.py").read_text() == "mine"
    assert edgekit("init", "mine", "--force", folder=tmp_path).returncode == 0


def test_help_imports_no_toolkit(tmp_path: Path) -> None:
    """The core starts without torch, numpy, pydantic or SQLAlchemy; a promise a stopwatch could not keep."""
    code = (
        "import sys, edgekit.cli.app as a; a.run_command_line(['--help']); "
        "print([m for m in ('torch', 'numpy', 'pydantic', 'sqlalchemy', 'plotly', 'jinja2') if m in sys.modules], "
        "file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_an_unwritable_workspace_is_a_host_error(folder: Path) -> None:
    """A file where the workspace should be, and a full disk, are named."""
    (folder / "runs").write_text("in the way")
    done = edgekit("run", "recipe.yaml", "-q", folder=folder)
    assert done.returncode == 2
    assert "must be a folder" in done.stderr
