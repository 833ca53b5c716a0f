# Two commands do everything on a fresh Debian or Ubuntu machine: `make drill` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

DRILL_PACKAGES := python3-venv tar zstd util-linux
PDF_PACKAGES := libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0
TEST_PACKAGES := $(DRILL_PACKAGES) $(PDF_PACKAGES) acl attr borgbackup chromium etcd-server faketime fuse3 iproute2 jq nftables openssl \
	pgbackrest postgresql redis-server restic rsync strace
BENCH_PACKAGES := $(TEST_PACKAGES) b3sum hashdeep rclone xxhash

.PHONY: help setup drill ui test check docs bench campaign matrix sbom lock clean

help:  ## Show the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## Build .venv

drill: setup  ## Run both data-recovery drills on test data and print the verdicts
	$(BIN)/recovery drill --target test_dataset

ui: setup  ## Open Dagster on the same data
	$(BIN)/recovery ui

test: .venv/installed-dev .venv/patroni/installed check  ## Run every check and test
	scripts/install-system-packages $(TEST_PACKAGES)
	$(BIN)/pytest -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder  # drills wait a lot; few-but-slow files not last

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-dev  ## Write the plan's reference anew, build the documentation into site/
	$(BIN)/python -m scripts.plan_reference
	$(BIN)/mkdocs build --strict --quiet

bench: .venv/installed-dev  ## Measure beside the peers (tools are installed)
	scripts/install-system-packages $(BENCH_PACKAGES)
	$(BIN)/python benchmarks/bench_manifest.py
	$(BIN)/python benchmarks/bench_drill.py
	$(BIN)/python benchmarks/bench_analysis.py
	$(BIN)/python benchmarks/bench_detection.py
	$(BIN)/python benchmarks/bench_monitoring.py

campaign: .venv/installed-dev  ## Many injections, clean runs and kills
	scripts/install-system-packages $(TEST_PACKAGES)
	$(BIN)/python -m campaigns

matrix: .venv/installed-dev  ## Plant thousands of faults and count who notices; goes on where it stopped
	scripts/install-system-packages $(TEST_PACKAGES)
	$(BIN)/python -m campaigns.matrix

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed: make PYTHON=python3.12 ..." \
		if sys.version_info < (3, 11) else 0)'
	scripts/install-system-packages $(DRILL_PACKAGES)
	scripts/install-system-packages $(PDF_PACKAGES) || echo "going on without: reports will have no PDF"
	$(PYTHON) -m venv .venv
	@echo "installing the locked packages into .venv: one to three minutes"
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(BIN)/pip install --quiet --no-compile --require-hashes -r requirements-dev.lock
	touch $@

.venv/patroni/installed: requirements-patroni.lock  # of the system's Python, which the user of the databases may read
	scripts/install-system-packages python3-venv
	/usr/bin/python3 -m venv --clear .venv/patroni
	.venv/patroni/bin/pip install --quiet --require-hashes -r requirements-patroni.lock
	touch $@

sbom: .venv/installed-dev  ## Write sbom.cdx.json (CycloneDX) of what users install
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
		--of JSON --output-file sbom.cdx.json

lock: .venv/installed-dev  ## Lock the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-strip-extras --no-emit-find-links --no-emit-index-url pyproject.toml --extra timestamp --extra ui --group build \
		--output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-strip-extras --no-emit-find-links --no-emit-index-url pyproject.toml --extra timestamp --extra ui --extra postgres --extra s3 --extra tables --group build --group dev \
		--constraint requirements.lock --output-file requirements-dev.lock
	echo 'patroni[etcd3,psycopg3]' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-strip-extras --no-emit-find-links --no-emit-index-url - --output-file requirements-patroni.lock

clean:  ## Remove what drills and tools wrote, not the results' home
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
