# taiji: `make run` serves the demo, `make test` tests everything. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
BIN := $(or $(CARGO_TARGET_DIR),target)/release
# What --version says. Of a tree without .git (a tarball) nothing is known, whatever repository it was unpacked in.
export TAIJI_COMMIT := $(if $(wildcard .git),$(shell git describe --always --abbrev=12 --dirty --exclude '*' 2>/dev/null))

.PHONY: help trl-check setup setup-tests build run test peers audit fuzz lint ci fmt bench bench-store bench-read loadtest bench-ingest bench-overhead bench-replicas bench-llm monitoring-check gpu-check int4-check int4-merged-check peft-check trainer-cuda k8s-check k8s-rules gradient-check smol smol-orft bench-groups bench-sft chaos soak drain gameday upgrade-check memcheck image image-check dist dist-check deny real rank rankers lift lift-more align align-more simulator off-policy generative demo demo-check demo-answers-check demo-old-check world-check stats-check pareto-lab orft bare clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## install what the build needs (Debian packages, as root)
	@bash scripts/setup.sh

setup-tests: ## install what the tests need beside it (Debian packages, as root; Kafka into the cache folder)
	@bash scripts/setup.sh tests

build: setup ## both binaries into target/release; fetches ONNX Runtime and completes the demo bundle
	$(CARGO) build --release --locked --workspace
	@$(BIN)/taiji runtime fetch
	@$(BIN)/taiji bundle fetch --bundle models/demo/1

run: build ## serve the demo, or BUNDLE=DIR, on 127.0.0.1:8080 (admin 9090) and feed it sample events, or those of SAMPLE=DIR
	@BUNDLE=$(BUNDLE) SAMPLE=$(SAMPLE) bash scripts/run.sh $(BIN)

test: build setup-tests ## unit, property and end-to-end tests against the built binaries; names what was skipped
	@bash scripts/test.sh

audit: build setup-tests ## the tests of the numbered claims with their strict bars, one at a time, and a table of their figures
	@bash scripts/audit.sh

peers: build ## the tests that judge us by other projects' own programs (OpenAI's client; Feast's client and server), pinned and cached
	@bash scripts/peers.sh

fuzz: build ## every decoder on fuzz/corpus and on seeded mutations of it (FUZZ_SECONDS a target, TARGET= one, SEED=)
	TAIJI_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) TAIJI_FUZZ_TARGET=$(TARGET) TAIJI_FUZZ_SEED=$(SEED) \
	  cargo test --release --locked --workspace --lib -- --nocapture every_decoder_keeps_its_promises

k8s-check: build ## the manifests of k8s/ against a kube-apiserver of this machine, then our own assertions (Go 1.26; 10 minutes the first time)
	@TAIJI_BIN=$(BIN) bash scripts/k8s_check.sh

k8s-rules: ## the alerts as a PrometheusRule: k8s/monitoring/prometheus-rules.yaml into prometheusrule.yaml
	@python3 scripts/k8s_check.py rules

lint: ## formatting and clippy, as CI checks them
	cargo fmt --all -- --check
	cargo clippy --release --workspace --all-targets --locked -- -D warnings
	cargo clippy --release --workspace --bench ingest --bench llm_worker --bench sft_worker --locked -- -D warnings

ci: ## all that CI runs, in its order (45 minutes on 2 cores)
	@bash .ci/run

fmt: ## format the code
	cargo fmt --all

demo: build ## train the demo bundle anew (15 minutes on 2 cores) into models/demo/1
	@$(BIN)/taiji-trainer fetch --recipe models/demo.toml
	$(BIN)/taiji-trainer run --recipe models/demo.toml --out models

demo-check: build ## the demo bundle's figures on 4,000 held-out users (another seed), beside copying, counting, single facts and a perfect reader
	$(BIN)/taiji-trainer evaluate --bundle models/demo/1 --world reason --synth-seed 4242 --users 4000 --out .cache/demo-report.json

demo-answers-check: build ## the demo's recipe without reasons, as many steps: trained unless it was (10 minutes), then judged on the same users
	@$(BIN)/taiji-trainer fetch --recipe models/demo-answers.toml
	$(BIN)/taiji-trainer run --recipe models/demo-answers.toml --out .cache/models
	$(BIN)/taiji-trainer evaluate --bundle .cache/models/demo-answers/1 --world reason --mode no_think --synth-seed 4242 --users 4000 --out .cache/demo-answers-report.json

demo-old-check: build ## the demo's recipe on the world in which copying is best: trained unless it was (15 minutes), then judged on 4,000 held-out users
	@$(BIN)/taiji-trainer fetch --recipe models/old.toml
	$(BIN)/taiji-trainer run --recipe models/old.toml --out .cache/models
	$(BIN)/taiji-trainer evaluate --bundle .cache/models/old/1 --synth-seed 4242 --users 4000 --out .cache/old-report.json

world-check: ## what copying, counting and reading make of the generated world `reason`, and the conflict knob of both worlds (minutes)
	$(CARGO) test --release --locked -p taiji-trainer --lib -- --ignored --nocapture world_check

stats-check: ## coverage of the 95 % intervals in 1,000 null simulations a design: the table of docs/results.md
	$(CARGO) test --release --locked -p taiji-trainer --lib -- --ignored --exact --nocapture stats::tests::coverage::stats_check

pareto-lab: ## rules that make one advantage of two rewards, compared as docs/experiments/pareto.toml says, into docs/results.md (a quarter of an hour)
	$(CARGO) run --release --locked -p taiji-trainer --example pareto_lab -- docs/experiments/pareto.toml docs/results.md

orft: build ## the experiment on reasons and their filters: arms × seeds, six hours on 2 cores in any number of pieces, then its tables
	@bash scripts/experiments.sh orft

real: build setup-tests ## train on instruments-mm, serve, feed 1,000 real histories, print the figures (needs TAIJI_DATA_DIR)
	@python3 scripts/real.py

smol: build setup-tests ## SmolLM2 goes in, is taught by LoRA on Beauty, comes out served in int4; prints the table (needs TAIJI_DATA_DIR; resumable)
	@python3 scripts/smol.py served

smol-orft: build ## SmolLM2 taught by LoRA on Beauty: reasons that it filtered itself beside answers alone, then their table (two hours on 2 cores; needs TAIJI_DATA_DIR; resumable)
	@python3 scripts/smol.py filtered

trainer-cuda: setup ## taiji-trainer with --device cuda into target/cuda/release (CUDA of the nvcc on the PATH, else 1.2 GB of packages)
	@CARGO=$(CARGO) bash scripts/trainer_cuda.sh

gradient-check: build ## loss and every gradient of SmolLM2 beside transformers in f64 (needs TAIJI_SMOLLM2_GGUF, 6 GB of packages)
	@bash scripts/gradient_check.sh

peft-check: build ## our LoRA files are read by PEFT and its by us, merged ones by transformers; log-probabilities agree (6 GB of packages)
	@bash scripts/venv.sh .cache/bench-sft-venv scripts/bench_sft/requirements.txt
	@.cache/bench-sft-venv/bin/python scripts/peft_check.py

trl-check: build ## TRL's GRPOTrainer trains on our reward service, and its checkpoint ends in a bundle (6 GB of packages; TAIJI_TRL_PYTHON: a Python that has TRL)
	@bash scripts/trl_check.sh

bench-groups: ## sequences a second of answers that share their prompt, beside whole ones (an idle machine)
	$(CARGO) test --release --locked -p taiji-trainer --lib -- --ignored --nocapture speed_of_groups

bench-sft: build ## SFT steps beside PyTorch eager on the same models and batches, one thread each (TAIJI_SMOLLM2_GGUF: SmolLM2 with LoRA, too)
	@bash scripts/bench_sft/run.sh

off-policy: build ## estimators of what another policy would have earned: the random policy of Open Bandit out of the other's log (needs TAIJI_DATA_DIR), coverage in a generated world
	@for campaign in "men 34" "women 46"; do set -- $$campaign; echo "$$1"; $(BIN)/taiji-trainer off-policy --items $$2 \
	  --log "$${TAIJI_DATA_DIR:?names the folder of the public sets}/obd.$$1.bts.tsv.gz" --random "$$TAIJI_DATA_DIR/obd.$$1.random.tsv.gz" || exit 1; done
	$(CARGO) test --release --locked -p taiji-trainer --lib -- --ignored --exact --nocapture off_policy::tests::off_policy_check

simulator: build ## a table of the ranker's chances as a simulator, and whether it puts first what the world's truth puts first (half an hour)
	$(BIN)/taiji-trainer run --recipe models/simulator.toml

rank: build ## train a ranker on the generated world's impressions and print its figures on the newest of them (minutes)
	$(BIN)/taiji-trainer run --recipe models/rank.toml

rankers: build ## DIN beside a token mixer and a OnePiece on the same impressions: how well they rank, how long a call takes; resumable (hours on 2 cores)
	@bash scripts/experiments.sh rankers

lift: build ## do taiji's features make a ranker better? Arms × seeds on two generated worlds and real purchases (TAIJI_DATA_DIR), resumable (three hours on 2 cores), then their tables
	@bash scripts/experiments.sh lift lift-old lift-beauty

lift-more: build ## the same: how old features may be, what they are made of, short videos without texts, a pretrained language model (TAIJI_DATA_DIR); resumable (hours on 2 cores)
	@bash scripts/experiments.sh lift-staleness lift-ablations lift-kuairand lift-smol

align: build ## does alignment pay, and which rule combines its rewards best? Arms × seeds on the generated world, resumable (hours on 2 cores), then their tables
	@bash scripts/experiments.sh align

align-more: build ## the same on three policies of the start, at other conflicts of the two rewards, and for a model that answers without reasons; resumable (four hours on 2 cores)
	@bash scripts/experiments.sh align-default align-60 align-94 align-no-think

generative: build ## train a decoder on the semantic IDs of instruments, judge its lists on all test users (needs TAIJI_DATA_DIR)
	@bash scripts/generative.sh

bench: build setup-tests ## measure the whole way; rewrites the table in docs/benchmarks.md
	@python3 scripts/bench.py

int4-check: build setup-tests ## what int4 costs: top-1 agreement of the demo's LLM, perplexity of SmolLM2 on plain English (20 minutes)
	@bash scripts/int4_check.sh

int4-merged-check: build ## the same of SmolLM2 with a LoRA trained by PEFT and merged, whose weights lie on no grid (20 minutes, 6 GB of packages)
	@bash scripts/int4_check.sh merged

chaos: build setup-tests ## kills, freezes, cuts and take-overs under load: SEEDS=10 of SECONDS=60 at RATE=1000 events/s, or one SEED=7; SWEEP= seconds, ACK= store.ack; rewrites its table in docs/benchmarks.md
	@SEEDS=$(SEEDS) SECONDS_EACH=$(SECONDS) RATE=$(RATE) SEED=$(SEED) SWEEP=$(SWEEP) ACK=$(ACK) python3 scripts/chaos.py

soak: build setup-tests ## half an hour of new users on both stores: bytes that one costs the process (SECONDS= shorter)
	@SECONDS_EACH=$(SECONDS) python3 scripts/soak.py

upgrade-check: build setup-tests ## OLD=PROGRAM: an earlier release's program and this one take turns on one Redis under load
	TAIJI_OLD=$(OLD) cargo test --release --locked --workspace --test e2e -- --ignored --exact --nocapture upgrade::upgrade_check

memcheck: build setup-tests ## the tests of the unsafe code under valgrind
	@bash scripts/memcheck.sh

image: build setup-tests ## a container image by buildah, as root: TAG=, BASE= (else Debian by debootstrap), SOURCE=compile (else the tree's programs), FILE=docker/Dockerfile.cuda
	@BIN=$(BIN) BASE=$(BASE) SOURCE=$(SOURCE) FILE=$(FILE) bash scripts/image.sh build $(TAG)

image-check: build setup-tests ## such an image out of the tree's programs: size, libraries, an event's way through it without rights, compose's settings
	@BIN=$(BIN) bash scripts/image.sh check

gameday: build setup-tests ## the runbook's procedures, by its own commands, on a live set-up: upgrade, rollback, keys, erasure, backup and restore, poisoned topic (OLD=PROGRAM: upgrade from it); rewrites its table in docs/benchmarks.md
	@python3 scripts/gameday.py $(BIN) --write $(if $(OLD),--old $(OLD))

dist: build ## the release archive into dist/: programs, ONNX Runtime, configuration, man pages, completions, systemd units, NOTICE, SBOM, checksums
	@python3 scripts/dist/main.py $(BIN) dist

dist-check: build setup-tests ## makes the archive twice, installs it on the image's base by the README's lines, serves one event there; SBOM, units, an old processor
	@python3 scripts/dist_check.py $(BIN)

deny: ## licences, banned crates and sources of all crates, by cargo-deny (built once, a minute)
	@bash scripts/deny.sh

drain: build setup-tests ## two replicas leave one after the other under load and come back: no read may fail
	TAIJI_REQUIRE_KAFKA=1 cargo test --release --locked --workspace --test e2e -- --exact --nocapture roles::replicas_that_leave_one_after_the_other_fail_no_read

bench-ingest: build setup-tests ## events through Kafka into Redis beside a bare consumer and writer; memory of a user (QUICK=1: short)
	@python3 scripts/bench_ingest.py $(if $(QUICK),--quick)

bench-overhead: build setup-tests ## from a broker's append to a read that shows it, canned engine, 2,000 events/s (QUICK=1: short; OLD=PROGRAM, OLD_BUNDLE=DIR: beside an earlier release)
	@TAIJI_OLD=$(OLD) TAIJI_OLD_BUNDLE=$(OLD_BUNDLE) python3 scripts/bench_plane.py overhead $(if $(QUICK),--quick)

bench-replicas: build setup-tests ## refreshes of two infer replicas beside one, engine of fixed latency (QUICK=1: short)
	@python3 scripts/bench_plane.py replicas $(if $(QUICK),--quick)

bench-read: build setup-tests ## reads beside the smallest handler, bare pipelined reads and Feast's own server, on Redis and Valkey, an hour (QUICK=1: short, writes nothing; FEAST=no)
	@python3 scripts/bench_read/run.py $(if $(QUICK),--quick) $(if $(filter no,$(FEAST)),--no-feast)

loadtest: build setup-tests ## scenarios on a service: reads, events among them, overload, Redis away, soak; pages in .cache/loadtest, figures in docs/measured (three quarters of an hour; QUICK=1: short, keeps no figures)
	@bash scripts/loadtest.sh $(if $(QUICK),quick)

bench-store: setup-tests ## three layouts of a history on a Redis of its own: memory of a user, appends a second
	TAIJI_BENCH_STORE=1 cargo test --release --locked --workspace --lib -- --nocapture layouts_compared

bench-llm: build setup-tests ## our LLM engine beside onnxruntime-genai and torch (an hour of an idle machine, 6 GB of packages; BENCH_PAIRS, ONLY=sections; ONLY=smol after int4-check)
	@bash scripts/venv.sh .cache/bench-venv scripts/bench_llm/requirements.txt
	@.cache/bench-venv/bin/python scripts/bench_llm/run.py $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

gpu-check: build trainer-cuda ## what is computed on an NVIDIA GPU: does it agree with the processor, how fast is it (exit code 69 where there is none)
	@CARGO=$(CARGO) bash scripts/gpu_programs.sh target/gpu cuda
	@scripts/gpu_check.sh

monitoring-check: build setup-tests ## alerts and dashboard: promtool's tests, metrics and runbook agree, a live Prometheus answers every query (PICTURE=1: redraws docs/dashboard.svg)
	@bash scripts/monitoring.sh $(BIN) $(if $(PICTURE),--seconds 90 --picture docs/dashboard.svg)

bare: ## the README's commands in a fresh clone on a bare Debian root (root, debootstrap; TAIJI_BARE=DIR)
	@bash scripts/bare.sh $(or $(TAIJI_BARE),.cache/bare)

clean: ## remove build output and work folders
	cargo clean
	rm -rf .cache
