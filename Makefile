# Everything here works on a bare Debian or Ubuntu machine: setup installs what is missing and is instant when nothing is.
.PHONY: help setup demo test torture crowd bench compat docs extension lint audit clean
python := .venv/bin/python

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install PostgreSQL, PostGIS, pgvector and .venv (TORCH=cuda for the CUDA build of torch)
	@bash scripts/install-postgres.sh $(if $(filter test,$(MAKECMDGOALS)),--pgbouncer) && bash scripts/install-python.sh

demo: setup ## train on a small city and ask it questions in SQL
	@bash demo/demo.sh

test: setup ## run the tests in two processes (ARGS="-k name" picks some, in one)
	@$(python) -m pytest $(or $(ARGS),--numprocesses 2 --dist worksteal)

torture: setup ## kill commands 300 times, then call functions and commands with 5,000 arbitrary arguments (ARGS="--kills 50")
	@$(python) tests/torture.py $(ARGS) && CALLIPPER_FUZZ=5000 $(python) -m pytest -q tests/test_fuzz.py

crowd: setup ## ask with 20 readers while models are activated and dropped 50 times
	@$(python) -m pytest --quiet --whole-crowd tests/database/test_readers.py -k crowd

bench: setup ## run the benchmarks (ARGS="name" picks some)
	@$(python) -m benchmarks $(ARGS)

compat: setup ## open the clients of docs/tools.md and the map in a browser; installs what they need
	@bash scripts/install-chromium.sh && bash scripts/install-clients.sh && $(python) -m pip install --quiet -c constraints.txt -e '.[compat]' && \
		$(python) -m pytest $(or $(ARGS),$(addprefix tests/compat/,clients.py superset_server.py kepler_map.py page.py api_schema.py spark_jobs.py))

docs: setup ## build the documentation as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --quiet --strict && echo "The site is build/site/index.html"

extension: setup ## write the files of CREATE EXTENSION callipper, in build/extension
	@.venv/bin/callipper-db extension build/extension

lint: setup ## check style and types
	@$(python) -m ruff check . && $(python) -m ruff format --check . && $(python) -m mypy

audit: setup ## look for known faults in the packages of constraints.txt (needs PyPI)
	@$(python) -m venv build/audit && build/audit/bin/python -m pip install --quiet 'pip-audit>=2.10' && \
		build/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean: ## remove the environment, the demo's output and all caches
	rm -rf .venv demo/out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
