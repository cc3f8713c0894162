# make demo: install, then the whole path on a real model.  make test: install, then the tests.
PYTHON ?= python3
# Test processes. Many tests start ranks and servers of several processes each: more than one needs four cores or more.
WORKERS ?= 0
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test check lint types bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[cpu,demo,dev]"
	$(BIN)/python -m trtbuild.runtime.native.library
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: install
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder

check: lint types test

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/python scripts/bench_runtime.py

clean:
	rm -rf build .venv
