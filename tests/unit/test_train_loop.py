"""Everything a training run can be asked for beside its epochs: how it steps, when it stops, where it runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from edgekit.compress.options import TrainOptions
from edgekit.errors import UserError, WorkloadError
from edgekit.train import CrossEntropy, TrainProgress, TrainResult, evaluate_outputs, fit, top1_accuracy, weights_digest
from edgekit.training.epochs import split_samples
from edgekit.training.hardware import choose_hardware
from edgekit.training.schedules import make_optimizer, make_schedule

OPTIONS = TrainOptions(epochs=3, batch_size=32, learning_rate=1e-2, threads=1, accelerator="cpu", logger="none")


def digits(samples: int = 320) -> TensorDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return TensorDataset(
        torch.tensor(bunch.data[:samples] / 16.0, dtype=torch.float32), torch.tensor(bunch.target[:samples])
    )


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


def plain_net() -> nn.Module:
    """Without what differs between a batch and its halves (batch statistics, dropout)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def options(**changes: object) -> TrainOptions:
    return TrainOptions.model_validate({**OPTIONS.model_dump(), "logger": "none", **changes})


def trained(folder: Path, module: nn.Module | None = None, **changes: object) -> TrainResult:
    return fit(module or net(), CrossEntropy(), digits(), options(**changes), seed=1, work_dir=folder)


class Stopping:
    """An on_progress that interrupts at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: TrainProgress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "nesterov": True, "schedule": "cosine", "warmup_epochs": 0.5, "gradient_clip": 0.5},
        {"optimizer": "sgd", "momentum": 0.0, "schedule": "one_cycle"},
        {"schedule": "step", "step_epochs": 1, "validation": 0.2, "patience": 2},
        {"schedule": "constant", "precision": "bf16", "validation": 0.2, "monitor": "accuracy"},
    ],
    ids=["sgd cosine clipped", "plain sgd", "step early stopping", "bf16 best accuracy"],
)
@pytest.mark.parametrize("step", [5, 13], ids=["in the first epoch", "in the second epoch"])
def test_every_way_of_training_resumes_to_the_same_bits(tmp_path: Path, changes: dict[str, object], step: int) -> None:
    """Optimizer, schedule, clipping, best weights, patience and precision are all part of the checkpoint."""
    whole = trained(tmp_path / "a", **changes)
    with pytest.raises(KeyboardInterrupt):
        fit(
            net(), CrossEntropy(), digits(), options(**changes),
            seed=1, work_dir=tmp_path / "b", checkpoint_seconds=0, on_progress=Stopping(step),
        )  # fmt: skip
    resumed = trained(tmp_path / "b", **changes)
    assert 0 < resumed.resumed_from <= step
    assert weights_digest(resumed.module) == weights_digest(whole.module)
    assert (resumed.loss, resumed.validation, resumed.best_epoch) == (whole.loss, whole.validation, whole.best_epoch)


def rates(**changes: object) -> list[float]:
    """The learning rate of each of 40 steps, 10 an epoch."""
    chosen = options(epochs=4, learning_rate=1.0, **changes)
    optimizer = make_optimizer(net().parameters(), chosen)
    schedule = make_schedule(optimizer, chosen, 10)
    seen = []
    for _ in range(40):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_learning_rates_are_what_their_formulas_say() -> None:
    """Warm-up is linear; cosine halves at its middle and nears 0; step divides by ten; one-cycle peaks at its rise."""
    warm = rates(schedule="constant", warmup_epochs=1.0)
    assert warm[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(warm[10:]) == {1.0}
    cosine = rates(schedule="cosine")
    assert cosine[20] == pytest.approx(0.5)
    assert cosine[39] == pytest.approx(0.5 * (1 + math.cos(math.pi * 39 / 40)))
    step = rates(schedule="step", step_epochs=2)
    assert step[:20] == [1.0] * 20
    assert step[20:] == pytest.approx([0.1] * 20)
    cycle = rates(schedule="one_cycle", warmup_epochs=2.0)
    assert max(range(40), key=cycle.__getitem__) in (19, 20)


def test_gradient_clipping_bounds_a_step(tmp_path: Path) -> None:
    """With plain SGD at a constant rate no step moves the weights further than rate times clip."""
    module = plain_net()
    last = [torch.cat([p.detach().flatten().clone() for p in module.parameters()])]
    moves: list[float] = []

    def measure(model: nn.Module) -> None:
        now = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        moves.append(float((now - last[0]).norm()))
        last[0] = now

    chosen = options(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", learning_rate=0.5, gradient_clip=0.01
    )
    fit(module, CrossEntropy(), digits(), chosen, seed=1, work_dir=tmp_path, after_step=measure)
    assert len(moves) == 30
    assert max(moves) < 0.5 * 0.01 * 1.001  # float32 rounding of a sum over 2410 weights


def test_early_stopping_gives_the_best_weights_and_trains_no_more(tmp_path: Path) -> None:
    """Random labels cannot be learnt: the run stops long before its end, and has the weights of its best epoch."""
    x, _ = digits().tensors
    data = TensorDataset(x, torch.randint(0, 10, (320,), generator=torch.Generator().manual_seed(0)))
    chosen = options(epochs=60, validation=0.25, patience=3, learning_rate=3e-2, schedule="constant")
    seen: list[TrainProgress] = []
    result = fit(net(), CrossEntropy(), data, chosen, seed=1, work_dir=tmp_path, on_progress=seen.append)
    assert result.best_epoch is not None
    assert seen[-1].epoch == result.best_epoch + 3 < 60
    assert seen[-1].validation is not None
    _, held_out = split_samples(320, 0.25, seed=1)
    outputs, targets = evaluate_outputs(result.module, torch.utils.data.Subset(data, held_out.tolist()))
    assert result.validation is not None
    assert top1_accuracy(outputs, targets) == result.validation.accuracy
    loss = float(nn.functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(targets)))
    assert result.validation.loss == pytest.approx(loss, rel=1e-5)
    again = fit(net(), CrossEntropy(), data, chosen, seed=1, work_dir=tmp_path, on_progress=Stopping(seen[-1].step + 1))
    assert again.resumed_from == again.steps == seen[-1].step
    assert weights_digest(again.module) == weights_digest(result.module)


def test_held_out_samples_are_never_trained_on(tmp_path: Path) -> None:
    """The split covers the data without overlap, depends on the seed alone, and only its first part is fetched."""
    kept, held_out = split_samples(320, 0.2, seed=1)
    assert len(held_out) == 64
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(320))
    assert torch.equal(held_out, split_samples(320, 0.2, seed=1)[1])
    assert not torch.equal(held_out, split_samples(320, 0.2, seed=2)[1])

    class Counting(CrossEntropy):
        def loss(self, outputs: Tensor, batch: object) -> Tensor:
            if torch.is_grad_enabled():
                fetched.update(batch.indices.tolist())  # type: ignore[attr-defined]
            return super().loss(outputs, batch)  # type: ignore[arg-type]

    fetched: set[int] = set()
    fit(net(), Counting(), digits(), options(validation=0.2), seed=1, work_dir=tmp_path)
    assert fetched == set(kept.tolist())


class Slow(Dataset):  # type: ignore[type-arg]
    """Items with their own noise, from whatever process reads them; one may be broken."""

    def __init__(self, broken: int | None = None) -> None:
        self.base = digits()
        self.broken = broken

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.base[index]
        return (x[:10] if index == self.broken else x + 0.01 * torch.randn_like(x)), int(y)


def test_workers_read_the_very_same_batches(tmp_path: Path) -> None:
    """Two reading processes and none give the same weights, noise of the items included; errors come out as said."""
    alone = fit(net(), CrossEntropy(), Slow(), options(), seed=1, work_dir=tmp_path / "a")
    helped = fit(net(), CrossEntropy(), Slow(), options(workers=2), seed=1, work_dir=tmp_path / "b")
    assert weights_digest(alone.module) == weights_digest(helped.module)
    with pytest.raises(WorkloadError, match="cannot be stacked") as caught:
        fit(net(), CrossEntropy(), Slow(broken=7), options(workers=2), seed=1, work_dir=tmp_path / "c")
    assert "Traceback" not in str(caught.value)


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """DDP over gloo: losses, accuracy and weights of one process but for rounding, every step told, and resumable."""
    one = trained(tmp_path / "a", plain_net(), validation=0.2)
    seen: list[TrainProgress] = []
    chosen = options(devices=2, validation=0.2)
    two = fit(plain_net(), CrossEntropy(), digits(), chosen, seed=1, work_dir=tmp_path / "b", on_progress=seen.append)
    # 24 steps; each sums 16 + 16 gradients where the other sums 32, to float32's rounding.
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert two.accuracy == one.accuracy
    assert two.validation is not None
    assert one.validation is not None
    assert two.validation.loss == pytest.approx(one.validation.loss, rel=1e-5)
    for p, q in zip(one.module.parameters(), two.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)
    assert [p.step for p in seen] == list(range(1, 25))
    again = fit(plain_net(), CrossEntropy(), digits(), chosen, seed=1, work_dir=tmp_path / "b")
    assert again.resumed_from == again.steps == 24
    assert weights_digest(again.module) == weights_digest(two.module)


def test_two_processes_resume_what_one_of_them_broke_off(tmp_path: Path) -> None:
    """An error at step 20 of 24 in the processes comes out as it is; the next run goes on from the last checkpoint."""
    whole = trained(tmp_path / "a", plain_net(), devices=2, validation=0.2)
    steps: list[int] = []

    def break_off(_module: nn.Module) -> None:
        steps.append(1)
        if len(steps) == 20:
            raise UserError("broken off", hint="go on")

    chosen = options(devices=2, validation=0.2)
    with pytest.raises(UserError, match="broken off") as caught:
        fit(plain_net(), CrossEntropy(), digits(), chosen, seed=1, work_dir=tmp_path / "b", after_step=break_off)
    assert caught.value.hint == "go on"
    assert steps == []  # they were steps of other processes
    resumed = trained(tmp_path / "b", plain_net(), devices=2, validation=0.2)
    assert resumed.resumed_from == 16
    assert weights_digest(resumed.module) == weights_digest(whole.module)


def test_two_processes_with_parameters_that_get_no_gradient_and_bad_labels(tmp_path: Path) -> None:
    """A module with a part the loss does not reach trains; a label only one process sees is the same error."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = plain_net(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.used(x)
            return result

    before = Unused()
    done = fit(Unused(), CrossEntropy(), digits(), options(devices=2, epochs=1), seed=1, work_dir=tmp_path / "a")
    assert not torch.equal(done.module.get_parameter("used.0.weight"), before.used[0].weight)
    x, y = digits().tensors
    y = y.clone()
    y[17] = 10
    with pytest.raises(WorkloadError, match="targets from 0 to 10, but the model gives 10 classes") as caught:
        fit(plain_net(), CrossEntropy(), TensorDataset(x, y), options(devices=2), seed=1, work_dir=tmp_path / "b")
    assert "targets count from 0" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp16"}, "fp16 is for GPUs"),
        ({"accelerator": "gpu"}, "sees no CUDA or ROCm device"),
        ({"accelerator": "mps"}, "sees no Apple GPU"),
        ({"devices": 3}, "a batch of 32 cannot be shared equally by 3 devices"),
    ],
)
def test_hardware_that_is_not_there_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], said: str
) -> None:
    """What this machine cannot do is said by name, and never replaced by something else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=said) as caught:
        choose_hardware(options(**changes))
    assert caught.value.hint


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto prefers a GPU; more devices than there are, or a GPU without bfloat16, is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    chosen = choose_hardware(options(accelerator="auto", precision="fp16"))
    assert chosen.trainer_arguments() == {"accelerator": "cuda", "devices": 1, "precision": "16-mixed"}
    with pytest.raises(UserError, match="torch sees 1 GPUs"):
        choose_hardware(options(accelerator="auto", devices=2))
    with pytest.raises(UserError, match="Tesla T4 has no bfloat16"):
        choose_hardware(options(accelerator="gpu", precision="bf16"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nesterov": True}, "nesterov needs optimizer: sgd"),
        ({"patience": 2}, "patience needs a validation share"),
        ({"warmup_epochs": 3}, "must be less"),
        ({"step_epochs": 1}, "step_epochs needs schedule: step"),
    ],
)
def test_options_that_contradict_each_other(changes: dict[str, object], said: str) -> None:
    """Options that would be ignored are errors."""
    with pytest.raises(ValueError, match=said):
        options(**changes)


def test_what_cannot_change_the_weights_is_not_part_of_their_key(tmp_path: Path) -> None:
    """A finished run is found again with another logger and more workers."""
    first = trained(tmp_path)
    again = trained(tmp_path, logger="csv", workers=1)
    assert again.resumed_from == first.steps


def test_a_share_that_holds_out_nothing_or_everything(tmp_path: Path) -> None:
    """A validation share of no sample is an error, not a run without validation."""
    x, y = digits().tensors
    with pytest.raises(UserError, match="leaves none on one side"):
        fit(net(), CrossEntropy(), TensorDataset(x[:4], y[:4]), options(validation=0.1), seed=1, work_dir=tmp_path)


def test_a_batch_above_the_data_is_made_smaller_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A batch larger than the data is all of them, in a warning."""
    result = trained(tmp_path, batch_size=1000)
    assert result.steps == 3
    assert "320 samples do not fill a batch of 1000; a batch is 320" in caplog.text


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    """The step is named, the checkpoint before it stays readable and finite, and the cure is told."""

    def spoil(model: nn.Module) -> None:
        steps[0] += 1
        if steps[0] == 15:
            model.get_parameter("0.weight")[0, 0] = math.nan

    steps = [0]
    with pytest.raises(UserError, match=r"step 1[56] of 30.*last good checkpoint is kept") as caught:
        fit(
            net(), CrossEntropy(), digits(), OPTIONS,
            seed=1, work_dir=tmp_path, checkpoint_seconds=0, after_step=spoil,
        )  # fmt: skip
    assert "gradient_clip" in (caught.value.hint or "")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 14
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


def test_curves_are_written_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's files hold loss, rate and validation by step; CSV the same; W&B's absence is said."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path / "a", logger="tensorboard", validation=0.2)
    events = EventAccumulator(str(tmp_path / "a" / "logs")).Reload()
    assert set(events.Tags()["scalars"]) >= {"loss", "accuracy", "learning_rate", "validation_loss"}
    assert [e.step for e in events.Scalars("validation_loss")] == [8, 16, 24]
    trained(tmp_path / "b", logger="csv", validation=0.2)
    assert "validation_loss" in (tmp_path / "b" / "logs" / "metrics.csv").read_text().splitlines()[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="'wandb', which is not installed") as caught:
        trained(tmp_path / "c", logger="wandb")
    assert "pip install wandb" in (caught.value.hint or "")
