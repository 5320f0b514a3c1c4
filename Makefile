# What a person and CI run: `make demo` first, then `make test`.
PYTHON ?= python3
SHELL := /bin/bash -o pipefail
SOAK_S ?= 3600
PIP_INSTALL = pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-install check format soak audit sbom docs deb clean

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: .venv/demo ## the daemon on a sample, or on CLIP=path; no broker and no camera needed
	.venv/bin/edgefer demo $(if $(CLIP),"$(CLIP)")

test: check .venv-tflite/done .venv-train/done mosquitto shellcheck systemd ## everything: checks, and the tests on both runtimes
	.venv/bin/pytest -n 3 --dist worksteal
	@# tflite-runtime 2.14 has no wheel past Python 3.11.
	if .venv-tflite/bin/python -c 'import tflite_runtime' 2>/dev/null; then \
	  .venv-tflite/bin/pytest -n 3 -m runtime tests/test_models.py tests/test_detector.py tests/test_embedding.py tests/test_emotion.py tests/test_analyze.py; \
	else echo "tflite-runtime isn't there for this Python: its tests are left out"; fi
	.venv-train/bin/pytest -n 2 --dist worksteal tests/test_tools.py

test-install: .venv/dev ## the installer and the Debian package on a Debian of their own; minutes, root and a network
	INSTALL_TESTS=1 .venv/bin/pytest tests/test_install.py

check: .venv/dev ## ruff, format, mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/dev ## format the code
	.venv/bin/ruff check --fix-only
	.venv/bin/ruff format

soak: .venv/dev mosquitto ## an hour (SOAK_S) of faults: are memory and file handles flat?
	PYTHONPATH=tests .venv/bin/python tests/faults/soak.py $(SOAK_S)

audit: .venv-audit/done ## known vulnerabilities of what a wheel installs; asks a public service, and fails where it can't
	@# Where the service can't be reached it ends in a traceback, which says less than its last line.
	@errors=.venv-audit/errors; \
	if .venv-audit/bin/pip-audit --requirement .venv-audit/installed.txt --no-deps --disable-pip --strict 2>$$errors; then cat $$errors; \
	elif grep -q '^Found ' $$errors; then cat $$errors >&2; exit 1; \
	else tail -n 1 $$errors >&2; echo 'make audit: nothing was audited: the service was not reached, or does not know a package (see above); try again with a network' >&2; exit 1; fi

sbom: .venv-audit/done ## what a wheel installs, as a CycloneDX bill of materials in dist/
	mkdir -p dist
	@# Validating it would fetch schemas from the network.
	.venv-audit/bin/cyclonedx-py environment --no-validate --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --of JSON --output-file dist/edgefer.cdx.json .venv-audit/wheel/bin/python

docs: .venv/dev ## write the generated pages of docs/ anew
	.venv/bin/python tools/write_docs.py docs

deb: ## a Debian package for this system, in dist/
	deploy/deb.sh

clean: ## remove the environments and what was built
	rm -rf .venv .venv-tflite .venv-train .venv-audit build dist

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

# The auditors in one environment, and in another what a wheel installs, with the extras of a service, and nothing else.
.venv-audit/done: pyproject.toml
	@tools/need.sh venv
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/$(PIP_INSTALL) 'pip-audit>=2.9,<3' 'cyclonedx-bom>=7,<8'
	rm -rf .venv-audit/wheel && $(PYTHON) -m venv --without-pip .venv-audit/wheel
	.venv-audit/bin/pip --python .venv-audit/wheel/bin/python install --quiet --disable-pip-version-check '.[seal]'
	.venv-audit/bin/pip --python .venv-audit/wheel/bin/python freeze --exclude edgefer > .venv-audit/installed.txt
	touch $@

.PHONY: mosquitto shellcheck systemd
mosquitto shellcheck systemd:
	@tools/need.sh $@
