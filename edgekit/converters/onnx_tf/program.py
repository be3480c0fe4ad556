"""What runs in onnx-tf's own environment: `python program.py FOLDER`. ONNX to SavedModel to TFLite; files only.

    request.json       what to do (see `converter.py`)           edgekit -> here
    model.onnx         opset 13, fixed shapes
    calibration.npz    arrays s<sample>_i<input>; sample.npz likewise, for the check
    answer.json        {"unsupported": […]} or {"batched": …, "error": …, "stage": …}
    model.tflite, saved_model/1/, outputs.npz (s<sample>_i<output>, of the SavedModel)

Imports nothing of edgekit: its packages are not here.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

PARENT = "EDGEKIT_CHILD_PARENT"


def die_with_parent() -> None:
    """As `edgekit.isolation.enter_child`: the kernel ends this process when the converting child ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if PARENT in os.environ and os.getppid() != int(os.environ[PARENT]):
            os._exit(1)


def load_samples(path: str) -> list[list[Any]]:
    """One list of arrays per sample."""
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        samples: dict[int, dict[int, Any]] = {}
        for key in stored.files:
            sample, _, index = key[1:].partition("_i")
            samples.setdefault(int(sample), {})[int(index)] = stored[key]
    return [[inputs[i] for i in sorted(inputs)] for _, inputs in sorted(samples.items())]


def unsupported_ops(model: Any) -> list[list[Any]]:
    """Every op of the model onnx-tf has no handler for, each once: `[name, version]`."""
    from onnx import defs
    from onnx_tf.opset_version import backend_opset_version

    found = {}
    for node in model.graph.node:
        since = defs.get_schema(node.op_type, model.opset_import[0].version, node.domain).since_version
        if since not in backend_opset_version.get(node.op_type, []):
            found[node.op_type] = since
    return [[name, since] for name, since in sorted(found.items())]


def make_module(model: Any, request: dict[str, Any]) -> tuple[Any, bool]:
    """A tf.Module with `infer` (positional, fixed shapes) and `serve` (by name, any batch where that can be)."""
    import tensorflow as tf
    from onnx_tf.backend import prepare

    inner = prepare(model).tf_module
    used = {value.name for value in model.graph.input}
    names, outputs = request["inputs"], request["outputs"]
    specs = [
        tf.TensorSpec(shape, tf.as_dtype(dtype), name=name)
        for name, shape, dtype in zip(names, request["shapes"], request["dtypes"], strict=True)
    ]

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        @tf.function(input_signature=specs)  # type: ignore[untyped-decorator]
        def infer(self, *args: Any) -> list[Any]:
            found = self.inner(**{name: value for name, value in zip(names, args, strict=True) if name in used})
            return [tf.identity(found[name], name=name) for name in outputs]

        @tf.function(input_signature=specs)  # type: ignore[untyped-decorator]
        def fixed(self, *args: Any) -> dict[str, Any]:
            return dict(zip(outputs, self.infer(*args), strict=True))

    module = Module()
    results = module.infer.get_concrete_function().structured_outputs
    batched = all(value.shape.rank and value.shape[0] == 1 for value in (*specs, *results))
    given = [tf.TensorSpec([None, *s.shape[1:]], s.dtype, name=s.name) for s in specs] if batched else specs

    @tf.function(input_signature=given)  # type: ignore[untyped-decorator]
    def serve(*args: Any) -> dict[str, Any]:
        if not batched:
            return dict(zip(outputs, module.infer(*args), strict=True))
        element = [tf.TensorSpec(r.shape[1:], r.dtype) for r in results]

        def one(values: list[Any]) -> list[Any]:
            return [tf.squeeze(r, 0) for r in module.infer(*[tf.expand_dims(value, 0) for value in values])]

        return dict(zip(outputs, tf.map_fn(one, list(args), fn_output_signature=element), strict=True))

    module.serve = serve
    return module, batched


def checked_outputs(path: str, request: dict[str, Any], samples: list[list[Any]], batched: bool) -> list[list[Any]]:
    """The outputs of the SavedModel, loaded again, for each sample; all at once where it takes a batch."""
    import numpy as np
    import tensorflow as tf

    signature = tf.saved_model.load(path).signatures["serving_default"]
    names = request["inputs"]

    def served(arrays: list[Any]) -> list[Any]:
        given = {name: tf.constant(array) for name, array in zip(names, arrays, strict=True)}
        found = signature(**given)
        return [found[name].numpy() for name in request["outputs"]]

    if not batched:
        return [served(sample) for sample in samples]
    together = served([np.concatenate(arrays) for arrays in zip(*samples, strict=True)])
    return [[output[i : i + 1] for output in together] for i in range(len(samples))]


def tflite_of(module: Any, request: dict[str, Any], folder: str) -> bytes:
    """The TFLite file of `fixed`, in the scheme asked for; its signature tells which input and output is which."""
    import tensorflow as tf

    path = os.path.join(folder, "fixed_model")
    tf.saved_model.save(module, path, signatures={"serving_default": module.fixed})
    converter = tf.lite.TFLiteConverter.from_saved_model(path)
    scheme, io_dtype = request["scheme"], request["io_dtype"]
    if scheme != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme.startswith("static"):
        samples = load_samples(os.path.join(folder, "calibration.npz"))
        # by name: the file's own order of inputs is another
        named = [dict(zip(request["inputs"], sample, strict=True)) for sample in samples]
        converter.representative_dataset = lambda: iter(named)
        wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        narrow = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        converter.target_spec.supported_ops = [wide if scheme == "static_w8a16" else narrow]
        if io_dtype != "float32":
            integer = tf.int16 if scheme == "static_w8a16" else tf.int8
            floats = [dtype == "float32" for dtype in request["dtypes"]]
            if all(floats):  # with integer inputs the converter takes one type for all of them, and fails
                converter.inference_input_type = integer
            converter.inference_output_type = integer
    return bytes(converter.convert())


def work(folder: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Do the request; yields the stage before each, so that a failure can be placed."""
    import numpy as np
    import onnx

    with open(os.path.join(folder, "request.json")) as f:
        request = json.load(f)
    yield "import TensorFlow", None
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(request["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = onnx.load(os.path.join(folder, "model.onnx"))
    yield "check ONNX ops", None
    missing = unsupported_ops(model)
    if missing:
        yield "done", {"unsupported": missing}
        return
    yield "ONNX to TensorFlow", None
    module, batched = make_module(model, request)
    path = os.path.join(folder, "saved_model", "1")
    yield "write the SavedModel", None
    tf.saved_model.save(module, path, signatures={"serving_default": module.serve})
    yield "check the SavedModel", None
    outputs = checked_outputs(path, request, load_samples(os.path.join(folder, "sample.npz")), batched)
    arrays = {f"s{s}_i{o}": array for s, found in enumerate(outputs) for o, array in enumerate(found)}
    np.savez(os.path.join(folder, "outputs.npz"), **arrays)
    yield "TensorFlow to TFLite", None
    content = tflite_of(module, request, folder)
    with open(os.path.join(folder, "model.tflite"), "wb") as f:
        f.write(content)
    yield "done", {"batched": bool(batched)}


def main(folder: str) -> None:
    """Answer the request in `folder`; what a toolchain raises is an answer too."""
    die_with_parent()
    answer: dict[str, Any] = {}
    stage = "start"
    try:
        for reached, result in work(folder):
            stage, answer = reached, result or answer
    except Exception as e:  # noqa: BLE001 - the answer goes to edgekit, which makes an error of it
        import traceback

        traceback.print_exc()
        answer = {"error": f"{type(e).__name__}: {e}", "stage": stage}
    partial = os.path.join(folder, "answer.partial")
    with open(partial, "w") as f:
        json.dump(answer, f)
    os.replace(partial, os.path.join(folder, "answer.json"))


if __name__ == "__main__":
    main(sys.argv[1])
