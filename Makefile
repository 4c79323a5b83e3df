# The two lines of the README. Everything goes into .venv; `make clean` takes it away again.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what it imports and keeps it, where it may; pip would compile all there is, which takes longer than to
# unpack it.
INSTALL := pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

.PHONY: demo test audit clean

demo: .venv/installed
	$(BIN)/edgedl compress --recipe cnn-int8

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=15

# Needs the network: whether the packages in .venv have weaknesses that are known. pip-audit has a venv of its own.
audit: .venv/installed-dev .venv-audit/installed
	.venv-audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/$(INSTALL) pip-audit
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) --upgrade pip
	$(BIN)/$(INSTALL) --editable '.[all]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/$(INSTALL) --editable '.[all,dev]'
	touch $@

clean:
	rm -rf .venv .venv-audit
