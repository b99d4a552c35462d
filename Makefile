# The project's verbs. A fresh machine needs Python 3.11, pip, git, make and a C++ compiler.

PYTHON  ?= python3
BACKEND ?= cpu
ARGS    ?=
JOBS    ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
ROOMS  := core backends/$(BACKEND) quantization api
ALL    := $(ROOMS) $(filter-out backends/$(BACKEND),backends/sim) conformance
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
INPUTS := pyproject.toml constraints.txt $(ALL:%=%/pyproject.toml) \
          $(wildcard backends/$(BACKEND)/native/*) $(wildcard backends/$(BACKEND)/hatch_build.py)
SERVING := $(VENV)/serving-$(BACKEND)
DEV     := $(VENV)/dev-$(BACKEND)
TOOLS   := .venv-quant-tools

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve dev test check check-all format lint mypy pyright imports wheels conformance defects quant-tools bench clean

help: ## show the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

serve: $(SERVING) ## serve the bundled model on port 3000; ARGS="--port 8000" passes options
	@exec $(BIN)/infercore serve --backend $(BACKEND) $(ARGS)

dev: $(DEV) ## install every room editable, with all that tests and checks need; BACKEND=cpu

test: $(DEV) ## run the tests that need no accelerator
	$(PYTEST) -m "not slow" $(ARGS)

check: format lint mypy pyright imports ## formatting, lint, types, import rules: what CI asks

check-all: check $(DEV) ## check, and every test, those of minutes too
	$(PYTEST) $(ARGS)

format: $(DEV)
	$(BIN)/ruff format --check .

lint: $(DEV)
	$(BIN)/ruff check .

mypy: $(DEV)
	$(BIN)/mypy

pyright: $(DEV)
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(DEV)
	$(BIN)/lint-imports

wheels: $(DEV) ## build every room's wheel into dist/
	rm -rf dist
	for room in $(ALL); do $(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist $$room || exit; done

conformance: $(DEV) ## does a backend keep the contract? BACKEND=cpu; ARGS passes options
	@exec $(BIN)/infercore conformance run --backend $(BACKEND) $(ARGS)

defects: $(DEV) ## the suite over planted defects: ARGS="--named" for minutes, all of it for hours
	PYTHONPATH=tests/defects:tests/support $(BIN)/python -m planted --jobs $(JOBS) $(ARGS)

quant-tools: $(DEV) ## load what `quantize` writes with the formats' own packages
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install -q -U pip setuptools wheel ninja
	$(TOOLS)/bin/pip install -q torch==2.13.0 numpy==2.2.6 transformers==5.23.0 bitsandbytes==0.50.2 compressed-tensors==0.20.0 optimum==2.3.0 accelerate
	$(TOOLS)/bin/pip install -q --no-build-isolation gptqmodel==7.6.0 torch==2.13.0 transformers==5.23.0 numpy==2.2.6
	INFERCORE_QUANT_TOOLS=$(abspath $(TOOLS))/bin/python $(BIN)/python -m pytest tests/quantization/test_official_tools.py

bench: $(SERVING) ## measure offline and over HTTP; ARGS passes options
	@exec $(BIN)/infercore bench --backend $(BACKEND) $(ARGS)

clean: ## remove what these verbs made
	rm -rf $(VENV) backends/*/src/*/*.so .venv-wheels $(TOOLS) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The rooms go in with one command, so that each finds the others here and nowhere else.
$(SERVING): $(INPUTS) | $(BIN)/python
	@echo "Installing InferCore for serving into $(VENV): a minute or two, once"
	$(PIP) install -c constraints.txt $(ROOMS:%=-e %)
	@touch $@

$(DEV): $(INPUTS) | $(BIN)/python
	@echo "Installing InferCore for development into $(VENV): a minute or two, once"
	$(PIP) install -c constraints.txt $(ALL:%=-e %) -e examples/numpy '.[dev]'
	@touch $@ $(SERVING)
