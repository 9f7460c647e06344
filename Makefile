# Heed's commands. `.venv/` is the environment they build; everything a run writes goes under `var/`.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
export PORT ?= 8000

.PHONY: help test lint

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile

# The stamp holds the time of the last complete installation; a changed pin makes it old.
.venv/.installed: requirements.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch .venv/.installed

test: .venv/.installed ## everything the tests need, then all tests
	.venv/bin/python -m pytest -n auto tests

lint: .venv/.installed ## formatter, linter, types, templates
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
