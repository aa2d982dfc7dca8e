PYTHON ?= python3
VENV ?= .venv
SIZE ?= standard
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
READY := $(VENV)/.ready
# The tests of a file run in one process because they share fixtures; four processes need about 10 GB. Files run in
# the order of their folders, because those of end_to_end/, which are the longest, have to come first.
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
TRANSFER_TESTS = $$(grep -lE 'transfer|train_net|convert_to_d2' -r tests --include='test_*.py')

.PHONY: help setup demo demo-vit demo-mechanism test test-gpu test-d2-main test-libraries lint docs clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 22

setup: $(READY) ## Create .venv with all libraries and detectron2 (PYTHON=python3.11 selects another Python)

# pip reads its settings from the environment, so they can be given as variables: PIP_EXTRA_INDEX_URL, PIP_INDEX_URL, ...
# setuptools is installed first: without build isolation, a build uses what is in the environment.
$(READY): setup.py constraints.txt transfer/install_detectron2.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 14) else \
	    "error: Python %d.%d is not supported: use 3.10 to 3.14, for example make setup PYTHON=python3.11" % v)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt setuptools wheel
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@# The two OpenCV wheels overwrite each other; machines without libGL need the headless one.
	@if $(PY) -c 'import cv2' 2>&1 | grep -q 'cannot open shared object file'; then \
	    $(PIP) uninstall --quiet --yes opencv-python && \
	    $(PIP) install --quiet --no-deps --force-reinstall --constraint constraints.txt opencv-python-headless; fi
	$(PY) tools/install_detectron2.py
	@touch $@

demo: $(READY) ## Run every step on photographs and write demo/report.html (SIZE=quick|standard|full)
	$(PY) tools/demo.py --size $(SIZE)

demo-vit: $(READY) ## The same with a small ViT, pre-trained with MoCo v3: demo/vit/report.html
	$(PY) tools/demo.py --vit --size $(SIZE)

demo-mechanism: $(READY) ## Plot the effect of shuffled batch norm and of the momentum
	$(PY) tools/demo.py --mechanism

test: $(READY) ## Run all tests
	$(PYTEST)

test-gpu: $(READY) ## Run the tests that need a GPU, a few minutes on one
	@$(PY) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "error: no GPU found")'
	$(PY) -m pytest -m gpu --durations 15 tests/gpu

test-d2-main: $(READY) ## Run the transfer tests on a checkout of detectron2's main branch (D2=FOLDER)
	@test -f "$(D2)/detectron2/__init__.py" || \
	    { echo 'error: D2 is not a checkout of detectron2: use make test-d2-main D2=FOLDER' >&2; exit 2; }
	PYTHONPATH="$(abspath $(D2))" $(PYTEST) $(TRANSFER_TESTS)

test-libraries: $(READY) ## Convert networks built and saved by timm, transformers and lightly (installs them)
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[libraries]'
	$(PY) -m pytest tests/transfer/convert/test_libraries.py

lint: $(READY) ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(READY) ## Build the site of docs/ in site/ without a network; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "Open site/index.html; for search, run $(PY) -m http.server --directory site"

clean: ## Remove .venv, caches and build files; keep data sets and results
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
