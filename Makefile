# Every target sets up what it needs by itself; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup run test test-clients check slow sanitize bench bench-peers docs test-page page-images page-vendor clean

help:
	@echo "make run    the server with the bundled model on http://127.0.0.1:8000"
	@echo "make test   the test suite (no network, no GPU, no weights)"
	@echo "make test-page  the chat page in Chromium, which has to be there (apt install chromium)"
	@echo "make test-clients  OpenAI's, Anthropic's, Mistral's and other clients against a running server"
	@echo "make check  lint, types and the rules of the house"
	@echo "make slow   the tests that take long: memory peaks, what the bundled model can do"
	@echo "make sanitize  the native operators under address and undefined-behaviour sanitizers"
	@echo "make docs   the reference pages that are generated from the code"
	@echo "make bench  speed and memory on synthetic weights of this architecture"
	@echo "make bench-peers  llama.cpp, transformers and vLLM beside Ventoux on the same weights (SIZE=tiny to try it out)"

setup: $(STAMP)

# The constraints file pins torch: an open range would bring gigabytes of CUDA to machines that have none.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

run: setup
	$(BIN)/ventoux serve

test: setup
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m slow

# Clients need each other's dependencies in versions that exclude each other: an environment for each group of them. The
# requirements files name every package, so nothing else is resolved (or brought along, such as another torch).
CLIENTS := $(patsubst tests/clients/%/requirements.txt,%,$(wildcard tests/clients/*/requirements.txt))
test-clients: setup $(CLIENTS:%=build/clients/%/.installed)
	for env in $(CLIENTS); do build/clients/$$env/bin/python -m pytest -c tests/clients/pytest.ini --rootdir tests/clients \
	  --confcutdir tests/clients --ventoux $(BIN)/ventoux tests/clients/$$env || exit 1; done

build/clients/%/.installed: tests/clients/%/requirements.txt
	$(PYTHON) -m venv build/clients/$*
	build/clients/$*/bin/pip install --quiet --no-deps --requirement $<
	touch $@

check: setup
	$(BIN)/ruff check src tests examples docs
	$(BIN)/ruff format --check src tests examples docs
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/house

# The native operators' contract under a sanitizer, in an environment of its own that borrows the main one's packages.
# SANITIZE=thread watches the pool; torch's own threads, which it cannot follow, stay away.
SANITIZE ?= address,undefined
sanitize: setup
	rm -rf build/sanitized && $(PYTHON) -m venv build/sanitized
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
	  > $$(build/sanitized/bin/python -c "import site; print(site.getsitepackages()[0])")/borrowed.pth
	build/sanitized/bin/pip install --quiet --no-deps -C cmake.define.VENTOUX_SANITIZE=$(SANITIZE) \
	  -C build-dir=build/sanitized-objects .
	LD_PRELOAD=$$($(CXX) -print-file-name=lib$(if $(findstring thread,$(SANITIZE)),tsan,asan).so) ASAN_OPTIONS=detect_leaks=0 \
	  OMP_NUM_THREADS=1 build/sanitized/bin/python -m pytest -q tests/ops/test_native.py tests/ops/test_pool.py

bench: setup
	$(BIN)/ventoux bench latency

# Peers have environments of their own; one that cannot be installed is named in the result, with the reason. llama.cpp is
# built here, for this processor. See docs/concepts/performance.md.
PEERS := $(patsubst benchmarks/peers/%/requirements.txt,%,$(wildcard benchmarks/peers/*/requirements.txt))
SIZE ?= mid
bench-peers: setup
	-$(MAKE) --keep-going $(PEERS:%=build/peers/%/.installed)
	PYTHONPATH=benchmarks $(BIN)/python -m peers --size $(SIZE) $(PEERS_FLAGS)

build/peers/%/.installed: benchmarks/peers/%/requirements.txt
	rm -f $@
	$(PYTHON) -m venv build/peers/$*
	build/peers/$*/bin/pip install --no-deps --requirement $< > build/peers/$*/install.log 2>&1
	test ! -f benchmarks/peers/$*/install.sh || \
	  sh benchmarks/peers/$*/install.sh build/peers/$* >> build/peers/$*/install.log 2>&1
	touch $@

build/peers/llamacpp/.installed: $(addprefix benchmarks/peers/llamacpp/,install.sh CMakeLists.txt bridge.cpp source.txt)

docs: setup
	$(BIN)/python docs/generate.py

# Chromium itself is the system's, or that of: .venv/bin/playwright install chromium
PAGE := $(VENV)/.installed-page
$(PAGE): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,page]"
	touch $(PAGE)

test-page: $(PAGE)
	$(BIN)/python -m pytest -m browser tests/page

page-images: $(PAGE)
	$(BIN)/python -m tests.page.pictures

# What the chat page ships of others, at the versions of its package.json; needs npm.
page-vendor:
	sh src/ventoux/server/page/vendor/refresh.sh

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
