# make demo   see sqlvec at work on a PostgreSQL of its own
# make test   everything that a change must pass; the parts: lint types unit db smoke
# make docs   the documentation as a site, in build/docs
# make freeze keep the SQL of the release in sql/VERSION for upgrades to come

PYTHON ?= python3
VENV := .venv
OLDER := .venv-sqlalchemy-2.0
BIN := $(VENV)/bin
UV := $(BIN)/uv
# Tests of one file share a database; files share nothing, so three run at a time, each on a server:
# one more than the cores this is made for, because some wait.
# In the order of their names: by the number of tests, the longest files would come last.
TOGETHER := -n 3 --dist loadfile --no-loadscope-reorder
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# uv does not look where pip looks, for packages nor for certificates.
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
export UV_SYSTEM_CERTS := 1

.PHONY: demo test lint types unit db db-18 db-16 smoke docs freeze clean

demo: $(VENV)/.demo
	$(BIN)/sqlvec demo $(ARGS)

# mypy keeps one core busy; the wheel is built and tried on another.
test: lint $(OLDER)/.dev
	$(MAKE) -j 2 types smoke
	$(MAKE) unit db

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/pytest -q $(TOGETHER) tests/standalone tests/unit $(ARGS)

db: db-18 db-16

db-18: $(VENV)/.dev
	$(BIN)/pytest -q $(TOGETHER) tests/db --pg-version 18 $(ARGS)

# The older server together with the older SQLAlchemy, which compiles some statements differently;
# tests/standalone has to do with neither.
db-16: $(OLDER)/.dev
	$(OLDER)/bin/python -m pytest -q $(TOGETHER) tests/unit tests/db --pg-version 16 $(ARGS)

smoke: $(VENV)/.dev
	rm -rf build/smoke
	$(BIN)/python -m build --no-isolation --outdir build/smoke/dist .
	$(UV) venv -q --python $(PYTHON) build/smoke/venv
	$(UV) pip install -q --python build/smoke/venv \
	    "$$(echo build/smoke/dist/*.whl)[cli,embedded]" "psycopg[binary]"
	build/smoke/venv/bin/python -I tests/smoke.py

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

freeze: $(VENV)/.dev
	mkdir -p sql/releases
	$(BIN)/python -c 'from sqlvec.catalog import bundle; print(bundle(), end="")' > \
	    sql/releases/sqlvec--$$(cat sql/VERSION).sql

$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q uv

$(VENV)/.%: pyproject.toml sql/VERSION | $(UV)
	$(UV) pip install -q --python $(VENV) -e '.[$*]'
	touch $@

# The packages of the other environment, compiled as they are by then, with SQLAlchemy before them.
$(OLDER)/.dev: $(VENV)/.dev
	$(UV) venv -q --clear --python $(PYTHON) $(OLDER)
	$(UV) pip install -q --python $(OLDER) --no-deps 'sqlalchemy>=2.0,<2.1'
	packages() { $$1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	    echo "import site; site.addsitedir('$$(packages $(abspath $(VENV)))')" > \
	    $$(packages $(OLDER))/dev.pth
	touch $@

clean:
	rm -rf $(VENV) $(OLDER) build dist
