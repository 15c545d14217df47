# Every target works from a fresh clone: it makes .venv itself. PYTHON=python3.12 chooses another.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard $(addprefix cython_kernels/,*.pyx *.pxi *.h */*.h))

# Pinned, and installed before everything else: a bare `torch` resolves to the newest CUDA build with
# gigabytes of GPU libraries. TORCH=torch takes whatever pip finds.
TORCH ?= torch==2.13.0

# Two workers; a file stays with one of them, because its fixtures are expensive.
PYTEST ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/built ## make .venv with everything that development needs; fast when up to date

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet '$(TORCH)'
	touch $@

$(VENV)/built: $(VENV)/pip pyproject.toml setup.py $(SOURCES)
	$(BIN)/pip install --quiet --editable '.[bench,serve,sweep,dev]'
	touch $@

check: setup ## what must be green before a commit: lint, types, all tests
	$(MAKE) --no-print-directory lint types
	$(BIN)/pytest $(PYTEST)

quick: setup ## the same in a minute: lint, types, the tests that start no process and train no model
	$(MAKE) --no-print-directory lint types
	$(BIN)/pytest $(PYTEST) -m "not slow and not nightly" tests/unit tests/kernels

nightly: setup ## run the commands of README and docs, shortened, page by page; AMX and FP16 code on their traps
	$(BIN)/pytest -m nightly tests/cli/test_docs.py tests/kernels/test_traps.py

lint: setup ## formatting, ruff, cython-lint, and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	PATH="$(BIN):$$PATH" cython-lint cython_kernels  # it calls pycodestyle

types: setup ## mypy, strict
	$(BIN)/mypy

format: setup ## rewrite the Python files in the one format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# AddressSanitizer must be the first library of the process; it keeps a second build apart from ours.
SANITIZED := build/sanitize
SANITIZERS := -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
WITH_SANITIZERS := PYTHONPATH=$(SANITIZED)/lib LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

$(SANITIZED)/built: $(SOURCES) setup.py tests/native/kernel_test.c
	mkdir -p $(SANITIZED)
	gcc $(SANITIZERS) -fno-math-errno -fno-trapping-math -Icython_kernels tests/native/kernel_test.c \
	  -o $(SANITIZED)/kernel_test -lm
	TOOLKIT_SANITIZE=1 $(BIN)/python setup.py -q build_ext --force --build-temp $(SANITIZED) --build-lib $(SANITIZED)/lib
	ln -sf $(CURDIR)/cython_kernels/*.py $(SANITIZED)/lib/cython_kernels/
	touch $@

sanitize: setup $(SANITIZED)/built ## kernel and engine tests under the address and undefined-behaviour sanitizers
	$(SANITIZED)/kernel_test
	$(WITH_SANITIZERS) $(BIN)/pytest tests/kernels $(PYTEST) \
	  $(patsubst %,tests/unit/engine/test_%.py,engine integers kernel_choice profile threads)

docs: setup ## the documentation as a site in build/docs; a link that leads nowhere is an error
	$(BIN)/sphinx-build -q -E -W --keep-going docs build/docs

SECONDS := 60
fuzz: setup $(SANITIZED)/built ## pack random weights and read damaged files for SECONDS each, under the sanitizers
	for quantization in none int8; do $(BIN)/toolkit export output_dir=$(SANITIZED)/$$quantization model.config.hidden_size=32 \
	  model.config.num_hidden_layers=1 model.config.intermediate_size=64 quantization=$$quantization \
	  sparsity=prune80 format=sparse || exit 1; done
	$(WITH_SANITIZERS) $(BIN)/python -P tests/kernels/fuzz_packing.py $(SECONDS)
	$(WITH_SANITIZERS) $(BIN)/python -P tests/support/fuzz_graph.py $(SANITIZED)/none/model.onnx $(SECONDS)
	$(WITH_SANITIZERS) $(BIN)/python -P tests/support/fuzz_graph.py $(SANITIZED)/int8/model.onnx $(SECONDS)
	$(WITH_SANITIZERS) $(BIN)/python -P tests/support/fuzz_graph.py $(SANITIZED)/none/model.sparse $(SECONDS)

DEMO := outputs/demo
MEASURED := 'then=[export,bench]' bench.against=[onnxruntime] bench.seconds=0.5 bench.profile=true \
  trainer.disable_tqdm=true
demo: setup ## train a teacher and a grid of small students, measure them, report; needs no download
	rm -rf $(DEMO)
	$(BIN)/toolkit train output_dir=$(DEMO)/teacher trainer.disable_tqdm=true
	$(BIN)/toolkit train -m recipe=demo teacher.path=$(DEMO)/teacher/checkpoint \
	  depth=full,layers2,layers1 sparsity=dense,prune80,prune90,prune97 output_dir=$(DEMO)/grid $(MEASURED)
	$(BIN)/toolkit train -m recipe=demo teacher.path=$(DEMO)/teacher/checkpoint \
	  depth=full,layers2 sparsity=dense,prune80_block4 quantization=int8 output_dir=$(DEMO)/int8 $(MEASURED)
	$(BIN)/toolkit report $(DEMO) output_dir=$(DEMO)/report 'select=recovery>=0.98'
	@printf '%s\n' '' 'Next, with your own model:' \
	  "  $(BIN)/toolkit bench onnx=MODEL.onnx 'against=[onnxruntime]'   # your file, side by side" \
	  "  $(BIN)/toolkit bench model=bert_base depth=layers6 sparsity=prune90 'against=[onnxruntime]'   # what would pruning bring?" \
	  "  $(BIN)/toolkit train model=local model.path=DIR task=sst2 task.data_dir=DIR sparsity=prune80 teacher=self 'then=[export,bench]'"

screenshot: setup ## draw docs/report.png, the demo's page (after `make demo`; needs chromium)
	PYTHONPATH=tests $(BIN)/python tests/support/screenshot.py $(DEMO)/report/report.html docs/report.png --height 1000

clean: ## remove what was built and measured, .venv included
	rm -rf $(VENV) build dist *.egg-info outputs multirun cython_kernels/*.so cython_kernels/*.c
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup check quick nightly lint types format sanitize docs fuzz demo screenshot clean
