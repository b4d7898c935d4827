# Two commands do all set-up: `make demo` and `make test`. The environment lives in .venv.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
# Tests are many and small: two at once, each on one thread, take half of the time that one after another takes on two.
WORKERS ?= 2
RUN := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help:
	@echo "make demo    a real classifier becomes a regressor, from nothing, in minutes"
	@echo "make test    everything that must hold: lint, types, all tests"
	@echo "make check   the quick loop: lint, types, fast tests"
	@echo "make bench   the measurements behind every number in the docs"
	@echo "make clean   remove .venv and what the demo wrote"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,vision,hf,sklearn,export,dev]'
	@touch $@

demo: $(INSTALLED)
	$(RUN)/forethought demo $(ARGS)

check: $(INSTALLED)
	$(RUN)/ruff format --check src tests bench examples conftest.py
	$(RUN)/ruff check src tests bench examples conftest.py
	$(RUN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow"

test: $(INSTALLED)
	$(RUN)/ruff format --check src tests bench examples conftest.py
	$(RUN)/ruff check src tests bench examples conftest.py
	$(RUN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

bench: $(INSTALLED)
	$(RUN)/python bench/run.py $(ARGS)

clean:
	rm -rf .venv forethought-demo
