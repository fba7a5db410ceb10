# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs;
# `make test` makes .venv-jax too, and `make test-torch` .venv-torch, where there is no TensorFlow.
# `make peers` and `make openvino` make .venv-peers and .venv-openvino, for benchmarks against other tools;
# `make release-check` makes .venv-release, for what goes out. All install the versions of constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_INSTALL := python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
VENV := .venv
BIN := $(VENV)/bin
SOURCES := luna_cls tests benchmarks docker

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

.PHONY: demo test notebooks coverage test-jax test-torch peers openvino mutants model image image-gpu lint lint-docker docs clean \
    constraints dist dist-check audit vulnerabilities sbom release-check

demo: $(VENV)/installed
	$(BIN)/luna-cls demo --out runs/demo --force

# Three test files at a time, or up to five where there are more cores: most of a test is one core's work, and
# some of it is waiting. They begin in the order in which they are collected (tests/conftest.py).
WORKERS := $(shell echo $$(($$(nproc 2> /dev/null || echo 2) + 1)))
PYTEST := python -m pytest -n $(WORKERS) --maxprocesses 5 --dist loadfile --no-loadscope-reorder

# The rooms that every score depends on: tests reach 95 % of the lines and 90 % of the branches of each.
ROOMS := luna_cls.judging luna_cls.cubes luna_cls.scans luna_cls.learning.losses luna_cls.learning.metrics
GATE := $(BIN)/python tests/coverage_gate.py coverage.json $(ROOMS)

test: $(VENV)/installed-dev
	$(BIN)/$(PYTEST) $(ROOMS:%=--cov=%) --cov-report=json:coverage.json tests
	$(GATE)
	LUNA_CLS_NOTEBOOKS=small $(BIN)/python -m pytest -n auto --maxprocesses 2 --nbmake notebooks
	$(MAKE) test-jax

# Runs every notebook at full size, and keeps what it shows: some hours on two cores.
notebooks: $(VENV)/installed-dev
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=14400 --overwrite notebooks

# Which lines the tests reach; watching them takes half as long again.
coverage: $(VENV)/installed-dev
	$(BIN)/$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=json:coverage.json tests
	$(GATE)

test-jax test-torch: test-%: .venv-%/installed
	KERAS_BACKEND=$* .venv-$*/bin/$(PYTEST) $(BACKEND_TESTS)

peers openvino: %: .venv-%/installed

# How many small faults in what the scores and the training rest on the tests find: forty minutes on two cores.
mutants: .venv-mutants/installed
	.venv-mutants/bin/python benchmarks/mutants.py

.venv-mutants/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/$(PIP_INSTALL) --editable '.[dev]' cosmic-ray==8.7.0
	touch $@

model: $(VENV)/installed
	$(CLI) phantom $(MODEL)/phantom --scans 140 --seed 300 --nodules 14 --imbalance 20 --force
	$(CLI) prepare $(MODEL)/phantom $(MODEL)/store --force
	$(CLI) train $(MODEL)/store $(MODEL)/run --recipe phantom --force
	$(CLI) predict $(MODEL)/run/model.keras $(MODEL)/phantom/subset9 \
	    --candidates $(MODEL)/phantom/candidates_V2.csv --out $(MODEL)/findings --force
	$(if $(REAL),$(BIN)/python benchmarks/transfer.py $(MODEL)/run/model.keras $(REAL) --json $(MODEL)/real.json)
	$(BIN)/python benchmarks/model_card.py $(MODEL)/run $(MODEL)/phantom $(MODEL)/findings luna_cls/pretrained \
	    $(if $(REAL),--real $(MODEL)/real.json)

# docs/how-to/containers.md says how to run what these build.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' luna_cls/__init__.py)

image:
	docker build --file docker/Dockerfile --target cpu --build-arg VERSION=$(VERSION) --tag luna-cls:cpu .

image-gpu:
	docker build --file docker/Dockerfile --target gpu --build-arg VERSION=$(VERSION) --tag luna-cls:gpu .

lint-docker: $(VENV)/installed-dev
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/*.sh
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml

lint: $(VENV)/installed-dev lint-docker
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms \
	    $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

# What a release needs; docs/releasing.md has its steps.
RELEASE := .venv-release/bin
CLEAN := build/clean
INTO_CLEAN := $(RELEASE)/python -m pip --python $(CLEAN)/bin/python install --quiet

# The newest versions that fit together, of everything that any extra installs, for every Python that is supported.
EXTRAS := gpu jax dicom cluster onnx openvino experiments docs dev release
constraints: .venv-release/installed
	mkdir -p build
	(echo "# Made by make constraints: versions that were tested together, for pip install --constraint."; \
	 $(RELEASE)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	    $(EXTRAS:%=--extra %) setup.cfg) > build/constraints.txt
	cp build/constraints.txt constraints.txt

dist: .venv-release/installed
	rm -rf dist
	$(RELEASE)/python -m build --outdir dist .
	$(RELEASE)/twine check --strict dist/*

# The wheel in a virtual environment of its own, as from an index: where a wheel lay on disk is not noted there.
$(CLEAN)/bin/luna-cls: dist
	rm -rf $(CLEAN)
	$(PYTHON) -m venv --without-pip $(CLEAN)
	$(INTO_CLEAN) --constraint constraints.txt dist/*.whl
	$(INTO_CLEAN) --no-deps --force-reinstall --no-index --find-links dist luna_cls

# The wheel as a stranger gets it: the demo, from an empty folder.
dist-check: $(CLEAN)/bin/luna-cls
	mkdir $(CLEAN)/empty
	cd $(CLEAN)/empty && env -u PYTHONPATH ../bin/luna-cls demo

# What the application consists of, in CycloneDX; the same bytes for the same versions.
sbom: $(CLEAN)/bin/luna-cls
	$(RELEASE)/cyclonedx-py environment --output-reproducible --output-file build/luna_cls.cdx.json $(CLEAN)/bin/python

# Licences of what users and developers install, against the list in pyproject.toml.
audit: .venv-release/installed $(VENV)/installed-dev
	$(RELEASE)/pip-licenses --python $(BIN)/python

# Known vulnerabilities of the versions in constraints.txt, asked of PyPI.
vulnerabilities: .venv-release/installed
	$(RELEASE)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

release-check: lint audit dist-check sbom

# The documentation site, in build/docs; a warning fails. (The variable is the theme's own, against its banner.)
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .venv-jax .venv-torch .venv-peers .venv-openvino .venv-mutants .venv-release build dist *.egg-info .coverage coverage.json .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) --editable '.[dev]'
	touch $@

.venv-jax/installed .venv-torch/installed .venv-peers/installed .venv-openvino/installed: .venv-%/installed: setup.cfg constraints.txt Makefile
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/$(PIP_INSTALL) $(BACKEND_NEEDS) $($*_NEEDS)
	.venv-$*/bin/$(PIP_INSTALL) --no-deps --editable .
	touch $@

# Tools alone, beside nothing that they look at: those of the extra `release`, without luna_cls.
.venv-release/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-release
	$(PYTHON) -c "import configparser as c; p = c.ConfigParser(); p.read('setup.cfg'); \
	    print(p['options.extras_require']['release'])" > .venv-release/requirements.txt
	.venv-release/bin/$(PIP_INSTALL) --requirement .venv-release/requirements.txt
	touch $@
