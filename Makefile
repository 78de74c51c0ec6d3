# make demo: the whole job on generated videos.   make test: ruff, mypy, pytest.   make bench: speed, side by side.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(PY) -m pip install --quiet --editable ".[export,serve,s3,postgres,grpc,ray]" --group test
	touch $@

demo: $(VENV)/installed
	@PY=$(PY) sh tests/demo.sh

test: $(VENV)/tested
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	OMP_NUM_THREADS=1 PYTHONWARNDEFAULTENCODING=1 $(PY) -m pytest $(PYTEST_ARGS)

bench: $(VENV)/tested
	$(PY) -m tests.bench

clean:
	rm -rf $(VENV) demo runs build *.egg-info
