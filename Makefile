# `make test` and `make check` set up everything they need; `make help` lists the targets.
# Settings: PYTHON (interpreter that makes the environment), TELECHAT_VENV (where it is), PYTEST_ARGS.

PYTHON ?= python3
TELECHAT_VENV ?= .venv
export TELECHAT_VENV
BIN := $(TELECHAT_VENV)/bin
RUN := $(BIN)/python
PYTEST_ARGS ?= -n auto --dist loadfile
# One thread per worker: the tests' models are tiny, and workers would only fight over the cores.
test oracles: export OMP_NUM_THREADS ?= 1

SOURCES := src tests tools benchmarks deploy.py hatch_build.py
# `make bench-decode BENCH_ARGS="--quick"`, or BENCH_ARGS='--rows "M int4*"'.
BENCH_ARGS ?=
OPTIONS ?=

.PHONY: help setup test check lint types pages wheel sanitizers oracles installs options size format demo-model clean
.PHONY: bench-convert bench-peers bench-decode bench-soak bench-load bench-gpu bench-page bench-serve bench-train
.PHONY: bench-int8 bench-codec bench-quantise bench-quality

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

setup: ## make or reuse the environment, with the development tools
	@$(PYTHON) deploy.py --setup-only --extra dev

test: setup ## every test that needs no optional third-party implementation
	$(RUN) -m pytest $(PYTEST_ARGS)

check: lint types pages wheel sanitizers oracles installs test ## everything; the tests' closing line comes last

lint: setup ## ruff: rules and formatting
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)

types: setup ## mypy
	$(RUN) -m mypy

pages: setup ## the generated pages are up to date, and links within the documentation lead somewhere
	$(RUN) tools/pages.py --check

wheel: setup ## the wheel builds, carries its data files, and works where it is installed
	$(RUN) tools/wheel_check.py

sanitizers: setup ## the CPU kernels under the sanitizers of the compiler (a minute or two)
	$(RUN) tools/kernel_sanitizers.py

# Where llama.cpp cannot be built, or not in a quarter of an hour, its tests skip and say so.
oracles: setup ## tests against heavy third-party packages, in environments of their own
	-PYTHONPATH=src:. timeout 900 $(RUN) -m benchmarks.peers.build
	$(RUN) tools/oracles.py

installs: setup ## what images and bundles do, done in empty folders: whole environments from nothing (minutes)
	$(RUN) -m pytest -m installs tests/e2e/test_docker_runs.py tests/e2e/test_bundle_runs.py \
		tests/e2e/test_without_compiler.py

options: setup ## every option has a test that fails when it is ignored (minutes; OPTIONS="chat seed": some)
	$(RUN) tools/option_check.py --results runs/options.json $(OPTIONS)

size: setup ## lines by package, longest files and functions
	$(RUN) tools/size_report.py

format: setup ## let ruff rewrite the sources and write the generated pages
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)
	$(RUN) tools/pages.py

demo-model: setup ## train the bundled demo model again from nothing, in two stages, score it, write its card
	$(BIN)/telechat data demo --output runs/demo/train.jsonl --rows 200000 --seed 1234
	$(BIN)/telechat tokenizer train runs/demo/train.jsonl --vocab-size 4096 --seed 1234 --output runs/demo/tokenizer
	$(BIN)/telechat train --config recipes/demo.yaml
	$(BIN)/telechat data demo --output runs/demo/train-2.jsonl --rows 60000 --seed 1235
	$(BIN)/telechat train --config recipes/demo-2.yaml
	$(BIN)/telechat eval demo runs/demo-2/model --rows 500 --json runs/demo-2/eval.json || test -s runs/demo-2/eval.json
	$(RUN) tools/demo_card.py runs/demo runs/demo-2

bench-peers: setup ## build llama.cpp for the benchmarks, in an environment of its own (some minutes)
	$(RUN) -m benchmarks.peers.build
	$(RUN) -m benchmarks.peers.server_extras

bench-decode: export PYTHONPATH := src:.
bench-decode: setup ## decoding, prefill and serving beside llama.cpp and transformers (30 minutes; BENCH_ARGS=--quick: 8)
	@$(PYTHON) deploy.py --setup-only --extra compiler
	$(RUN) -m benchmarks.decode $(BENCH_ARGS)

bench-int8: export PYTHONPATH := src:.
bench-int8: setup ## products of int8 activations and weights beside bf16 ones (3 minutes)
	$(RUN) -m benchmarks.int8_products $(BENCH_ARGS)

bench-codec: export PYTHONPATH := src:.
bench-codec: setup ## the codec of sparse int8 weights: size, MB/s of one core (some seconds)
	$(RUN) -m benchmarks.codec $(BENCH_ARGS)

bench-quantise: export PYTHONPATH := src:.
bench-quantise: setup ## GPTQ of four blocks of a 7B: memory, seconds per block, killed and gone on with (7 GB of disk)
	$(RUN) -m benchmarks.quantise_7b $(BENCH_ARGS)

bench-quality: export PYTHONPATH := src:.
bench-quality: setup ## what each format loses, beside llm-compressor's GPTQ, on three models (30 minutes; the first run trains two)
	$(RUN) -m benchmarks.quantise $(BENCH_ARGS)

bench-soak: export PYTHONPATH := src:.
bench-soak: setup ## memory over 20,000 short requests
	$(RUN) -m benchmarks.soak $(BENCH_ARGS)

bench-train: export PYTHONPATH := src:.
bench-train: setup ## training beside Hugging Face's Trainer (25 minutes; BENCH_ARGS=--accelerator: a 7B on one)
	$(RUN) -m benchmarks.train $(BENCH_ARGS)

bench-load: export PYTHONPATH := src:.
bench-load: setup ## a whole 7B at int4: seconds to load, memory with a 4K context (some minutes, 5.4 GB of disk)
	$(RUN) -m benchmarks.load_7b $(BENCH_ARGS)

bench-page: export PYTHONPATH := src:.
bench-page: setup ## the chat page: 50 streams through it beside the API alone, a 100 KB answer in a browser (4 minutes)
	$(RUN) -m benchmarks.page $(BENCH_ARGS)

bench-convert: export PYTHONPATH := src:.
bench-convert: setup ## conversion of 1, 3 and 6 GB beside a plain copy; peak memory (BENCH_ARGS="--sizes 1")
	$(RUN) -m benchmarks.convert $(BENCH_ARGS)

bench-serve: export PYTHONPATH := src:.
bench-serve: setup ## the service: 200 streams for 5 minutes, beside its engine alone, llama.cpp's server, transformers serve
	$(RUN) -m benchmarks.serve $(BENCH_ARGS)

bench-gpu: export PYTHONPATH := src:.
bench-gpu: setup ## a 7B on an accelerator beside transformers and flash-attn (some minutes; BENCH_ARGS=--quick)
	$(RUN) -m benchmarks.gpu $(BENCH_ARGS)

clean: ## remove what tests and builds leave behind; the environment stays
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .oracles
