# make demo: the whole pipeline on generated videos.   make test: ruff, mypy, pytest.   make bench: speed ratios.
PYTHON ?= python3
TEST_PROCESSES ?= 2
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
	@PY=$(PY) sh tests/demo/demo.sh

# First the test files in two processes; then the few tests that measure time or memory, alone.
test: export OMP_NUM_THREADS = 1
test: export PYTHONWARNDEFAULTENCODING = 1
test: $(VENV)/tested
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -m "not serial" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
	$(PY) -m pytest -m serial $(PYTEST_ARGS)

bench: $(VENV)/tested
	$(PY) -m tests.bench

clean:
	rm -rf $(VENV) demo runs build *.egg-info
