"""The wheel by itself: what `pip install edgekit` gives, with no extra and no source tree."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import edgekit
from edgekit.errors import MissingDependencyError
from edgekit.extras import missing_dependency
outcome = {}
for module in pkgutil.walk_packages(edgekit.__path__, "edgekit.", onerror=lambda name: None):
    if module.name.endswith("__main__") or "device_scripts" in module.name:
        continue
    try:
        importlib.import_module(module.name)
        outcome[module.name] = "ok"
    except MissingDependencyError as e:
        outcome[module.name] = "extra " + e.extra
    except ModuleNotFoundError as e:
        missing = missing_dependency(e, what=module.name)
        if missing is None:
            raise
        outcome[module.name] = "extra " + missing.extra
heavy = [n for n in ("torch", "onnx", "onnxruntime", "ai_edge_litert", "executorch") if n in sys.modules]
print(json.dumps({"outcome": outcome, "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment that holds the wheel and its core dependencies only."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([binaries / "pip", "install", "--quiet", wheel], check=True, capture_output=True, text=True)
    return binaries


def run(binaries: Path, *argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [binaries / argv[0], *argv[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_help_runs(bare: Path, tmp_path: Path) -> None:
    """The command line works with no extra."""
    done = run(bare, "edgekit", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "benchmark" in done.stdout


def test_every_module_imports_or_names_its_extra(bare: Path, tmp_path: Path) -> None:
    """A module imports, or fails for a toolkit that an extra brings; command line, devices and reports all import."""
    done = run(bare, "python", "-c", IMPORT_ALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["heavy"] == []
    outcome = told["outcome"]
    light = ("edgekit.cli", "edgekit.pipeline", "edgekit.report", "edgekit.benchmarks", "edgekit.runtimes")
    assert {m: o for m, o in outcome.items() if m.startswith(light) and o != "ok"} == {}
    assert {o for o in outcome.values()} <= {"ok", "extra train", "extra tflite", "extra executorch", "extra onnx"}
    assert len(outcome) > 60


def test_what_needs_an_extra_says_so(bare: Path, tmp_path: Path) -> None:
    """Using an absent toolkit is one sentence with the command that installs it, and no traceback."""
    assert run(bare, "edgekit", "init", "m", folder=tmp_path).returncode == 0
    done = run(bare, "edgekit", "run", "m/recipe.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "pip install 'edgekit[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_devices_and_doctor_need_no_extra(bare: Path, tmp_path: Path) -> None:
    """`edgekit devices` lists this host and `edgekit doctor` names every missing extra."""
    done = run(bare, "edgekit", "devices", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "local" in [device["spec"] for device in json.loads(done.stdout)]
    findings = json.loads(run(bare, "edgekit", "doctor", "--json", folder=tmp_path).stdout)
    hints = {finding["what"]: finding["hint"] for finding in findings}
    assert hints["extra: tflite"] == "pip install 'edgekit[tflite]'"


def test_the_wheel_holds_no_test_and_its_data(bare: Path) -> None:
    """Templates, the demo recipe and the typing marker ship; tests, links and benchmarks of the repo do not."""
    (wheel,) = (bare.parent.parent / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"edgekit/py.typed", "edgekit/demo/recipe.yaml", "edgekit/scaffold/templates/recipe.yaml.template"} <= names
    assert any(name.startswith("edgekit/report/templates/") and name.endswith(".css") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"edgekit", "edgekit-0.1.0.dist-info"}
