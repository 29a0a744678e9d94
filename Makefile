# `make demo` and `make test` do everything on a fresh machine: each makes the environment it needs, once.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --disable-pip-version-check install -qq --constraint constraints.txt

.PHONY: demo test test-web bench bench-quick clean

demo: $(VENV)/ready-demo
	@$(RUN) -m demo $(ARGS)

test: $(VENV)/ready-dev
	@$(RUN) -m ruff check .
	@$(RUN) -m pytest $(ARGS)

test-web: $(VENV)/ready-dev
	@$(RUN) -m pytest tests/web -rs $(ARGS)

bench: $(VENV)/ready-bench
	@$(RUN) -m benchmarks.bench $(ARGS)

bench-quick: $(VENV)/ready-bench
	@$(RUN) -m benchmarks.bench --quick --anew --workers 2 --out out/bench-quick $(ARGS)

clean:
	rm -rf $(VENV) out

# A file $(VENV)/ready-X stands for "the extra X is installed"; it is older than its inputs when they have changed.
$(VENV)/ready-%: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing what 'make $(if $(filter dev,$*),test,$*)' needs into $(VENV) (minutes the first time) ..."
	@$(PIP) --editable ".[$*]"
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)
