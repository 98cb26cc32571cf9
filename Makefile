# Two commands for a fresh machine: `make demo` and `make test`. `make help` lists the rest.

CARGO ?= cargo
export PATH := $(HOME)/.cargo/bin:$(PATH)
TARGET_DIR = $(shell $(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
FAENA = $(TARGET_DIR)/release/faena

.PHONY: help up demo test build lint doc deny unit e2e api images docker simulate chaos upgrade-test keepalive bench clean

help: ## lists the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## builds release/faena in cargo's target directory
	@scripts/install.sh rust
	$(CARGO) build --release --locked --package faena

up: build ## starts a platform at localhost:3000
	$(FAENA) up

demo: build ## installs what is missing, starts a platform, walks the curl lines, stops
	@scripts/install.sh shell python
	@scripts/demo.sh $(FAENA)

test: CALLS = 8000
test: lint doc deny unit e2e api chaos ## installs what is missing, runs everything CI runs
	@echo "everything holds"

lint: ## format and clippy, without a warning; no circle of modules
	@scripts/install.sh rust python
	python3 scripts/layers.py
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

doc: ## documentation builds, without a warning
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps --quiet

deny: ## licences, sources and layers; advisories where their database can be reached
	@scripts/install.sh deny
	$(CARGO) deny --log-level error check bans licenses sources
	@if timeout 20 git ls-remote --quiet https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; \
	then $(CARGO) deny --log-level error check advisories; \
	else echo "the advisory database is out of reach: advisories were not checked"; fi

docker: ## a Docker daemon answers; one is started where none does
	@scripts/install.sh docker
	@scripts/dockerd.sh

images: docker ## makes pythonruntime, noderuntime and bashruntime
	@scripts/install.sh images
	@runtimes/images.sh

unit: images ## tests of every crate, conformance of both engines among them
	@scripts/install.sh python node shell
	$(CARGO) test --release --locked --workspace --exclude faena-e2e

e2e: export SERVICES_VENV = $(TARGET_DIR)/services-venv
e2e: images build ## the built binary over real HTTP, on real engines
	@scripts/install.sh python node shell network units clock browser go services
	FAENA_BIN=$(FAENA) $(CARGO) test --release --locked --package faena-e2e

api: export API_VENV = $(TARGET_DIR)/api-venv
api: build ## holds the running API against its own OpenAPI document, and uses a client generated from it
	@scripts/install.sh python api
	FAENA_BIN=$(FAENA) $(API_VENV)/bin/python scripts/api.py

simulate: ## the queue core through SEEDS histories (100,000 unless you say otherwise)
	@scripts/install.sh rust
	SEEDS=$(or $(SEEDS),100000) $(CARGO) test --release --locked --package faena-domain --test simulation -- --nocapture

chaos: build ## kills processes under CALLS calls (20,000 unless you say otherwise), on NODES machines or on this one; holds the record against what clients saw
	@scripts/install.sh python shell $(if $(NODES),network)
	FAENA_BIN=$(FAENA) CALLS=$(or $(CALLS),20000) python3 scripts/chaos.py

upgrade-test: OLD ?= $(shell git rev-parse --verify --quiet origin/main || echo HEAD~1)
upgrade-test: build ## replaces the binary of the commit OLD (the last that landed) by this one, role by role, under load
	@scripts/install.sh python shell network
	OLD_BIN=$$(scripts/old_binary.sh $(OLD) $(TARGET_DIR)/upgrade) FAENA_BIN=$(FAENA) python3 scripts/upgrade.py

keepalive: ## policies that decide which instance goes first, over a synthetic day (ARGS: seed, functions, gigabytes …)
	@scripts/install.sh rust
	$(CARGO) run --release --locked --quiet --package faena-bench --bin keep_alive -- $(ARGS)

bench: export BENCH_VENV = $(TARGET_DIR)/bench-venv
bench: images build ## measures, and prints ratios to the raw limits
	@scripts/install.sh python shell bench
	$(CARGO) build --release --locked --quiet --package faena-bench --bins
	$(CARGO) build --release --locked --quiet --package faena-handler --examples
	FAENA_BIN=$(FAENA) BENCH_JSON=$(TARGET_DIR)/bench.json $(BENCH_VENV)/bin/python scripts/bench.py

clean: ## removes what was built
	$(CARGO) clean
