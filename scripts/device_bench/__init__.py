"""Parts of `bench_devices.py`: each measures one thing and gives a `Part`."""
