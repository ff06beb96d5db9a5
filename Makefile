# `make serve` and `make test` install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
CLIENTS := python python_openai2

.PHONY: serve test test-slow lint browser clients schemathesis bench gpu-check demo-model score-demo-model clean

serve: $(VENV)/installed
	$(BIN)/tandem serve $(ARGS)

test: lint browser
	$(BIN)/pytest $(ARGS)

# What takes too long for every run.
test-slow: $(VENV)/installed-dev
	$(BIN)/pytest -m slow $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# tests/page drives Chromium. Root gets it from Debian's or Ubuntu's packages; where it cannot be had, those tests fail
# and say so, and the others run.
browser:
	@test -n "$(CHROMIUM)$$(which $(BROWSERS) 2>/dev/null)" \
	|| { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
	|| echo "Chromium is missing: install it (apt-get install chromium), or set CHROMIUM to its path" >&2

# Other people's clients against both backends, each in an environment of its own below tests/clients: Python and node.
clients: $(VENV)/installed-dev $(CLIENTS:%=tests/clients/%/.venv/installed) tests/clients/js/node_modules/installed
	$(BIN)/python -m tests.clients.run $(ARGS)

# Requests drawn from /openapi.json, against both backends: ARGS="--backend optimized --seconds 60 --examples 10".
schemathesis: $(VENV)/installed-dev tests/clients/schemathesis/.venv/installed
	$(BIN)/python -m tests.clients.schemathesis.run $(ARGS)

tests/clients/%/.venv/installed: tests/clients/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

tests/clients/js/node_modules/installed: tests/clients/js/package-lock.json
	cd tests/clients/js && npm ci --no-audit --no-fund
	touch $@

# Measurements on random weights, for a quiet machine: ARGS="kernels|engines|prefix|step|speculation|front …"; kernels,
# then engines if none is named.
bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Measures and tests on a CUDA machine in nine minutes, with a Python that has torch and Triton for it; writes
# gpu-check.json. ARGS="kernels …" for some parts, "--commit SHA" outside a repository, "--dry" on a CPU.
gpu-check:
	$(PYTHON) -m tests.gpu.check --out gpu-check.json $(ARGS)

# Writes the bundled model anew from dialogues that a seeded script makes: 50 to 80 minutes on two cores.
demo-model: $(VENV)/installed
	$(BIN)/python -m demo.train --out tandem/bundled
	$(BIN)/python -m demo.score

score-demo-model: $(VENV)/installed
	$(BIN)/python -m demo.score

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
