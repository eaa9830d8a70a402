# fleetd: `make run` and `make test` work on a machine that has only a Rust toolchain, a C compiler, npm, Python 3 and git.
# What they need besides is fetched by the ordinary package clients, pinned, into target/ or the user's cache.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BUF := @bufbuild/buf@1.75.0
CARGO_DENY_VERSION := 0.20.2
# In the user's cache, beside the engine, so that clones share them.
TOOLS := $(or $(FLEETD_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fleetd)/tools
CARGO_DENY := $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

# The simulated fleet of `make run`; FLEET=0 for none.
FLEET ?= 1000
LISTEN ?= 127.0.0.1:8080
DATA_DIR ?= fleetd-data

.PHONY: help
help: ## What there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: run
run: engine build ## Build, then run the server with a simulated fleet (FLEET=1000, LISTEN, DATA_DIR)
	@scripts/run.sh "$(LISTEN)" "$(DATA_DIR)" "$(FLEET)"

.PHONY: build
build: ## Build the server and the load generator, optimised
	cargo build --release --locked --workspace --bins

.PHONY: engine
engine: ## Fetch the embedded ClickHouse into the user's cache
	@scripts/fetch-engine.sh >/dev/null

.PHONY: test
test: lint unit deny ## Everything that must hold before a change lands

# Most tests wait for servers and engines of their own, so half as many again as there are cores run at a time.
TEST_THREADS ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))

# Tests that wait for whole campaigns of kills, one after the other, and hardly use a processor meanwhile: they run beside
# all others.
PATIENT := durability rollout rollup
OTHERS := $(filter-out $(PATIENT),$(sort $(patsubst %/,%,$(notdir $(patsubst %/main.rs,%,$(wildcard tests/*/main.rs)))) \
	$(basename $(notdir $(wildcard tests/*.rs loadtest/tests/*.rs proto/tests/*.rs)))))
CARGO_TEST := cargo test --workspace --locked

.PHONY: unit
unit: engine ## All tests of all crates (TEST_THREADS at a time in each of two lanes)
	$(CARGO_TEST) --no-run
	@# In a pipe each lane says all at its end; on a terminal a line comes when it is there.
	@$(MAKE) --no-print-directory --keep-going -j2 $(if $(MAKE_TERMOUT),,--output-sync=target) patient-tests other-tests

.PHONY: patient-tests
patient-tests:
	$(CARGO_TEST) --no-fail-fast $(PATIENT:%=--test %) -- --test-threads=$(TEST_THREADS)

.PHONY: other-tests
other-tests:
	$(CARGO_TEST) --no-fail-fast --lib --bins $(OTHERS:%=--test %) -- --test-threads=$(TEST_THREADS)
	$(CARGO_TEST) --doc

.PHONY: lint
lint: ## Formatting, clippy, rustdoc, the contract
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	npx --yes $(BUF) lint

.PHONY: deny
deny: $(CARGO_DENY) ## Licences and sources of dependencies; advisories where their database can be fetched
	@scripts/deny.sh "$(CARGO_DENY)"

$(CARGO_DENY):
	@# Not optimised: it reads one lock file, and is built in half the time.
	cargo install --debug --locked --root "$(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION)" --target-dir "$(TOOLS)/build" --version $(CARGO_DENY_VERSION) cargo-deny

.PHONY: bench
bench: engine build ## The benchmarks of docs/performance.md that need no arguments
	cargo bench --locked
	target/release/fleetd-loadtest compare

.PHONY: clean
clean: ## Remove what was built and installed here; the data directory stays
	rm -rf target

.PHONY: chaos
chaos: engine ## The kill -9 tests, ten times as long as in `make test`
	FLEETD_CHAOS_KILLS=200 cargo test --locked --test durability -- kill --nocapture
	FLEETD_CHAOS_KILLS=50 cargo test --locked --test rollout -- kill --nocapture
	FLEETD_CHAOS_KILLS=50 cargo test --locked --test rollup -- kill --nocapture
