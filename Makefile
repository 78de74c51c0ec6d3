# make demo: the whole pipeline on generated videos.   make test: ruff, mypy, pytest.   make bench: speed ratios.
# make lowest: the quick tests with the lowest versions that pyproject.toml allows (several GB of downloads).
PYTHON ?= python3
TEST_PROCESSES ?= 2
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test bench lowest clean

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

# Warnings are not errors here: old versions of one package warn about new versions of another.
lowest: LOWEST := .venv-lowest
lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --all-extras --group test pyproject.toml \
	  --output-file $(LOWEST)/versions.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --requirement $(LOWEST)/versions.txt --editable .
	$(LOWEST)/bin/python -m pytest -W default -m "not slow and not serial" $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .venv-lowest demo runs build *.egg-info
