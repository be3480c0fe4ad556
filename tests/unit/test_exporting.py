"""Export: what it must not touch, which line its refusals name, which files it opens."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from edgekit.errors import ArtifactError, ExportError  # noqa: E402
from edgekit.exporting import (  # noqa: E402
    count_macs,
    count_parameters,
    export_program,
    load_own_program,
    save_program,
)


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = torch.nn.BatchNorm2d(8)
        self.linear = torch.nn.Linear(8 * 4 * 4, 5)

    def forward(self, x):
        return self.linear(torch.relu(self.norm(self.conv(x))).flatten(1))


class Branches(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line the error must name
            return x
        return -x


class Measures(torch.nn.Module):
    def forward(self, x):
        n = int(x.max().item())  # the line the error must name
        return x[:n]


def line_of(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"{__file__}:{next(i for i, line in enumerate(lines, 1) if text in line)}"


def test_export_leaves_the_users_module_as_it_was() -> None:
    """Training flags (each submodule's own) and batch-norm statistics are the same after an export."""
    torch.manual_seed(0)
    model = Small().train()
    model.norm.eval()  # a user who froze one layer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_program(model, (torch.randn(2, 3, 8, 8),), name="small")
    assert model.training
    assert model.conv.training
    assert not model.norm.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_program_is_the_model_in_eval_mode() -> None:
    """What is exported answers as the model does in eval mode, batch norm included."""
    torch.manual_seed(0)
    model, x = Small().train(), torch.randn(2, 3, 8, 8)
    program = export_program(model, (x,), name="small")
    with torch.no_grad():
        assert torch.equal(program.module()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("model", "line", "advice"),
    [(Branches(), "if x.sum() > 0:  #", "torch.where"), (Measures(), "int(x.max().item())  #", ".item()")],
)
def test_a_model_that_cannot_be_exported_is_told_by_its_own_line(model, line: str, advice: str) -> None:
    """The error names file and line of the user's model, quotes it, and says what to write instead."""
    with pytest.raises(ExportError) as caught:
        export_program(model, (torch.rand(4) * 4,), name="bad")
    assert caught.value.source == line_of(line)
    assert line.removesuffix("  #") in caught.value.message
    assert advice in (caught.value.hint or "")


def test_inputs_that_do_not_fit_are_told_apart_from_export_trouble() -> None:
    """A wrong shape names the given shape and the line it failed at, and blames the inputs."""
    with pytest.raises(ExportError, match="does not run on its example inputs") as caught:
        export_program(Small(), (torch.randn(1, 1, 8, 8),), name="small")
    assert "(1, 1, 8, 8) float32" in caught.value.message
    assert caught.value.source == line_of("return self.linear(torch.relu(self.norm")


@pytest.mark.parametrize(
    ("inputs", "told"),
    [(torch.zeros(1, 3, 8, 8), "write (x,)"), ((), "non-empty tuple"), (([1.0],), "input 0 is a list")],
)
def test_inputs_that_are_no_tuple_of_tensors_are_refused(inputs, told: str) -> None:
    """A bare tensor, nothing, or a list of numbers: each is named with the way to write it."""
    with pytest.raises(ExportError) as caught:
        export_program(Small(), inputs, name="small")
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_only_our_own_program_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with another sha256 is refused before torch.export.load, which can run code, sees it."""
    path = tmp_path / "program.pt2"
    digest = save_program(export_program(Small(), (torch.zeros(1, 3, 8, 8),), name="small"), path)
    assert load_own_program(path, digest).graph_signature.user_inputs
    path.write_bytes(path.read_bytes() + b"x")
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("a foreign file was opened"))
    with pytest.raises(ArtifactError, match="not the program edgekit wrote"):
        load_own_program(path, digest)


def test_macs_and_parameters_are_those_of_the_textbook() -> None:
    """Conv: N·H'·W'·Cout·Cin·k²; linear: N·in·out. Buffers (running means) are no parameters."""
    program = export_program(Small(), (torch.zeros(2, 3, 8, 8),), name="small")
    assert count_macs(program) == 2 * (4 * 4 * 8 * 3 * 9) + 2 * (128 * 5)
    assert count_parameters(program) == (8 * 3 * 9 + 8) + (8 + 8) + (128 * 5 + 5)
