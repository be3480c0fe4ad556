"""Packs of students by the command line: loaded again, small because of zeros and codebooks, as differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.cli.app import run_command_line
from edgekit.compress.share import share
from edgekit.compress.sparsify import sparsify
from edgekit.compress.storage import STUDENT_NAME, WEIGHTS_NAME, load_student, save_student
from edgekit.compress.student import Student
from edgekit.compress.weight_options import ShareOptions, SparsifyOptions
from edgekit.packing import files


def test_the_names_are_those_of_a_stored_student() -> None:
    assert (files.WEIGHTS_NAME, files.STUDENT_NAME) == (WEIGHTS_NAME, STUDENT_NAME)


def small_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    sparse = sparsify(Student(module=module.eval()), SparsifyOptions(sparsity=0.9))
    return share(sparse, ShareOptions(bits=4), seed=0)


def test_a_student_is_packed_and_loaded_again(tmp_path: Path) -> None:
    """The command line: a student's folder, small; unpacked it loads with the same weights; nothing is overwritten."""
    student = small_student()
    save_student(student, tmp_path / "student")
    packed = tmp_path / "s.ekpack"
    assert run_command_line(["pack", str(tmp_path / "student"), "-o", str(packed)]) == 0
    weights = 4 * sum(p.numel() for p in student.module.parameters())
    assert packed.stat().st_size < weights / 10
    assert run_command_line(["unpack", str(packed), "-o", str(tmp_path / "out")]) == 0
    fresh = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    loaded = load_student(tmp_path / "out", fresh, (torch.zeros(1, 64),))
    for a, b in zip(student.module.parameters(), loaded.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run_command_line(["unpack", str(packed), "-o", str(tmp_path / "out")]) == 0  # the same again
    (tmp_path / "out" / "student.json").write_text("{}")
    assert run_command_line(["unpack", str(packed), "-o", str(tmp_path / "out")]) == 2
    assert (tmp_path / "out" / "student.json").read_text() == "{}"
    assert run_command_line(["unpack", str(packed), "-o", str(tmp_path / "out"), "--force"]) == 0
    assert (tmp_path / "out" / "student.json").read_bytes() == (tmp_path / "student" / "student.json").read_bytes()


def test_a_difference_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--base takes the old student or its pack; without it unpacking is a model error that names the way out."""
    old, new = small_student(), small_student()
    with torch.no_grad():
        new.module[0].weight.mul_(1.25)
    for name, student in (("old", old), ("new", new)):
        save_student(student, tmp_path / name)
    assert run_command_line(["pack", str(tmp_path / "old"), "-o", str(tmp_path / "old.ekpack")]) == 0
    for base in ("old", "old.ekpack"):
        capsys.readouterr()
        arguments = ["pack", str(tmp_path / "new"), "-o", str(tmp_path / "d.ekpack"), "--base", str(tmp_path / base)]
        assert run_command_line([*arguments, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["size_bytes"] < (tmp_path / "old.ekpack").stat().st_size / 2
        assert run_command_line(["unpack", str(tmp_path / "d.ekpack"), "-o", str(tmp_path / "x")]) == 6
        assert "--base" in capsys.readouterr().err
        out = tmp_path / f"from-{base}"
        assert (
            run_command_line(["unpack", str(tmp_path / "d.ekpack"), "-o", str(out), "--base", str(tmp_path / base)])
            == 0
        )
        assert (out / "weights.safetensors").read_bytes() == (tmp_path / "new" / "weights.safetensors").read_bytes()
