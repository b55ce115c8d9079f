# Two commands: `make run` serves, `make test` proves. Settings come from the environment (DM_*, see README).
SHELL := /bin/sh
BIN := .venv/bin
CHECKED := datamanager models api flows deployments tests $(wildcard benchmarks)
# e.g. make test ARGS="tests/unit -k plan"
ARGS ?=

.PHONY: run test check format lock clean

run:
	@sh deployments/bootstrap.sh
	@exec $(BIN)/dm up

test:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@$(BIN)/python -m pytest -q --durations=15 $(ARGS)

check:
	@sh deployments/bootstrap.sh dev
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .cache/import-linter

format:
	@sh deployments/bootstrap.sh dev
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

# Raise every version to the newest that pyproject.toml allows, with the hashes of all its files.
lock:
	@sh deployments/bootstrap.sh dev
	$(BIN)/pip-compile --quiet --upgrade --extra service -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --extra service --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv .cache build dist datamanager.egg-info .hypothesis
