# Every target installs what it needs into .venv by itself. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DOCS := $(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html
# One worker a core, at most eight: each holds torch, and trains on one thread.
PYTEST := $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all check docs links format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

# The editable install is repeated only when the project's metadata or the pinned versions change.
# pip >= 21.3: the first that installs a pyproject.toml project in editable mode.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "error: '$(PYTHON)' is not Python >= 3.10: name one that is, as in make PYTHON=python3.12 demo" >&2; exit 1; }
	@echo "Installing into .venv: some minutes the first time, torch is large."
	$(PYTHON) -m venv .venv
	$(PIP) install 'pip>=21.3'
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.installed ## train a small pair on the bundled digits, alone and together, and print both in a table
	$(BIN)/feature-gan-kd train --output-dir runs/demo/alone --method vanilla --resume
	$(BIN)/feature-gan-kd train --output-dir runs/demo/together --resume
	$(BIN)/feature-gan-kd report runs/demo/alone runs/demo/together --output runs/demo/report.html

test: .venv/.installed ## run the fast tests
	$(PYTEST)

test-all: .venv/.installed ## run every test: also documents, launches, a browser, every bad input, fuzzing in full
	$(PYTEST) -m ''

check: .venv/.installed ## lint, formatting, types and the documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(DOCS)

docs: .venv/.installed ## build the documentation into docs/_build/html; a warning is an error
	$(DOCS)
	@echo docs/_build/html/index.html

links: .venv/.installed ## ask every address that the documentation names; needs the network
	$(BIN)/sphinx-build -q -b linkcheck docs docs/_build/linkcheck

format: .venv/.installed ## mend formatting and what the linter can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove caches and build leftovers; .venv and runs/ stay
	rm -rf build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./runs -prune -o -type d -name __pycache__ -exec rm -rf {} +
