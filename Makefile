# What a developer runs is what CI runs.
#
#   make run     the gateway on its embedded parts, a token, and the line to try it with
#   make demo    two devices speak at the same time, and each gets its own words
#   make kafka   a Kafka on port 9092 (KAFKA_PORT), empty at each start, until Ctrl-C: the one of the tests
#   make test    all but the slow tests, in about four minutes; on Apache Kafka where Java and Maven are, else on a
#                stand-in, and on Redis where redis-server is
#   make test-fast      the tests that start nothing, in half a minute: for every save
#   make test-all       all tests but the nightly ones: also those that break servers, load the machine or run Whisper
#   make test-lowest    all but the slow ones and Kafka's, on the lowest versions of the libraries that setup.py allows
#   make test-nightly   all tests, also the Go examples', in random order, with ten times as many examples, and never the same ones
#   make check   formatting, lint, types, direction of imports
#   make constraints    write conf/constraints.txt anew: the versions and hashes that deployments install
#   make soak    300 devices that connect, vanish and return for two minutes
#   make memory   what the gateway holds while the mailbox, or the broker, stands still. Needs Java, Maven and Redis
#   make survive the gateway killed six times while messages flow, with each mailbox
#   make bench   the gateway beside six others, for a few minutes; then what a mailbox adds. Needs Java, Maven and Go
#   make bench-full   the same with up to 50,000 devices, memory, growth and storms: most of an hour

PYTHON ?= python3
PORT ?= 8080
KAFKA_PORT ?= 9092
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv reads neither pip's variables nor its files: pass on the index and the CA that pip uses. Its own variables win.
PIP_SETTING = $(BIN)/python -m pip --disable-pip-version-check config get
UV = index="$${PIP_INDEX_URL:-$$($(PIP_SETTING) global.index-url 2>/dev/null)}"; \
  ca="$${PIP_CERT:-$$($(PIP_SETTING) global.cert 2>/dev/null)}"; \
  if [ -n "$$index" ] && [ -z "$$UV_INDEX_URL$$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
  if [ -n "$$ca" ] && [ -z "$$SSL_CERT_FILE" ]; then export SSL_CERT_FILE="$$ca"; fi; \
  $(BIN)/uv
URL := 127.0.0.1:$(PORT)

# Rewriting the tests' assertions takes seconds in each process: keep the bytecode, whatever the shell says.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# In the order of tests/tiers.py; the number of processes is in tests/conftest.py.
PARALLEL := -n auto --no-loadscope-reorder

# Of what `make constraints` raises: everything, or with UPGRADE='--upgrade-package tornado' one library alone.
UPGRADE ?= --upgrade

.PHONY: run demo kafka test test-fast test-all test-lowest test-nightly check constraints format soak memory survive bench bench-full clean
.DEFAULT_GOAL := run

run: $(VENV)/installed
	@token=$$($(BIN)/cocoa mint-token --device-id doll-1 2>/dev/null) || { $(BIN)/cocoa mint-token --device-id doll-1; exit 1; }; \
	printf '\n  Gateway   http://$(URL)\n  Devices   ws://$(URL)/ws\n  Token     %s\n' "$$token"; \
	printf '\n  Try it, in another terminal:\n    %s\n' '$(BIN)/cocoa probe-device ws://$(URL)/ws --audio demo/somewhere.wav'; \
	printf '\n  Or be the device doll-1, and say something to it from a third one:\n    %s\n' \
	  '$(BIN)/cocoa probe-device ws://$(URL)/ws --device-id doll-1 --listen 0'; \
	printf '    %s\n      %s\n      %s\n\n' 'curl http://$(URL)/api/v1/transcriptions \' \
	  '-H "Authorization: Bearer $$('$(BIN)'/cocoa mint-token --device-id doll-1)" \' \
	  "-d '{\"device_id\":\"doll-1\",\"text\":\"Hello\"}'"
	@exec $(BIN)/cocoa serve --port $(PORT)

demo: $(VENV)/installed
	$(BIN)/python -m demo

kafka: $(VENV)/installed-test
	@exec $(BIN)/python -m testing.kafka_server $(KAFKA_PORT)

test: $(VENV)/installed-test
	$(PYTEST) $(PARALLEL) -m 'not slow and not nightly' $(PYTEST_OPTIONS)

test-fast: $(VENV)/installed-test
	$(PYTEST) -n 2 -m pure $(PYTEST_OPTIONS)

test-all: $(VENV)/installed-engines
	$(PYTEST) $(PARALLEL) -m 'not nightly' $(PYTEST_OPTIONS)

test-lowest: $(LOWEST)/installed
	PYTHONDONTWRITEBYTECODE= $(LOWEST)/bin/python -m pytest $(PARALLEL) -m 'not slow and not nightly and not kafka' --hypothesis-profile=lowest $(PYTEST_OPTIONS)

test-nightly: $(VENV)/installed-engines
	$(PYTEST) $(PARALLEL) -p randomly --hypothesis-profile=nightly $(PYTEST_OPTIONS)

check: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_layers.py

# For every platform and version of Python at once, so that one file serves all.
constraints: $(VENV)/installed-test
	@$(UV) pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes --extra all \
	  --custom-compile-command 'make constraints' --output-file conf/constraints.txt setup.py

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: $(VENV)/installed-test
	$(BIN)/python -m bench.soak

memory: $(VENV)/installed-test
	$(BIN)/python -m bench.memory

survive: $(VENV)/installed-test
	$(BIN)/python -m bench.survival --mailbox sqlite
	$(BIN)/python -m bench.survival --mailbox redis

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench.harness
	$(BIN)/python -m bench.path
	$(BIN)/python -m bench.mailbox_cost --large 0

bench-full: $(VENV)/installed-bench
	$(BIN)/python -m bench.harness --full

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py pyproject.toml | $(VENV)/bin/python
	@echo 'Installing the gateway into $(VENV): about a minute.'
	@$(PIP) --editable '.[speech]' || \
	  { echo 'There is no prebuilt speech engine for this machine: continuing without speech.' >&2; $(PIP) --editable .; }
	@touch $@

$(VENV)/installed-test: setup.py pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-engines: setup.py pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[test,test-engines]'
	@touch $@ $(VENV)/installed $(VENV)/installed-test

$(VENV)/installed-bench: setup.py pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[bench,test]'
	@touch $@ $(VENV)/installed $(VENV)/installed-test

# Direct requirements at their floors; what those require themselves is as new as it is for everybody.
$(LOWEST)/installed: setup.py pyproject.toml | $(VENV)/installed-test
	$(BIN)/python -m venv --clear $(LOWEST)
	@$(UV) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
