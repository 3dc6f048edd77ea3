# Developers and CI use the same targets.
#
#   make run     run the gateway with its embedded parts; prints a link to its console, a token and commands to try
#   make demo    two devices speak at the same time, and each gets its own words
#   make kafka   run a Kafka server on port 9092 (KAFKA_PORT) until Ctrl-C; it is empty at each start
#   make test    all tests but the slow ones, in about four minutes; on Apache Kafka if Java and Maven are installed,
#                else on a substitute, and on Redis if redis-server is installed
#   make test-fast      the tests that start no process, in half a minute
#   make test-all       all but the nightly tests, including those that stop servers, load the machine or run Whisper
#   make test-lowest    the tests that depend on the libraries' versions, with the lowest that setup.py allows; without Kafka
#   make test-lower     test-lowest, if one of the lowest versions is lower than the newest: what CI runs
#   make test-nightly   all tests, including the longest, in random order, with ten times as many random examples; then
#                those that need no Kafka with the lowest versions
#   make prepare install what test-lowest and test-all need, which takes a minute; CI does it beside make check
#   make check   formatting, lint, types, import layers
#   make constraints    regenerate conf/constraints.txt: the versions and hashes that deployments install
#   make figures  modules, functions, classes, comments, words of this tree, or side by side: COMMITS='v0.1 main'
#   make soak    300 devices that connect, vanish and return for two minutes
#   make memory  the gateway's memory while the mailbox or the broker hangs. Requires Java, Maven and Redis
#   make survive kill the gateway six times while messages flow, with each mailbox
#   make soak-servers   200 devices that roam between three servers for five minutes, or SOAK_SECONDS. Requires Java, Maven,
#                Redis and Go, as the next two do
#   make servers  several servers that are killed, paused and cut off from Redis, checked with Porcupine
#   make rolling  restart three servers, and three workers, under 10,000 devices
#   make nightly  test-nightly, soak, soak-servers, survive, servers and rolling: two hours
#   make bench   compare the gateway with six others, then measure a mailbox; some minutes. Requires Java, Maven and Go
#   make bench-full   the same with up to 50,000 devices, memory, growth and storms; most of an hour

PYTHON ?= python3
PORT ?= 8080
KAFKA_PORT ?= 9092
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv ignores pip's configuration: pass on pip's index and CA, unless uv's own variables are set.
PIP_SETTING = $(BIN)/python -m pip --disable-pip-version-check config get
UV = index="$${PIP_INDEX_URL:-$$($(PIP_SETTING) global.index-url 2>/dev/null)}"; \
  ca="$${PIP_CERT:-$$($(PIP_SETTING) global.cert 2>/dev/null)}"; \
  if [ -n "$$index" ] && [ -z "$$UV_INDEX_URL$$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
  if [ -n "$$ca" ] && [ -z "$$SSL_CERT_FILE" ]; then export SSL_CERT_FILE="$$ca"; fi; \
  $(BIN)/uv
URL := 127.0.0.1:$(PORT)

# Keep bytecode regardless of the environment: rewriting the tests' assertions takes seconds in each process.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# Keeps the order of tests/tiers.py; tests/conftest.py sets the number of processes.
PARALLEL := -n auto --no-loadscope-reorder
PYTEST_LOWEST := PYTHONDONTWRITEBYTECODE= $(LOWEST)/bin/python -m pytest $(PARALLEL) --hypothesis-profile=lowest \
  -m 'not slow and not nightly and not kafka'

# What `make constraints` upgrades: everything, or one library with UPGRADE='--upgrade-package tornado'.
UPGRADE ?= --upgrade

SOAK_SECONDS ?= 300

.PHONY: run demo kafka test test-fast test-all test-lowest test-lower test-nightly prepare check constraints format figures soak \
  soak-servers memory survive servers rolling nightly bench bench-full clean
.DEFAULT_GOAL := run

run: $(VENV)/installed
	@token=$$($(BIN)/cocoa mint-token --device-id doll-1 2>/dev/null) || { $(BIN)/cocoa mint-token --device-id doll-1; exit 1; }; \
	link=$$($(BIN)/python -m cocoa_tornado_cli.console_link $(PORT) 2>/dev/null); \
	if [ -n "$$link" ]; then printf '\n  Console, signed in for 12 hours:\n    %s\n' "$$link"; fi; \
	printf '\n  Gateway   http://$(URL)\n  Devices   ws://$(URL)/ws\n  Token     %s\n' "$$token"; \
	printf '\n  Try it, in another terminal:\n    %s\n' '$(BIN)/cocoa probe-device ws://$(URL)/ws --audio demo/somewhere.wav'; \
	printf '\n  Or receive messages as the device doll-1, and send one from a third terminal:\n    %s\n' \
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
	$(PYTEST_LOWEST) --lowest $(PYTEST_OPTIONS)

# For CI, which runs test-all as well: nothing, as long as setup.py allows no lower version than the newest.
test-lower: $(VENV)/installed-engines $(LOWEST)/installed
	@lower=$$($(BIN)/python -m testing.lowest_versions $(LOWEST)) || exit 1; \
	if [ -n "$$lower" ]; then echo "$$lower"; $(MAKE) test-lowest; \
	else echo 'The lowest versions are the newest: test-all is their test, too.'; fi

test-nightly: $(VENV)/installed-engines $(LOWEST)/installed $(VENV)/axe
	$(PYTEST) $(PARALLEL) -p randomly --hypothesis-profile=nightly $(PYTEST_OPTIONS)
	$(PYTEST_LOWEST) --ignore=tests/asyncapi --ignore=tests/bench --ignore=tests/openapi $(PYTEST_OPTIONS)

# What the first tests would wait for: the lowest versions, the tests' bytecode (all processes would write it), Kafka.
prepare: $(VENV)/installed-engines $(LOWEST)/installed
	$(PYTEST) --collect-only -qq >/dev/null
	$(BIN)/python -W ignore -c 'from testing.kafka_server import prepare; prepare()'

check: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_layers.py

# One file for all platforms and versions of Python.
constraints: $(VENV)/installed-test
	@$(UV) pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes --extra all \
	  --custom-compile-command 'make constraints' --output-file conf/constraints.txt setup.py

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

figures: $(VENV)/installed
	@$(BIN)/python -m bench.figures $(COMMITS)

soak: $(VENV)/installed-test
	$(BIN)/python -m bench.soak

soak-servers: $(VENV)/installed-test
	$(BIN)/python -m bench.servers --fault none --seconds $(SOAK_SECONDS)

memory: $(VENV)/installed-test
	$(BIN)/python -m bench.memory

survive: $(VENV)/installed-test
	$(BIN)/python -m bench.survival --mailbox sqlite
	$(BIN)/python -m bench.survival --mailbox redis

servers: $(VENV)/installed-test
	$(BIN)/python -m bench.servers
	$(BIN)/python -m bench.servers --servers 5 --mode strict --seconds 120
	$(BIN)/python -m bench.servers --fault tail --seconds 120

rolling: $(VENV)/installed-test
	$(BIN)/python -m bench.rolling
	$(BIN)/python -m bench.rolling --mailbox none
	$(BIN)/python -m bench.rolling --restart workers
	$(BIN)/python -m bench.rolling --restart parent
	$(BIN)/python -m bench.rolling --update

nightly: test-nightly soak soak-servers survive servers rolling

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench.harness
	$(BIN)/python -m bench.path
	$(BIN)/python -m bench.mailbox_cost --large 0

bench-full: $(VENV)/installed-bench
	$(BIN)/python -m bench.harness --full

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is required; select one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py pyproject.toml | $(VENV)/bin/python
	@echo 'Installing the gateway into $(VENV): about a minute.'
	@$(PIP) --editable '.[speech]' || \
	  { echo 'No prebuilt speech engine for this machine; continuing without speech.' >&2; $(PIP) --editable .; }
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

# axe-core, which judges the console's pages; without npm its test is skipped.
$(VENV)/axe: | $(VENV)/bin/python
	@if command -v npm >/dev/null; then npm install --silent --no-save --prefix $@ axe-core@4.14.1; \
	else echo 'No npm: axe-core does not judge the console.' >&2; fi

# Direct requirements at their lowest versions; indirect ones at their newest.
$(LOWEST)/installed: setup.py pyproject.toml | $(VENV)/installed-test
	$(BIN)/python -m venv --clear $(LOWEST)
	@$(UV) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
