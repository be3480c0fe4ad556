"""A `.tflite` file whose tensors all begin at multiples of 16 bytes, as TensorFlow Lite's own writers place them."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.artifact import Artifact, Format
from edgekit.converters.passports.reader import read_facts
from edgekit.converters.tflite_micro.interpreter import BACKEND
from edgekit.errors import ConversionError

__all__ = ["align", "misaligned"]

ALIGNMENT = 16


def align(artifact: Artifact) -> None:
    """Write the model file again, aligned, in place. Raises ConversionError when it then says anything else."""
    from tflite_micro.tensorflow.lite.micro.tools import tflite_flatbuffer_align_wrapper as wrapper

    partial = artifact.path.with_name("aligned.partial")
    wrapper.align_tflite_model(str(artifact.path), str(partial))
    if not partial.is_file():
        raise ConversionError("no aligned file was written: is the disk full?", backend=BACKEND, stage="align")
    os.replace(partial, artifact.path)
    facts, passport = read_facts(artifact.path, Format.TFLITE), artifact.passport
    if facts.ops != passport.ops or facts.outputs != passport.outputs or misaligned(artifact.path):
        raise ConversionError("the aligned file is not the one that was converted", backend=BACKEND, stage="align")


def misaligned(path: Path) -> int:
    """How many constants of the file do not begin at a multiple of 16 bytes."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    buffers = (model.Buffers(index) for index in range(model.BuffersLength()))
    field = 4  # vtable offset of Buffer.data, the first field
    starts = [b._tab.Vector(b._tab.Offset(field)) for b in buffers if b.DataLength()]
    return sum(start % ALIGNMENT != 0 for start in starts)
