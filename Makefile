PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo unit test test-benchmarks check test-trainers lock clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

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

unit: install  ## the tests that need this process alone: no Ray, server, browser or large model; half a minute
	$(BIN)/pytest -n 2 --dist loadfile -m "not cluster and not heavy" --ignore tests/faults

test: check  ## check, then every test but those of test-benchmarks
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not benchmark"

test-benchmarks: install  ## the benchmarks of the whole job, small: ten minutes
	$(BIN)/pytest -m benchmark tests/test_benchmarks.py

test-trainers: install  ## exports loaded by the trainers' own code, in .venv-trainers (7 GB)
	test -d .venv-trainers || $(PYTHON) -m venv .venv-trainers
	.venv-trainers/bin/pip install --quiet -r tests/trainers/requirements.txt
	.venv-trainers/bin/pip install --quiet --no-deps --upgrade --target .venv-trainers/swift datasets==4.8.4
	rm -rf build-trainers && $(BIN)/python tests/trainers/make_exports.py build-trainers
	EXPORTS=$(CURDIR)/build-trainers .venv-trainers/bin/python -m pytest -c tests/trainers/pytest.ini tests/trainers/check_trainers.py
	EXPORTS=$(CURDIR)/build-trainers PYTHONPATH=.venv-trainers/swift .venv-trainers/bin/python -m pytest -c tests/trainers/pytest.ini tests/trainers/check_ms_swift.py

lock: install  ## constraints.txt from what is installed
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.new && mv constraints.new constraints.txt

clean:  ## removes the environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis demo
