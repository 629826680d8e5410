# make demo   install into .venv, then simulate, denoise and report into demo/
# make test   install with the tools of the developers, then format, lint, types and tests
# make lint   only format, lint and types
# make bench  compare with the paper's network and with the best that is possible, into bench/: many
#             hours (it says how many); goes on where it was stopped. BENCH_ARGS=--quick: minutes
# make clean  remove .venv and caches (results in demo/ stay)
#
# Another Python:       make demo PYTHON=python3.12
# Only some tests:      make test PYTEST_ARGS="tests/test_movie.py -k crop"
# Other budgets:        make bench BENCH_ARGS="--budgets 60s,5min --seeds 5"
# Without make (Windows): see docs/install.md

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=
# A real movie without a truth, judged without reference.
BENCH_REAL ?= $(wildcard ../shared/data/au_glc/*.tif)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt

.PHONY: help demo test lint bench clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

demo: $(VENV)/installed
	$(BIN)/shine demo -o demo

test: lint
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/bench.py -o bench --real $(BENCH_REAL) $(BENCH_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/installed: $(VENV)/created $(SOURCES)
	$(PIP) install -c constraints.txt -e ".[formats]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/created $(SOURCES)
	$(PIP) install -c constraints.txt -e ".[formats,simulate,baselines,dev]"
	$(PIP) install -c constraints.txt --no-deps topaz-em
	@touch $@ $(VENV)/installed

$(VENV)/created:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "shine-em needs Python 3.11 or newer, but there is no '$(PYTHON)'." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "shine-em needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1)." >&2; \
	  echo "Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments." >&2; \
	  echo "On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard src tests benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +
