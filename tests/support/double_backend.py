"""A runtime for tests: a linear map whose "model file" is JSON that says how to behave.

{"weights": [[...]], "log": path, "sleep_ms": 0, "crash_in": null | phase-call number, "raise": null | text,
 "crash_signal": 11, "allocate": 0 bytes a call}
Each load appends its pid to `log`; each inference appends nothing, it is timed.
"""

import json
import os
import signal
import time


class Backend:
    def import_runtime(self):
        import numpy

        self.np = numpy

    def load(self, path, threads, delegate):
        with open(path) as f:
            self.model = json.load(f)
        if delegate != "default":
            raise RuntimeError(f"the delegate {delegate} was asked for and this runtime has none")
        with open(self.model["log"], "a") as f:
            f.write(f"{os.getpid()}\n")
        if self.model.get("raise"):
            raise ValueError(self.model["raise"])
        self.weights = self.np.array(self.model["weights"], dtype="float32")
        self.threads = threads
        self.calls = 0

    def invoke(self, inputs):
        self.calls += 1
        if self.model.get("crash_at") == self.calls:
            os.kill(os.getpid(), self.model.get("crash_signal", signal.SIGSEGV))
        if self.model.get("allocate"):
            self.np.ones(self.model["allocate"], dtype="uint8")
        if self.model.get("sleep_ms"):
            time.sleep(self.model["sleep_ms"] / 1000)
        return [inputs[0] @ self.weights]

    def names(self):
        return None, None

    def describe(self):
        return {
            "name": "double",
            "version": "1",
            "threads": self.threads,
            "delegate": None,
            "delegate_nodes": None,
            "total_nodes": None,
        }
