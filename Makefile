# The tasks of the project. `make demo` and `make test` set up what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A plain torch brings gigabytes of CUDA libraries on Linux; on a machine with no NVIDIA card, point pip at a
# CPU build (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) and the pin below takes it.
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint type board bench conversion-matrix bench-converters bench-compression \
	bench-devices soak clean

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: run make with PYTHON=python3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[all,dev]'
	@touch $@

setup: $(INSTALLED)  ## virtual environment with every extra

demo: $(INSTALLED)  ## the main job on real data, ending with a report
	@bash scripts/install_system_packages.sh
	$(BIN)/edgekit demo $(if $(DATA),--data '$(DATA)')

test: $(INSTALLED)  ## every test this machine can run
	@bash scripts/install_system_packages.sh --test
	$(BIN)/python -m pytest -n 2 --dist loadscope $(PYTEST_ARGS)

check: lint type test  ## what a change must pass

lint: $(INSTALLED)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED)  ## types, strict
	$(BIN)/mypy

board: $(INSTALLED)  ## only the tests on the virtual board; none may be skipped
	@bash scripts/install_system_packages.sh
	EDGEKIT_REQUIRE_BOARD=1 $(BIN)/python -m pytest -m board

bench: $(INSTALLED)  ## what edgekit itself costs: imports, harness overhead
	$(BIN)/python scripts/bench_harness.py

conversion-matrix: $(INSTALLED)  ## docs/conversion-matrix.md: every model x backend x scheme, or why not
	$(BIN)/python scripts/conversion_matrix.py

bench-converters: $(INSTALLED)  ## docs/benchmarks/converters.md: overhead, fidelity and speed of conversions
	$(BIN)/python scripts/bench_converters.py $(if $(DATA),--data '$(DATA)')

bench-compression: $(INSTALLED)  ## docs/benchmarks/compression.md: what each compression method reached, on real data
	$(BIN)/python scripts/bench_compression.py $(if $(DATA),--data '$(DATA)') $(if $(MODELS),--models '$(MODELS)')

bench-devices: $(INSTALLED)  ## docs/benchmarks/devices.md: push, overhead of a job, the runner's cost, repeatability
	@bash scripts/install_system_packages.sh
	$(BIN)/python scripts/bench_devices.py $(if $(PARTS),--parts '$(PARTS)') $(if $(ROUNDS),--rounds '$(ROUNDS)')

soak: $(INSTALLED)  ## docs/benchmarks/reliability.md: 1,000 jobs through 500 faults and 50 kills (about an hour)
	@bash scripts/install_system_packages.sh --test
	$(BIN)/python scripts/soak.py $(SOAK_ARGS)

clean:  ## remove what the tasks made here (not the cache in ~/.cache/edgekit)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache runs
