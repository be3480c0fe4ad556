"""The runner: what executes on a device. This docstring is the wire format, version 2.

The runner needs Python 3.9 or newer, numpy and one inference runtime; it imports nothing of edgekit. The
harness packs it into one file (`edgekit.runtimes.pack`), pushes it and starts, detached::

    python3 runner.pyz run JOBDIR

JOBDIR holds `job.json`, written by the harness before the start. All times are integer nanoseconds of the
device's monotonic clock, all sizes bytes. ::

    {"schema_version": 2,
     "job": "<key>.<attempt>",            echoed in everything the runner writes
     "runtime": "litert",                 litert | onnxruntime | executorch | any name with "backend_file"
     "backend_file": null,                a Python file with a class `Backend`, for runtimes of third parties
     "model": "/path/on/device",
     "inputs": [{"name": "x", "path": "/path/on/device"}],   one .npy each, [N, ...], in the artifact's dtype
     "outputs": ["logits"],               names in the order the outputs file shall have
     "batch": 1,                          leading extent of one inference
     "plan": {"threads": 1, "delegate": "default", "cores": null, "cold_starts": 5, "warmup_min_runs": 10,
              "warmup_max_seconds": 5.0, "min_samples": 200, "min_seconds": 2.0, "max_seconds": 30.0,
              "memory": true, "accuracy": true, "timeout_seconds": 900.0, "allow_fallback": false,
              "profile": false, "energy": false, "max_temperature_c": null, "min_battery_percent": null,
              "allow_charging": true, "max_load": null, "gate_wait_seconds": 60.0}}

While it works the runner keeps `progress.json` (rewritten by rename, about once a second)::

    {"schema_version": 2, "job": "...", "boot_id": "..." | null, "beat": 17, "state": "running" | "done",
     "phase": "warm", "done": 6, "total": 8}

`beat` grows as long as the runner lives. When it has ended, and only then, `result.json` appears by rename::

    {"schema_version": 2, "job": "...", "status": "ok" | "failed" | "crashed" | "timed_out",
     "error": null | "text", "signal": null | 11,
     "runtime": null | {"name", "version", "threads", "delegate", "delegate_nodes", "total_nodes", "interface",
                        "python"},
     "cold_starts": [{"import_ns", "load_ns", "first_inference_ns", "process_ns"}],
     "warmup_ns": [...], "latency_ns": [...], "calls_per_sample": 1, "sampled_every": 1,
     "stopped_by": null | "minimum reached" | "max_seconds",
     "blocks": [{"samples": 40, "waited_ns": 0, "state": CONDITIONS}],
     "memory": null | {"baseline_rss_bytes", "baseline_pss_bytes", "loaded_rss_bytes", "peak_rss_bytes",
                       "pss_bytes"},
     "operators": null | [{"name", "type", "calls", "total_ns"}],
     "energy": null | {"source", "idle_mw", "busy_mw", "idle_error_mw", "busy_error_mw", "inferences",
                       "seconds", "mj_per_inference", "error_mj"},
     "before": CONDITIONS, "after": CONDITIONS, "evaluated": null | 1000,
     "outputs": null | {"sha256": "...", "size_bytes": 1234},
     "unmeasured": {"field": "reason"}, "flags": ["text"], "phase_ns": {"cold": 1, "warm": 1}, "starts": 1}

CONDITIONS is {"monotonic_ns", "wall_ns", "load_average_1m", "temperature_milli_c": {zone: int},
"cpu_khz": {cpu: int}, "cpu_limit_khz": {cpu: int}, "governor", "battery_percent", "is_charging"}. A latency is the
time of one sample divided by its `calls_per_sample`; `blocks` says what the device was like before each stretch of
samples, and how long the plan's gates held it up. The gates share `gate_wait_seconds` over the whole job. `flags` also
tell what `changes.py` finds in the conditions: clocks, heat, a wall clock that jumped. `outputs.npz` (uncompressed, no
pickles) holds `output_0`, `output_1`, … as [N, ...] in the artifact's own dtype, in the order of "outputs".

Every phase (`cold`, `warm`, `memory`, `profile`, `energy`, `accuracy`) runs in a fresh child process and is saved as
`phase-NAME.json` when it ended; evaluation also saves each chunk of outputs. A runner that was killed and is started
again on the same JOBDIR keeps what is saved and measures only the rest. A phase that failed ends the job; what was
measured before is reported.
"""

SCHEMA_VERSION = 2
MAX_SAMPLES = 20_000
"""No list of samples in a result is longer; quick models are sampled every k-th inference instead."""
