# Needs only Python (3.11 or newer) and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench docs site package clean

demo: $(VENV)/.demo
	$(BIN)/sfumato demo

test: $(VENV)/.dev
	$(BIN)/ruff check src tests docs benchmarks
	$(BIN)/ruff format --check src tests docs benchmarks
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests docs benchmarks
	$(BIN)/ruff format src tests docs benchmarks
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/sfumato bench

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "sfumato needs Python 3.11 or newer; call make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp file is touched last, so that an interrupted installation starts again.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.demo

# Writes the tables of results/ into the pages.
docs: $(VENV)/.dev
	$(BIN)/python docs/render.py

site: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

# Wheel and sdist; the wheel is installed and used in an empty environment.
package: $(VENV)/.dev
	$(BIN)/pip install --disable-pip-version-check --quiet build
	rm -rf build dist
	$(BIN)/python -m build
	$(PYTHON) packaging/try_wheel.py dist/*.whl

clean:
	rm -rf $(VENV) build dist site *.egg-info
