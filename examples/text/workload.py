"""The section of a Debian package from its one-line description: a small transformer over hashed words.

Words become numbers by a hash (Weinberger et al. 2009), so the app needs no vocabulary file. The lines are those the
machine's package index holds (`apt-get update`); any file in its format, or of `section<TAB>text` lines, will do.
"""

from __future__ import annotations

import functools
import re
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit import Workload
from edgekit.errors import WorkloadError

WORDS, LENGTH = 4096, 12
"""Numbers a word may have (0 is none), and words of a description."""
HINT = "run apt-get update on a Debian or Ubuntu machine, or give --data FILE with section<TAB>text lines"


class Encoder(nn.Module):
    """Logits `[N, classes]` of words `int64 [N, LENGTH]`: embedding, transformer block, mean (Vaswani et al. 2017)."""

    def __init__(self, *, classes: int, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.places = nn.Parameter(torch.zeros(LENGTH, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.relu(self.up(self.norm2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Softmax attention among the words, `[N, LENGTH, width]` to the same."""
        count, length, width = x.shape
        q, k, v = (
            layer(x).reshape(count, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(count, length, width))
        return result


def words(text: str) -> list[int]:
    """The first LENGTH words as numbers from 1, then zeros."""
    found = re.findall(r"[a-z0-9+#]+", text.lower())[:LENGTH]
    numbers = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in found]
    return numbers + [0] * (LENGTH - len(numbers))


def package_index() -> Iterable[tuple[str, str]]:
    """(section, description) of each package the machine knows of."""
    try:
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, timeout=300, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        raise WorkloadError(f"no package descriptions on this machine ({e})", hint=HINT) from e
    for entry in done.stdout.split("\n\n"):
        fields = dict(re.findall(r"^(Section|Description(?:-en)?): (.*)$", entry, re.MULTILINE))
        text = fields.get("Description-en", fields.get("Description"))
        if "Section" in fields and text:
            yield fields["Section"].rpartition("/")[2], text


def lines(data: str) -> Iterable[tuple[str, str]]:
    """(label, text) of the package index, or of a file."""
    if data == "debian":
        return package_index()
    path = Path(data).expanduser()
    if not path.is_file():
        raise WorkloadError(f"{data}: no such file", hint=HINT)
    return [(a, b) for a, tab, b in (line.partition("\t") for line in path.read_text().splitlines()) if tab]


def workload(data: str = "debian", classes: int = 10, limit: int = 15000) -> Workload:
    """The `classes` most frequent sections but the libraries'; one text in ten, by its hash, is for the test."""
    texts = {text: label for label, text in lines(data) if not label.startswith(("lib", "old", "debug", "local"))}
    sections = [name for name, _ in Counter(texts.values()).most_common(classes)]
    if len(sections) < 2:
        raise WorkloadError(f"{data}: fewer than two sections have descriptions", hint=HINT)
    # Ordered by a hash of the text: the same split whatever the order of the index, no text on both sides.
    chosen = sorted((zlib.crc32(t.encode()), t, sections.index(s)) for t, s in texts.items() if s in sections)
    train, test = (
        tensors([row for row in chosen if (row[0] % 10 == 0) is side][: limit if not side else limit // 5])
        for side in (False, True)
    )
    return Workload(
        name="word-encoder",
        model=functools.partial(Encoder, classes=len(sections)),
        example_inputs=(train.tensors[0][:1].clone(),),
        train=train,
        evaluation=test,
        classes=tuple(sections),
        data_name="Debian package descriptions" if data == "debian" else Path(data).name,
        data_source="the machine's package index" if data == "debian" else data,
    )


def tensors(rows: list[tuple[int, str, int]]) -> TensorDataset:
    """Words `int64 [N, LENGTH]` and labels `[N]`."""
    if not rows:
        raise WorkloadError("no descriptions on one side of the split", hint=HINT)
    return TensorDataset(
        torch.from_numpy(np.array([words(text) for _, text, _ in rows], np.int64)),
        torch.from_numpy(np.array([label for _, _, label in rows], np.int64)),
    )
