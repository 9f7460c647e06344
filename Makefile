# Heed's commands. `.venv/` is the environment they build; everything a run writes goes under `var/`.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
export PORT ?= 8000
NIGHTS ?= 1
SEED ?= 0
PART ?=
ARGS ?=
CASES ?= 10000

.PHONY: help demo stop test slow loop bench fuzz lint browser

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

# The stamp tells the last complete installation; a changed pin makes it old. Python compiles what it imports, when it does.
.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Heed needs Python 3.11 or later; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@.venv/bin/python -c '' 2>/dev/null || { rm -rf .venv && $(PYTHON) -m venv .venv; } || { echo "make: no virtual environment could be made; on Debian: apt-get install python3-venv" >&2; exit 1; }
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@touch $@

# lm-evaluation-harness: 40 packages that one command needs, so no demo waits for them.
.venv/.tasks: .venv/.installed training/tasks-requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r training/tasks-requirements.txt
	@touch $@

demo: .venv/.installed ## everything on http://127.0.0.1:PORT (8000), until Ctrl-C or `make stop`
	@exec .venv/bin/python -m labeling.demo start

stop: ## end the demo of this clone, wherever it runs
	@test ! -x .venv/bin/python || exec .venv/bin/python -m labeling.demo stop

test: .venv/.installed browser ## everything that the tests need, browser included, then the tests; ARGS="-k name" for some
	.venv/bin/python -m pytest -n auto -m "not slow" $(ARGS)

slow: .venv/.installed .venv/.tasks browser ## the tests that take long: kills, processes side by side, every page; CI runs them after the others
	.venv/bin/python -m pytest -n auto -m slow $(ARGS)

loop: .venv/.installed ## the whole loop once, unattended, with simulated labelers; NIGHTS=1 SEED=0
	@exec .venv/bin/python -m tests.loop.run --nights $(NIGHTS) --seed $(SEED)

bench: .venv/.installed ## benchmarks; PART=labeling or training
	@exec .venv/bin/python -m tests.bench $(PART)

fuzz: .venv/.installed ## the API against its OpenAPI schema: CASES=10000 requests
	HEED_API_CASES=$(CASES) .venv/bin/python -m pytest tests/labeling/test_api_schema.py -s

lint: .venv/.installed ## formatter, linter, types, templates
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	SECRET_KEY=lint ALLOWED_HOSTS=localhost .venv/bin/python -m mypy
	.venv/bin/python -m djlint --check --lint --quiet templates

# Debian's own browser: the tests drive it, and nothing is downloaded from elsewhere.
browser:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	  else \
	    echo "make: the browser tests need chromium; on Debian: sudo apt-get install chromium" >&2; exit 1; \
	  fi; }
