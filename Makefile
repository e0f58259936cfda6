# Every target with a `##` remark appears in `make help`.
.DEFAULT_GOAL := help
.PHONY: help run stack stack-stop stack-roll stack-nats cluster image test test-rust test-sdk test-autobahn test-faults test-image test-cluster lint fmt bench tools

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build quickly and start everything in one process on 127.0.0.1 (ARGS="…" for more flags)
	@echo "1/2 building plenum (profile fast; the first build takes a few minutes)"
	@cargo build --profile fast --package plenum
	@echo "2/2 starting plenum serve --dev (end it with Ctrl-C)"
	@exec target/fast/plenum serve --dev $(ARGS)

stack: ## Start everything on 127.0.0.1: nginx, replicas, API, worker, NATS, Redis (ARGS="--detach --replicas 2")
	@deploy/tools/install nats redis nginx
	@cargo build --profile fast --package plenum
	@exec deploy/stack/stack up $(ARGS)

stack-stop: ## End what `make stack` started
	@deploy/stack/stack stop

stack-roll: ## Restart the replicas of `make stack` one by one under load (ARGS="--users 500 --rounds 2 --duration 150s")
	@deploy/tools/install nats redis nginx
	@cargo build --profile fast --package plenum
	@deploy/stack/stack roll $(ARGS)

stack-nats: ## Start three replicas on a cluster of three NATS servers on 127.0.0.1 (ARGS="--replicas 2")
	@deploy/tools/install nats
	@cargo build --profile fast --package plenum
	@exec deploy/stack/run $(ARGS)

image: ## Build the server's image, or with ARGS=--web nginx with the web files, with docker, podman or buildah (ARGS="--tag plenum:1")
	@deploy/images/build $(ARGS)

cluster: ## Build the image, load it and install the chart into the cluster of the current kubectl context (ARGS="--set …")
	@deploy/cluster/install $(ARGS)

test: ## Run every suite: Rust, the SDKs, the server API, the browser, Autobahn; the last line is the total
	@e2e/run

test-rust: ## Run the Rust tests only
	@e2e/run rust

test-sdk: ## Run the suites of the released SDKs only (JavaScript, browser, Python, Java, churn), also with three replicas on NATS
	@e2e/run js-json js-protobuf browser python-json python-protobuf java churn js-json-nats python-protobuf-nats java-nats

test-autobahn: ## Run Autobahn's WebSocket cases 1-7, 9 and 10
	@e2e/run autobahn

test-faults: ## Kill, freeze and cut off NATS, Redis and replicas under load, roll them with 1,000 clients, run the images, 35 minutes
	@e2e/run faults sessions-faults rolling image

test-image: ## Build the server's image and start it by runc: messages, names, certificates (needs root)
	@deploy/tools/install image
	@python3 e2e/images/images_cases.py $(ARGS)

test-cluster: ## Install, update, break and remove the chart in the cluster of the current kubectl context, 15 minutes (ARGS="install")
	@python3 e2e/cluster/run $(ARGS)

lint: ## Check format, clippy's warnings, and the crates' licences, sources and bans
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@deploy/tools/install deny
	PATH="$(CURDIR)/.tools/cargo/bin:$$PATH" cargo deny --log-level error check bans licenses sources

fmt: ## Format the Rust code
	cargo fmt --all

bench: ## Measure and print the table of performance figures, 12 minutes (ARGS="deliveries --burst 8" for one line)
	@cargo build --release --package plenum --package plenum-bench
	@target/release/plenum-bench $(ARGS)

tools: ## Install the external tools of the tests into .tools/
	@deploy/tools/install
