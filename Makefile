# Everything a person types. `make` alone lists the targets.
# Nothing is needed beforehand but Debian or Ubuntu with make and Python 3.11 or newer.

# The Docker engine and the firewall rule need root.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
# Another Python than the machine's (make unit PYTHON=python3.13) has an environment of its own, here .venv-3.13.
PYTHON ?=
VENV := .venv$(if $(PYTHON),-$(patsubst python%,%,$(notdir $(PYTHON))))
OURS := $(VENV)/bin/python
SETUP := PYTHON='$(PYTHON)' VENV='$(VENV)' tests/lab/setup.sh
WITH_ENGINE := $(ROOT) $(OURS) -m tests.lab.engine run --
# Tests run in a shuffled order. The seed stands still so that a failure can be repeated; another one
# (make test SEED=7) looks for tests that lean on each other.
SEED ?= 1
PYTEST := $(OURS) -m pytest --randomly-seed=$(SEED)
# Most tests wait for containers and servers, so two files at a time take little more than half as long.
WORKERS ?= 2
RELEASE ?= trixie
TARGETS ?= demo test
IN_PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo demo-vantage6 test check fmt unit unit-all integration interop crash-matrix soak hostile hostile-peer fuzz rootless fresh bench same-results engine engine-stop install uninstall deb setup venv prepare clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## three hospitals, one federated average; nothing is left behind
	@$(ROOT) $(OURS) -m tests.lab.prepare demo
	@$(WITH_ENGINE) $(OURS) -m tests.lab.demo

demo-vantage6: prepare ## the same with the real vantage6 server and client
	@$(WITH_ENGINE) $(OURS) -m tests.lab.demo vantage6

test: prepare ## every test, against real parts; nothing is skipped
	@CI=true $(WITH_ENGINE) $(PYTEST) $(IN_PARALLEL)

check: venv ## lint, format, types, and the arrows between modules
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(PYTEST) -q tests/unit/test_architecture.py

fmt: venv ## put the code into its usual form
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

unit: venv ## tests without sockets and without an engine
	@$(PYTEST) $(IN_PARALLEL) tests/unit

unit-all: ## the same on each Python from 3.11 to 3.14 that this machine has
	@MAKE='$(MAKE)' tests/lab/unit_all.sh

integration: setup ## tests against a real Docker engine
	@CI=true $(WITH_ENGINE) $(PYTEST) tests/integration

interop: prepare ## tests against the real vantage6 server, client and algorithm tools
	@CI=true $(WITH_ENGINE) $(PYTEST) tests/interop

crash-matrix: setup ## the agent dies at every place with every kind of run (make test: at some of them)
	@CI=true CRASH_MATRIX=all $(WITH_ENGINE) $(PYTEST) tests/integration/test_crash_points.py tests/integration/test_crash_kinds.py

soak: setup ## 500 runs while agent and server are killed at random (ARGS="--runs 50 --seed 7 --json")
	@$(WITH_ENGINE) $(OURS) -m tests.lab.soak $(ARGS)

hostile: prepare ## the attacks with real parts alone, and longer than in `make test`
	@CI=true HOSTILE_SECONDS=60 $(WITH_ENGINE) $(PYTEST) tests/hostile

hostile-peer: setup ## a program that reads another person's input, on vantage6's own node and on ours
	@$(WITH_ENGINE) $(OURS) -m tests.hostile.peer

fuzz: venv ## every parser of outside data, a minute each, with atheris (ARGS="--seconds 600 --only envelope")
	@$(VENV)/bin/pip install -q --disable-pip-version-check atheris
	@$(OURS) -m tests.fuzz $(ARGS)

rootless: ## an ordinary user with Podman and rootless Docker: what docs/rootless.md says works
	@$(SETUP) rootless
	@$(ROOT) $(OURS) -m tests.lab.rootless podman python3 -m pytest -p no:cacheprovider tests/rootless
	@$(ROOT) $(OURS) -m tests.lab.rootless docker python3 -m pytest -p no:cacheprovider tests/rootless

fresh: ## both commands on a fresh system of another release, 35 minutes (RELEASE=trixie TARGETS="demo test" ARGS=--keep)
	@$(SETUP) fresh
	@$(ROOT) $(OURS) -m tests.environments.fresh $(ARGS) $(RELEASE) $(TARGETS)

bench: setup ## speed beside vantage6's own node and the bare engine, 25 minutes (ARGS="--quick --only burst")
	@$(WITH_ENGINE) $(OURS) -m tests.bench $(ARGS)

same-results: setup ## analyses on three of our nodes and three of vantage6's own give the same bytes
	@$(WITH_ENGINE) $(OURS) -m tests.bench.same_results

engine: setup ## start a Docker engine and leave it running
	@$(ROOT) $(OURS) -m tests.lab.engine start

engine-stop: venv ## stop the engine that `make engine` started
	@$(ROOT) $(OURS) -m tests.lab.engine stop

install: ## the agent as a systemd service on this machine (root)
	@$(ROOT) systemd/install.sh install

uninstall: ## take the service away; configuration and state stay
	@$(ROOT) systemd/install.sh uninstall

deb: venv ## the agent as a Debian package for this distribution, in dist (VERSION=...)
	@packaging/debian/build.sh

clean: ## remove what was made here: images, environments, caches
	@[ ! -x $(OURS) ] || $(ROOT) $(OURS) -m tests.lab.images remove || true
	@[ ! -x $(OURS) ] || $(ROOT) $(OURS) -m tests.lab.engine stop || true
	@$(ROOT) rm -rf .lab .venv .venv-* .mypy_cache .ruff_cache .pytest_cache ./*.egg-info build dist
	@find . -name __pycache__ -type d -prune -exec $(ROOT) rm -rf {} +

setup:
	@$(SETUP)

venv:
	@$(SETUP) venv

prepare: setup
	@$(ROOT) $(OURS) -m tests.lab.prepare
