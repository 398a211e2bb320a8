# Grid-X for Jupyter. `make` alone lists what there is.

PYTHON ?= python3
PY     := .venv/bin/python
STAMP  := .venv/.gridx-setup
ENGINE := $(PY) scripts/docker_engine.py run --
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test check unit format coverage bench fidelity mutations conformance openapi image clean

help: ## List these commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything for development

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) scripts/setup.py

demo: setup ## Start a grid, run the first example notebook on it, leave nothing running
	@$(PY) scripts/demo.py

lab: setup ## The demo's grid with JupyterLab open on it; Ctrl-C ends both
	@$(PY) scripts/demo.py --lab

test: setup ## Run the whole suite against real services
	@$(PY) scripts/test_programs.py
	@$(ENGINE) sh -c '$(PY) -m worker.images && exec $(PY) -m pytest $(PYTEST_ARGS)'

check: setup ## Static checks and unit tests, under a minute
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m mypy --strict scripts
	@.venv/bin/lint-imports --no-logo
	@$(PY) -m coordinator.main openapi --check
	@$(PY) scripts/check_docs.py
	@$(PY) -m pytest tests/unit -q -p no:cacheprovider -m "not slow" -n auto

unit: setup ## Unit tests alone
	@$(PY) -m pytest tests/unit -q $(PYTEST_ARGS)

format: setup ## Format the code and mend what ruff can mend
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

coverage: setup ## The whole suite with branch coverage
	@$(PY) scripts/test_programs.py
	@$(ENGINE) sh -c '$(PY) -m worker.images && exec $(PY) -m pytest --cov --cov-report=term $(PYTEST_ARGS)'

bench: setup ## Benchmarks beside the peers, results as a table
	@$(ENGINE) sh -c '$(PY) -m worker.images && exec $(PY) -m bench'

fidelity: setup ## Each cell of NOTEBOOK=… (or of ours) here and under %%gridx, compared
	@$(ENGINE) sh -c '$(PY) -m worker.images && exec $(PY) -m tests.fidelity $(NOTEBOOK)'

fuzz: setup ## A million changed or forged messages of a worker (FUZZ="COUNT --seed N"); goes on where it was
	@$(PY) -m tests.fuzz $(FUZZ)

mutations: setup ## The sandbox without each of its protections in turn: which test fails (FLAGS="…")
	@$(ENGINE) sh -c '$(PY) -m worker.images && exec $(PY) -m tests.mutation $(FLAGS)'

conformance: setup ## cloudpickle's own tests on our pickler; cells sent to other PYTHONS="…"
	@$(PY) -m tests.conformance.cloudpickle_suite $(if $(CLOUDPICKLE_TESTS),--tests $(CLOUDPICKLE_TESTS))
	@$(PY) -m tests.conformance.other_pythons $(PYTHONS)

openapi: setup ## Make openapi.json and docs/api-reference.md anew from the route table
	@$(PY) -m coordinator.main openapi

image: setup ## Build the sandbox image on the engine that answers
	@$(PY) -m worker.images

clean: ## Remove everything that can be made again
	@if [ -x $(PY) ]; then $(PY) scripts/docker_engine.py stop; fi
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
