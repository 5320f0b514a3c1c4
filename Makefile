# What a person and CI run: `make demo` first, then `make test`.
PYTHON ?= python3
SHELL := /bin/bash -o pipefail
PIP_INSTALL = pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-install check format docs deb clean

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: .venv/demo ## the daemon on a sample, or on CLIP=path; no broker and no camera needed
	.venv/bin/edgefer demo $(if $(CLIP),"$(CLIP)")

test: check .venv-tflite/done .venv-train/done mosquitto shellcheck systemd ## everything: checks, and the tests on both runtimes
	.venv/bin/pytest
	@# tflite-runtime 2.14 has no wheel past Python 3.11.
	if .venv-tflite/bin/python -c 'import tflite_runtime' 2>/dev/null; then \
	  .venv-tflite/bin/pytest tests/test_models.py tests/test_detector.py tests/test_embedding.py tests/test_emotion.py tests/test_analyze.py; \
	else echo "tflite-runtime isn't there for this Python: its tests are left out"; fi
	.venv-train/bin/pytest tests/test_tools.py

test-install: .venv/dev ## the installer and the Debian package on a Debian of their own; minutes, root and a network
	INSTALL_TESTS=1 .venv/bin/pytest tests/test_install.py

check: .venv/dev ## ruff, format, mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/dev ## format the code
	.venv/bin/ruff check --fix-only
	.venv/bin/ruff format

docs: .venv/dev ## write the generated pages of docs/ anew
	.venv/bin/python tools/write_docs.py docs

deb: ## a Debian package for this system, in dist/
	deploy/deb.sh

clean: ## remove the environments and what was built
	rm -rf .venv .venv-tflite .venv-train build dist

.venv/demo: pyproject.toml
	@tools/need.sh venv
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/$(PIP_INSTALL) -e '.[demo]'
	touch $@

.venv/dev: .venv/demo
	.venv/bin/$(PIP_INSTALL) -e '.[dev,demo,seal]'
	touch $@

.venv-tflite/done: pyproject.toml
	@tools/need.sh venv
	test -x .venv-tflite/bin/python || $(PYTHON) -m venv .venv-tflite
	.venv-tflite/bin/$(PIP_INSTALL) -e '.[tflite,dev,demo,seal]'
	@# LiteRT comes first where both are: it has to go for the older runtime to be tested.
	.venv-tflite/bin/pip uninstall --quiet --yes ai-edge-litert
	touch $@

.venv-train/done: pyproject.toml
	@tools/need.sh venv
	test -x .venv-train/bin/python || $(PYTHON) -m venv .venv-train
	.venv-train/bin/$(PIP_INSTALL) -e '.[train,dev]'
	touch $@

.PHONY: mosquitto shellcheck systemd
mosquitto shellcheck systemd:
	@tools/need.sh $@
