"""Workloads: found, loaded and checked, with the user's own line in every error."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs edgekit[train]")

from edgekit.errors import WorkloadError  # noqa: E402
from edgekit.workload import load_workload, sample_digest  # noqa: E402

GOOD = """\
import torch, edgekit
from helper_of_mine import CLASSES

def workload(size: int = 4):
    data = torch.utils.data.TensorDataset(torch.zeros(8, size), torch.zeros(8, dtype=torch.long))
    return edgekit.Workload(name="w", model=torch.nn.Linear(size, 2), example_inputs=(torch.zeros(1, size),),
                            evaluation=data, train=data, classes=CLASSES)

def other():
    return 42

def broken():
    raise ValueError("my own mistake")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "workload.py").write_text(GOOD)
    (tmp_path / "helper_of_mine.py").write_text("CLASSES = ('a', 'b')\n")
    return tmp_path


def test_a_file_and_a_function_give_a_workload(folder: Path) -> None:
    """`file.py:function`, the bare file and its folder all name it; parameters reach the function."""
    for reference in ("workload.py:workload", "workload.py", "."):
        loaded = load_workload(reference, {"size": 6}, base=folder)
        assert loaded.workload.example_inputs[0].shape == (1, 6)
        assert loaded.workload.classes == ("a", "b")


@pytest.mark.parametrize(
    ("reference", "params", "said"),
    [
        ("none.py:workload", {}, "no such file"),
        ("workload.py:workloads", {}, "no function 'workloads'; did you mean 'workload'"),
        ("no_such_module_here:f", {}, "no module named 'no_such_module_here'"),
        ("workload.py:other", {}, "returned int, not an edgekit.Workload"),
        ("workload.py:broken", {}, r"ValueError: my own mistake \(.*workload.py:13\)"),
        ("workload.py:workload", {"sizes": 3}, "takes no parameter 'sizes'; did you mean 'size'"),
        ("workload.py:work load", {}, "is not a workload"),
        ("../../etc/passwd:f", {}, "no such file"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, reference: str, params: dict[str, int], said: str) -> None:
    """Each way to name or write a workload wrongly has its own sentence."""
    with pytest.raises(WorkloadError, match=said):
        load_workload(reference, params, base=folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model=3", "model is int"),
        ("example_inputs=[torch.zeros(1, 4)]", "non-empty tuple"),
        ("example_inputs=(1.0,)", r"example_inputs\[0\] is float"),
        ("task='clasification'", "unknown task 'clasification'; did you mean 'classification'"),
        ("evaluation=[]", "evaluation is empty"),
        ("evaluation=iter([])", "map-style"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path: Path, change: str, said: str) -> None:
    """The workload checks itself when it is made."""
    fields = dict(
        part.split("=", 1)
        for part in ("name='w'", "model=torch.nn.Linear(4, 2)", "example_inputs=(torch.zeros(1, 4),)", "evaluation=[1]")
    )
    name, value = change.split("=", 1)
    fields[name] = value
    body = ", ".join(f"{k}={v}" for k, v in fields.items())
    (tmp_path / "workload.py").write_text(
        f"import torch, edgekit\ndef workload():\n    return edgekit.Workload({body})\n"
    )
    with pytest.raises(WorkloadError, match=said):
        load_workload("workload.py", base=tmp_path)


def test_the_source_hash_follows_the_users_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A change in the file, or in a module beside it that it imports, is another workload."""
    first = load_workload("workload.py", base=folder).source_sha256
    again = load_workload("workload.py", base=folder).source_sha256
    other = tmp_path_factory.mktemp("other")
    (other / "workload.py").write_text(GOOD.replace("size: int = 4", "size: int = 5"))
    (other / "helper_of_mine.py").write_text("CLASSES = ('a', 'b')\n")
    assert first == again != load_workload("workload.py", base=other).source_sha256


def test_the_data_digest_sees_length_type_and_content() -> None:
    """Data that differ in one sampled item, in length or in type have another digest."""

    def data(count: int, value: float = 0.0, dtype: object = torch.float32) -> object:
        inputs = torch.full((count, 3), value, dtype=dtype)
        return torch.utils.data.TensorDataset(inputs, torch.zeros(count, dtype=torch.long))

    digests = {sample_digest(d) for d in (data(5), data(6), data(5, 1.0), data(5, dtype=torch.float64))}
    assert len(digests) == 4
    assert sample_digest(data(5)) == sample_digest(data(5))
    assert sample_digest(None) is None
