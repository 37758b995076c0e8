# make demo   the examples in full size (but for examples/samplers, which trains for eight minutes first)
# make test   lint, types, tests, and all examples in small
# make bench  every benchmark on DEVICE (cpu or cuda); ARGS is passed on, e.g. ARGS="--only made"
# make lint   ruff and pyright
# make docs   the documentation, into build/site; a warning is an error
#
# A virtual environment in .venv is made on first use. PY=python3 uses an installed Python as it is instead, with
# fxsolve, torch and what the target needs already in it.

PYTHON ?= python3
DEVICE ?= cpu
# Tests run in so many processes, each on one thread; those of a file in one of them
WORKERS ?= 2
# pyproject.toml's package-dir map, said again in links for pyright, which does not read the map
TYPES := build/types/fxsolve
VENV := .venv
REPORTS := $(patsubst %,examples/%/out/report.html,rnn made densenet flows pixelcnnpp)
ifdef PY
STAMP :=
else
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
endif

.PHONY: demo test bench lint docs
.DEFAULT_GOAL := test

demo: $(STAMP)
	$(PY) -m examples.rnn.run --seconds 15
	$(PY) -m examples.rnn.train --steps 8
	$(PY) -m examples.made.run
	$(PY) -m examples.densenet.run
	$(PY) -m examples.flows.run
	$(PY) -m examples.pixelcnnpp.run --side 16
	@echo "what was compiled, and how it was solved, one page a system:"
	@ls -1 $(REPORTS)

test: lint docs
	$(PY) -m pytest -n $(WORKERS) --dist loadfile
	$(PY) -m examples.rnn.run --small
	$(PY) -m examples.rnn.train --small
	$(PY) -m examples.made.run --small
	$(PY) -m examples.densenet.run --small
	$(PY) -m examples.flows.run --small
	$(PY) -m examples.samplers.run --small
	$(PY) -m examples.pixelcnnpp.run --small

bench: $(STAMP)
	$(PY) -m benchmarks.run --device $(DEVICE) $(ARGS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

lint: $(STAMP)
	$(PY) -m ruff check
	@mkdir -p $(TYPES)
	@for name in fxsolve/__init__.py passes visualize; do ln -sfn ../../../$$name $(TYPES)/$$(basename $$name); done
	$(PY) -m pyright --pythonpath $(PY)

$(VENV)/.installed: pyproject.toml constraints.txt .ci/setup
	.ci/setup $(VENV) $(PYTHON)
	@touch $@
