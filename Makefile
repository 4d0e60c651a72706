# Each target sets up what it needs, from a bare checkout with Python >= 3.11 and g++.
#   make demo [source=PATH items=PATH]   the whole pipeline, then recommendations over HTTP
#   make test                            every check, ends with pytest's summary line
#   make docs                            the site, into build/site; a dead link fails
#   make lint | make fast | make test-cluster | make venv
#   make benchmarks                      pages and plots from benchmarks/results

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: venv demo test lint fast test-cluster docs benchmarks clean
.DEFAULT_GOAL := venv

venv: $(READY)

# torch goes first and pinned: without a pin its newest build brings gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "raysys needs Python 3.11 or newer: make PYTHON=/path/to/python"; exit 1; }
	@command -v g++ >/dev/null \
	  || { echo "hnswlib is built from source: please install g++"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python jobs/demo.py $(if $(run),run=$(run)) $(if $(source),source=$(source)) $(if $(items),items=$(items))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -q -n 2 --dist loadgroup

# without Ray: seconds instead of minutes
fast: $(READY)
	$(BIN)/pytest -q -m "not ray and not slow"

# three hosts on this machine, some of which are lost: needs root and ip (iproute2), else skips
test-cluster: $(READY)
	$(BIN)/pytest -q --timeout=1800 tests/hosts

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

benchmarks: $(READY)
	$(BIN)/python benchmarks/render.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
