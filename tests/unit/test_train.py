"""The training loop: exact resume, interrupts, quiet, and what it says about data that does not fit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from edgekit.errors import UserError, WorkloadError
from edgekit.recipe import TrainOptions
from edgekit.train import CrossEntropy, TrainProgress, evaluate_outputs, fit, top1_accuracy, weights_digest

OPTIONS = TrainOptions(epochs=2, batch_size=16, learning_rate=1e-2, threads=1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 36, 10)
    )


def digits(samples: int = 320) -> TensorDataset:
    """scikit-learn's 8x8 digits: real data that ships in a package."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images[:samples] / 16.0, dtype=torch.float32)[:, None]
    return TensorDataset(images, torch.tensor(bunch.target[:samples]))


def noise(x: torch.Tensor) -> torch.Tensor:
    return x + 0.05 * torch.randn_like(x)


class Interrupting:
    """An on_progress that raises KeyboardInterrupt at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: TrainProgress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


def test_training_learns_and_reports_every_step(tmp_path: Path) -> None:
    """Accuracy on the training data rises well above chance, and progress counts every step to the last."""
    seen: list[TrainProgress] = []
    result = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path, on_progress=seen.append)
    outputs, targets = evaluate_outputs(result.module, digits())
    assert top1_accuracy(outputs, targets) > 0.6  # chance is 0.1
    assert [p.step for p in seen] == list(range(1, 41))
    assert (seen[-1].epoch, seen[-1].epochs, seen[-1].total_steps) == (2, 2, 40)
    assert seen[-1].loss < seen[0].loss
    assert not result.module.training


@pytest.mark.parametrize("step", [7, 20, 33], ids=["in the first epoch", "at an epoch's end", "in the second epoch"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, step: int) -> None:
    """Cut at any step and resumed, with dropout and augmentation, training ends with bit-identical weights."""
    whole = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path / "a", augment=noise)
    cut = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        fit(
            net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=cut, augment=noise,
            checkpoint_seconds=0, on_progress=Interrupting(step),
        )  # fmt: skip
    torch.manual_seed(999)  # the state of the process's generator must not matter
    resumed = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=cut, augment=noise)
    assert 0 < resumed.resumed_from <= step
    assert weights_digest(resumed.module) == weights_digest(whole.module)
    assert (resumed.loss, resumed.accuracy) == (whole.loss, whole.accuracy)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_train import CrossEntropy, OPTIONS, digits, fit, net, noise
def told(progress):
    print(progress.step, flush=True)
    if progress.step >= {slow_from}:
        import time; time.sleep(0.2)
fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=Path({work!r}), augment=noise,
    checkpoint_seconds=0, on_progress=told)
"""


def ended_at(step: int, number: signal.Signals, work: Path) -> int:
    """The status of a process that trains in `work` and is sent a signal at this step."""
    code = CHILD.format(folder=str(Path(__file__).parent), work=str(work), slow_from=step - 1)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == step:
                child.send_signal(number)
                break
    return child.returncode


def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """After SIGKILL in the middle of an epoch the next process ends with the weights of an undisturbed run."""
    whole = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path / "a", augment=noise)
    assert ended_at(27, signal.SIGKILL, tmp_path / "b") == -signal.SIGKILL
    resumed = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path / "b", augment=noise)
    assert 20 < resumed.resumed_from < 40
    assert weights_digest(resumed.module) == weights_digest(whole.module)


def test_a_terminated_process_ends_by_its_signal(tmp_path: Path) -> None:
    """SIGTERM in training ends the process as it ends any other, and never with the status of success."""
    assert ended_at(6, signal.SIGTERM, tmp_path) == -signal.SIGTERM


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    """Called again on a finished work folder, fit gives the same weights without a step."""
    first = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path)
    again = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path, on_progress=Interrupting(1))
    assert again.resumed_from == again.steps == 40
    assert weights_digest(again.module) == weights_digest(first.module)


def test_a_foreign_or_broken_checkpoint_is_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint of another seed, or one cut short, is said aloud and the run starts at the beginning."""
    fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path)
    assert fit(net(), CrossEntropy(), digits(), OPTIONS, seed=2, work_dir=tmp_path).resumed_from == 0
    assert "another training run" in caplog.text
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:1000])
    assert fit(net(), CrossEntropy(), digits(), OPTIONS, seed=2, work_dir=tmp_path).resumed_from == 0
    assert "cannot be read" in caplog.text


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    """A pickle with code in place of the checkpoint is refused by the loader, and its code does not run."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "last.ckpt").write_bytes(pickle.dumps(Evil()))
    torch.save({"edgekit_fit_key": Evil()}, tmp_path / "also.ckpt")
    fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path)
    (tmp_path / "also.ckpt").replace(tmp_path / "last.ckpt")
    fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_ctrl_c_raises_keyboard_interrupt_and_leaves_sigint_alone(tmp_path: Path) -> None:
    """A real SIGINT in training surfaces as KeyboardInterrupt, not SystemExit, and the handler is as before."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(progress: TrainProgress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the handler runs at the next bytecode

    with pytest.raises(KeyboardInterrupt):
        fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path, on_progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_is_quiet_and_tidy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing on stdout or stderr, no file beside checkpoint and curves, process-wide state as it was."""
    monkeypatch.chdir(tmp_path)
    module = net()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    threads = torch.get_num_threads()
    fit(module, CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path / "work")
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert torch.get_num_threads() == threads
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert len([name for name in files if "events.out.tfevents" in name]) == 1
    assert [name for name in files if "events.out.tfevents" not in name] == [
        "work", "work/last.ckpt", "work/logs", "work/logs/hparams.yaml",
    ]  # fmt: skip


def test_a_diverging_run_says_to_lower_the_learning_rate(tmp_path: Path) -> None:
    """A loss that is not finite is a UserError that names the step and the learning rate."""
    images, targets = digits().tensors
    broken = TensorDataset(images / 0.0, targets)
    with pytest.raises(UserError, match="loss is nan at step 1 ") as caught:
        fit(net(), CrossEntropy(), broken, OPTIONS, seed=1, work_dir=tmp_path)
    assert "lower the learning rate" in (caught.value.hint or "")


class Items(Dataset):  # type: ignore[type-arg]
    """A data set that is read item by item."""

    def __init__(self, base: TensorDataset, change: object = None) -> None:
        self.base = base
        self.change = change

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> object:
        image, target = self.base[index]
        return self.change(image, target, index) if callable(self.change) else (image, int(target))


def test_item_data_trains_to_the_same_weights_as_tensor_data(tmp_path: Path) -> None:
    """Reading whole batches by index and item by item are the same training."""
    fast = fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path / "a")
    slow = fit(net(), CrossEntropy(), Items(digits()), OPTIONS, seed=1, work_dir=tmp_path / "b")
    assert weights_digest(fast.module) == weights_digest(slow.module)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y, i: x, r"not \(input, target\)"),
        (lambda x, y, i: (x, float(y)), "one class number"),
        (lambda x, y, i: (x, torch.zeros(10)), "one class number"),
        (lambda x, y, i: (x[..., : 4 + i % 2], int(y)), "cannot be stacked"),
        (lambda x, y, i: (x[0], int(y)), r"cannot take the train data, a batch of float32\(16, 8, 8\)"),
        (lambda x, y, i: (x, int(y) + 1), "targets from . to 10, but the model gives 10 classes"),
    ],
    ids=["no target", "float target", "one-hot target", "ragged", "wrong rank", "class too large"],
)
def test_data_that_does_not_fit_is_a_workload_error(tmp_path: Path, change: object, said: str) -> None:
    """Items of the wrong kind or shape are errors that show the shapes, not a traceback of torch."""
    with pytest.raises(WorkloadError, match=said):
        fit(net(), CrossEntropy(), Items(digits(), change), OPTIONS, seed=1, work_dir=tmp_path)


def test_augment_that_changes_the_shape_is_an_error(tmp_path: Path) -> None:
    """An augmentation must keep the batch's shape."""
    with pytest.raises(WorkloadError, match="must keep the batch's shape"):
        fit(net(), CrossEntropy(), digits(), OPTIONS, seed=1, work_dir=tmp_path, augment=lambda x: x[..., 1:])


def test_evaluation_leaves_the_mode_and_covers_the_last_partial_batch() -> None:
    """Every sample is evaluated once, in order, whatever the batch size; a training module stays in training mode."""
    module = net().train()
    outputs, targets = evaluate_outputs(module, digits(50), batch_size=16)
    single, _ = evaluate_outputs(module, digits(50), batch_size=50)
    assert outputs.shape == (50, 10)
    assert outputs.dtype == np.float32
    # Different batch sizes may sum in another order: 144 products of magnitude about 1, float32 epsilon 6e-8 each.
    np.testing.assert_allclose(outputs, single, atol=144 * 6e-8)
    assert targets.tolist() == digits(50).tensors[1].tolist()
    assert module.training


def test_accuracy_counts_rows_that_are_not_finite_as_wrong() -> None:
    """A NaN row is never right, even where argmax would pick the target."""
    outputs = np.array([[0.1, 0.9], [np.nan, 0.0], [0.9, 0.1]], dtype=np.float32)
    assert top1_accuracy(outputs, np.array([1, 0, 0])) == pytest.approx(2 / 3)
