# Everything that one does with this repository. Each target makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
EXTRAS := plot,data,arviz,book,test
CHECKED := coursepkg tools tests benchmarks book/_ext

# Two workers share two cores: with more than one thread each, they wait for one another.
ONE_THREAD := OMP_NUM_THREADS=1
# nbval runs the notebooks as tools/build_book.py did: this checkout's package, one thread, no bars.
AS_BUILT := PYTHONPATH=$(CURDIR) $(ONE_THREAD) TQDM_DISABLE=1

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RUFF_CACHE_DIR := _build/ruff_cache

.DEFAULT_GOAL := help
.PHONY: help book test test-slow lint serve publish links bench screenshots clean

help: ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'Python 3.11 or newer is needed. Name yours: make PYTHON=/path/to/python3.11 …'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'Python has no venv module here. On Debian or Ubuntu: apt-get install python3-venv'; exit 1; }
	@echo 'Installing into $(VENV) (a minute or two, once) …'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -qq -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

book: $(READY) ## build the book and say where it is
	@$(BIN)/python tools/build_book.py

lint: $(READY) ## check style and types
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

test: lint ## prove everything: style, types, units, statistics, doctests, the book, nbval, a browser
	$(ONE_THREAD) $(BIN)/pytest tests coursepkg --ignore=tests/book -m 'not slow' \
	  -n 2 --dist loadfile --quiet --cov --cov-report=term
	@$(MAKE) --no-print-directory book
	$(AS_BUILT) $(BIN)/pytest --nbval tests/book $$($(BIN)/python tools/build_book.py --notebooks) \
	  -m 'not slow' -n 2 --dist loadfile --quiet -r s
	@echo 'All tests passed: style, types, package, book, notebooks, browser.'

test-slow: book ## run the tests that take longer
	$(BIN)/pytest tests -m slow

serve: book ## show the book at a local address
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

publish: book ## commit the built book to the branch gh-pages and push it
	@$(BIN)/python tools/publish.py

links: book ## ask whether all that the book links to is still there (needs the network)
	@$(BIN)/python tools/check_links.py

$(PEERS): $(READY)
	@echo 'Installing what we measure ourselves against (once) …'
	@if $(BIN)/pip install -qq -c constraints.txt -e '.[bench]'; then touch $@; else \
	  echo 'Not all of it could be installed: the table will say what is missing.'; fi

bench: $(PEERS) ## measure, and write _build/bench.json
	@$(BIN)/python benchmarks/run.py

screenshots: book ## photograph the pages, light and dark, desktop and phone
	@$(BIN)/python tools/screenshots.py

clean: ## remove all that was built; the environments stay
	rm -rf _build dist
	find . -name __pycache__ -not -path "./.venv*/*" -prune -exec rm -rf {} +
