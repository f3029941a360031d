PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test check lock clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/.installed  ## the environment, in .venv, at the locked versions

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install  ## the whole job on a small corpus and a small model that it makes itself
	$(BIN)/scalselect demo

check: install  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check  ## check, then every test
	$(BIN)/pytest

lock: install  ## constraints.txt from what is installed
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.new && mv constraints.new constraints.txt

clean:  ## removes the environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis demo
