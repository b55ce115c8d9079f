# Two commands: `make run` serves, `make test` proves. Settings come from the environment (DM_*, see docs/reference/settings.md).
SHELL := /bin/sh
BIN := .venv/bin
CHECKED := datamanager models api flows deployments tests $(wildcard benchmarks)
SCRIPTS := .ci/run $(wildcard deployments/*.sh deployments/images/*/*.sh tests/*.sh benchmarks/*.sh datamanager/transports/remote/scripts/*.sh)
# e.g. make test ARGS="tests/unit -k plan"; a `-m` in it takes the place of ours, and `-n 0` gives one process
ARGS ?=
# Tests run in so many processes, two a core because many wait; what shares a server stays in one (xdist_group).
WORKERS ?= 4
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=15
TESTS = $(PYTEST) -q --ignore=tests/faults/test_matrix.py --ignore=tests/faults/test_batches.py

.PHONY: run quick test test-slow check faults format lock clean
.PHONY: bench-bytes bench-control bench-archive bench-sources bench-batches bench-scale

run:
	@sh deployments/bootstrap.sh
	@exec $(BIN)/dm up

# Bytecode is kept, whatever the shell says: without it each test process compiles all modules again, 10 s of CPU each.
export PYTHONDONTWRITEBYTECODE :=

# What needs no server. CONTRIBUTING.md has the minutes of all targets.
quick: WORKERS = 3
quick:
	@sh deployments/bootstrap.sh dev
	@$(TESTS) --ignore=tests/e2e -m "not server and not slow" $(ARGS)

# All but what is marked as slow; CI runs both.
test:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@$(TESTS) -m "not slow" $(ARGS)

# DM_TEST_KILLS=n kills a mover n times in the middle of an archive, an extraction and a batch, instead of once.
test-slow: WORKERS = 3
test-slow:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@$(TESTS) -m slow $(ARGS)

# The fault matrix, some minutes a run: adds RUNS runs of each cell to tests/faults/results.json and to the table in
# docs/reliability.md; RESULTS= counts them nowhere.
# e.g. make faults RUNS=3 ARGS="-k sshd"; seeds are printed, DM_TEST_FAULT_SEED=n makes them begin at n.
RUNS ?= 1
RESULTS ?= tests/faults/results.json
faults: WORKERS = 2
faults:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@DM_TEST_FAULT_RUNS=$(RUNS) DM_TEST_FAULT_RESULTS=$(RESULTS) $(PYTEST) -v tests/faults $(ARGS)

check:
	@sh deployments/bootstrap.sh dev
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .cache/import-linter
	$(BIN)/shellcheck $(SCRIPTS)

format:
	@sh deployments/bootstrap.sh dev
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

# What moving bytes reaches beside scp, rsync, rclone, paramiko and asyncssh; about half an hour on two cores.
# e.g. make bench-bytes ARGS="--size 256 --only put,get"; ARGS=--help says more.
bench-bytes:
	@sh deployments/bootstrap.sh dev
	@sh benchmarks/install.sh
	@$(BIN)/python -m benchmarks $(ARGS)

# How fast requests start and end beside Prefect's stock process worker; about half an hour on two cores.
# e.g. make bench-control ARGS="--rounds 1 --copies 5 --only start"; ARGS=--help says more.
bench-control:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@$(BIN)/python -m benchmarks.control $(ARGS)

# What archiving reaches beside our own verified copy of the same files; some minutes on two cores.
# e.g. make bench-archive ARGS="--only large,recall"; ARGS=--help says more.
bench-archive:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@$(BIN)/python -m benchmarks.archive $(ARGS)

# What fetching from outside reaches beside curl piped into ssh, and its memory; some minutes on two cores.
# e.g. make bench-sources ARGS="--only https --rounds 1"; ARGS=--help says more.
bench-sources:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@$(BIN)/python -m benchmarks.sources $(ARGS)

# How long each filter and order of lists takes in a catalogue of 10^6 objects (SQLite) and 10^7 (PostgreSQL). It takes
# half an hour, most of it to fill them, and 20 GiB of disk in /tmp.
# e.g. make bench-scale ARGS="--only sqlite --sqlite 100000 --rounds 1"; ARGS=--help says more.
bench-scale:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@$(BIN)/python -m benchmarks.scale $(ARGS)

# Batches of small files, from the request to COMPLETE, beside scp -r, rsync and tar; some minutes on two cores.
# e.g. make bench-batches ARGS="--only put --rounds 1"; ARGS=--help says more.
bench-batches:
	@sh deployments/bootstrap.sh dev
	@sh tests/install-services.sh
	@sh benchmarks/install.sh
	@$(BIN)/python -m benchmarks.batches $(ARGS)

# Raise every version to the newest that pyproject.toml allows, with the hashes of all its files.
lock:
	@sh deployments/bootstrap.sh dev
	$(BIN)/pip-compile --quiet --upgrade --extra service -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --extra service --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --extra bench -c requirements-dev.lock -o requirements-bench.lock pyproject.toml

clean:
	rm -rf .venv .cache build dist datamanager.egg-info .hypothesis
