"""The README's own model runs as it is printed, and so does what `edgekit init` writes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.report.model import Verdict
from edgekit.report.write import read_report

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

README = (Path(__file__).parents[2] / "README.md").read_text()


def run(folder: Path) -> None:
    argv = [sys.executable, "-m", "edgekit", "run", "recipe.yaml", "-q", "--set", "convert.to=[onnx]"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(folder / "runs" / "latest" / "report.json")
    assert report.verdict is Verdict.PASS
    assert {row.scheme for row in report.rows} == {"fp32", "static_w8a8"}


def test_the_readmes_model_runs_as_printed(tmp_path: Path) -> None:
    """The two blocks, saved under the names they give, pass their own gates."""
    for name, kind in (("workload.py", "python"), ("recipe.yaml", "yaml")):
        block = re.search(rf"```{kind}\n# {re.escape(name)}\n(.*?)```", README, re.DOTALL)
        assert block is not None, name
        (tmp_path / name).write_text(block[1])
    run(tmp_path)


def test_what_init_writes_runs_as_it_is(tmp_path: Path) -> None:
    """`edgekit init` and `edgekit run`, nothing edited in between."""
    subprocess.run([sys.executable, "-m", "edgekit", "init", "."], cwd=tmp_path, check=True, capture_output=True)
    run(tmp_path)
