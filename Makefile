# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs;
# `make test` makes .venv-jax too, and `make test-torch` .venv-torch, where there is no TensorFlow.
# `make peers` and `make openvino` make .venv-peers and .venv-openvino, for benchmarks against other tools.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := luna_cls tests benchmarks

# Losses and metrics are for every backend of Keras.
BACKEND_TESTS := tests/test_losses.py tests/test_soft_confusion.py tests/test_metrics.py tests/test_distribution.py
BACKEND_NEEDS := 'keras >= 3.15.1' numpy scipy pandas scikit-learn SimpleITK nibabel isal pydantic tomli-w pytest 'pytest-xdist >= 3.7' hypothesis
jax_NEEDS := 'jax >= 0.5'
torch_NEEDS := 'torch == 2.13.0'
peers_NEEDS := $(torch_NEEDS) 'torchio == 1.2.1' 'monai[itk] == 1.6.1'
openvino_NEEDS := 'openvino == 2026.4.1'

# The model that ships: trained on phantom scans alone. REAL=FOLDER, a LUNA16 tree, adds its scores to the card.
MODEL := runs/model
CLI := $(BIN)/luna-cls

.PHONY: demo test notebooks coverage test-jax test-torch peers openvino mutants model lint clean

demo: $(VENV)/installed
	$(BIN)/luna-cls demo --out runs/demo --force

# Two test files at a time, or up to four where there are more cores: most of a test is one core's work. They
# begin in the order in which they are collected (tests/conftest.py).
PYTEST := python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed-dev
	$(BIN)/$(PYTEST) tests
	LUNA_CLS_NOTEBOOKS=small $(BIN)/python -m pytest -n auto --maxprocesses 2 --nbmake notebooks
	$(MAKE) test-jax

# Runs every notebook at full size, and keeps what it shows: some hours on two cores.
notebooks: $(VENV)/installed-dev
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=14400 --overwrite notebooks

# Which lines the tests reach; watching them takes half as long again.
coverage: $(VENV)/installed-dev
	$(BIN)/$(PYTEST) --cov --cov-report=term:skip-covered tests

test-jax test-torch: test-%: .venv-%/installed
	KERAS_BACKEND=$* .venv-$*/bin/$(PYTEST) $(BACKEND_TESTS)

peers openvino: %: .venv-%/installed

# How many small faults in what the scores and the training rest on the tests find: half an hour on two cores.
mutants: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0
	$(BIN)/python benchmarks/mutants.py

model: $(VENV)/installed
	$(CLI) phantom $(MODEL)/phantom --scans 140 --seed 300 --nodules 14 --imbalance 20 --force
	$(CLI) prepare $(MODEL)/phantom $(MODEL)/store --force
	$(CLI) train $(MODEL)/store $(MODEL)/run --recipe phantom --force
	$(CLI) predict $(MODEL)/run/model.keras $(MODEL)/phantom/subset9 \
	    --candidates $(MODEL)/phantom/candidates_V2.csv --out $(MODEL)/findings --force
	$(if $(REAL),$(BIN)/python benchmarks/transfer.py $(MODEL)/run/model.keras $(REAL) --json $(MODEL)/real.json)
	$(BIN)/python benchmarks/model_card.py $(MODEL)/run $(MODEL)/phantom $(MODEL)/findings luna_cls/pretrained \
	    $(if $(REAL),--real $(MODEL)/real.json)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-jax .venv-torch .venv-peers .venv-openvino build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv-jax/installed .venv-torch/installed .venv-peers/installed .venv-openvino/installed: .venv-%/installed: setup.cfg Makefile
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(BACKEND_NEEDS) $($*_NEEDS)
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
