"""Spoken digits of the Free Spoken Digit Dataset: a DS-CNN (Zhang et al. 2017) on log-mel spectrograms.

The test speaker is heard in no training sample. The set's own split has every speaker on both sides, and flatters by
some 20 points.
"""

from __future__ import annotations

import functools
import io
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit import Workload
from edgekit.errors import MissingDependencyError, WorkloadError

RATE = 8000
SAMPLES = 8000
"""One second."""
FRAME, HOP, MELS = 256, 128, 32
HINT = "give --data FOLDER with the set as train.parquet and test.parquet (columns wav, label, speaker)"


class DsCnn(nn.Module):
    """Logits `[N, 10]` of log-mel spectrograms `[N, 1, frames, mels]`."""

    def __init__(self, *, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, (10, 4), 2, (4, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def block(width: int) -> nn.Sequential:
    """A 3x3 convolution of each channel, then a 1x1 convolution over them."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
    )  # fmt: skip


def recordings(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waves `float32 [N, SAMPLES]`, digits `[N]` and speakers `[N]` of both files; raises WorkloadError."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise MissingDependencyError("reading the spoken digits", extra="examples", package="pyarrow") from e
    waves, labels, speakers = [], [], []
    for name in ("train.parquet", "test.parquet"):
        if not (folder / name).is_file():
            raise WorkloadError(f"{folder}: holds no {name}", hint=HINT)
        table = parquet.read_table(folder / name, columns=["wav", "label", "speaker"])
        waves += [samples(wav.as_py()) for wav in table["wav"]]
        labels.append(table["label"].to_numpy().astype(np.int64))
        speakers.append(table["speaker"].to_numpy(zero_copy_only=False).astype(str))
    return np.stack(waves), np.concatenate(labels), np.concatenate(speakers)


def samples(wav: bytes) -> np.ndarray:
    """One second around the middle, padded with silence, in -1 to 1."""
    with wave.open(io.BytesIO(wav)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    start = max(0, (len(sound) - SAMPLES) // 2)
    sound = sound[start : start + SAMPLES]
    before = (SAMPLES - len(sound)) // 2
    return np.pad(sound, (before, SAMPLES - len(sound) - before))


def log_mel(waves: np.ndarray) -> Tensor:
    """`[N, 1, frames, MELS]`: log energies of a Hann-windowed spectrum, each recording with mean 0 and deviation 1."""
    frames = torch.from_numpy(waves).unfold(1, FRAME, HOP) * torch.hann_window(FRAME)
    power = torch.fft.rfft(frames).abs().square()
    energies = (power @ mel_filters() + 1e-6).log()
    mean, deviation = energies.mean((1, 2), keepdim=True), energies.std((1, 2), keepdim=True)
    return ((energies - mean) / deviation)[:, None]


def mel_filters() -> Tensor:
    """Triangles `[FRAME / 2 + 1, MELS]` from 60 Hz to half the rate (Davis and Mermelstein 1980)."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (60.0, RATE / 2))
    edges = 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)
    bins = np.linspace(0, RATE / 2, FRAME // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


def shifted(x: Tensor) -> Tensor:
    """Each recording moved by up to 0.1 s, a band of mels silenced (Park et al. 2019, SpecAugment)."""
    shift = int(torch.randint(-6, 7, ()))
    start = int(torch.randint(0, MELS - 4, ()))
    moved = torch.roll(x, shift, dims=2)
    moved[:, :, :, start : start + 4] = 0
    return moved


def workload(data: str = "", speaker: str = "theo", limit: int = 3000) -> Workload:
    """Every speaker but `speaker` for training, at most `limit` recordings; `speaker` for the test."""
    if not data:
        raise WorkloadError("no package ships the spoken digits", hint=HINT)
    waves, labels, speakers = recordings(Path(data).expanduser())
    known = sorted(set(speakers.tolist()))
    if speaker not in known:
        raise WorkloadError(f"no speaker '{speaker}' in {data}", hint=f"one of {', '.join(known)}")
    heard = np.flatnonzero(speakers != speaker)
    heard = heard[np.linspace(0, len(heard) - 1, num=min(limit, len(heard))).astype(np.int64)]
    unheard = np.flatnonzero(speakers == speaker)
    train, test = (TensorDataset(log_mel(waves[i]), torch.from_numpy(labels[i])) for i in (heard, unheard))
    return Workload(
        name="ds-cnn",
        model=functools.partial(DsCnn, width=48, blocks=3),
        student=functools.partial(DsCnn, width=32, blocks=3),
        example_inputs=(train.tensors[0][:1].clone(),),
        train=train,
        evaluation=test,
        classes=tuple("0123456789"),
        augment=shifted,
        data_name=f"spoken digits, unheard speaker {speaker}",
        data_source=f"Free Spoken Digit Dataset, CC BY-SA 4.0, {data}",
        input_layouts=("NCHW",),
    )
