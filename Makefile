# The README's commands. Each does all it needs and skips what is done.
PYTHON ?= python3
VENV := .venv
RIVALS := .rivals
SANITIZE := .sanitize
NVCC := .nvcc
PY := $(VENV)/bin/python
ARGS ?=
# Two processes share the tests: what shares a server or a calibration stays in one (tests/conftest.py).
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder
MODEL := SmolLM2-135M-Instruct
# Spinning OpenMP threads of several processes slow each other down tenfold.
export GOMP_SPINCOUNT ?= 0

CPU_SOURCES := kernels/cpu/CMakeLists.txt kernels/layout/record_format.h $(wildcard kernels/cpu/csrc/*)
CUDA_SOURCES := $(wildcard kernels/cuda/csrc/*.cuh kernels/cuda/csrc/emulator/*)

.PHONY: setup model data serve demo test test-fast lint sanitize bench-quality bench-hit-miss bench-stress bench-chat bench-throughput bench-kernels bench-serving bench-capacity bench-overhead bench-heads bench-offload picture rivals bench-rivals kernels-cuda check-kernels-cuda fuzz-cuda wheels check-wheel clean

setup: $(VENV)/.installed model

# Progress where somebody looks on.
PIP := $(PY) -m pip install $(shell test -t 2 || echo --quiet) --disable-pip-version-check
TORCH := $(shell grep '^torch==' requirements-cpu.lock)
# An index with a CPU build of torch, such as https://download.pytorch.org/whl/cpu; elsewhere torch may be the CUDA
# build, which does not load without 3 GB of libraries.
TORCH_INDEX ?=

$(VENV)/.requirements: requirements-cpu.lock
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) $(TORCH))
	$(PIP) --no-deps -r requirements-cpu.lock
	@$(PY) -c "import torch" 2>/dev/null || { \
	  echo "This index has torch's CUDA build: fetching the libraries that it loads, about 3 GB. For a small one: make setup TORCH_INDEX=URL, an index with CPU builds."; \
	  $(PIP) $(TORCH); $(PY) -c "import torch"; }
	touch $@

$(VENV)/.installed: $(VENV)/.requirements pyproject.toml $(CPU_SOURCES)
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

model: $(VENV)/.installed
	@$(PY) -m leankv_sglang.models fetch $(MODEL)

# What benches read; stand-ins where GitHub cannot be reached.
data: $(VENV)/.installed
	@$(PY) -m bench.data $(ARGS)

# Ctrl-C is how these are ended, not an error.
serve: setup
	@trap : INT; $(PY) -m leankv_sglang.launch_server $(ARGS) || test $$? -eq 130

# Stock SGLang beside LeanKV in the same bytes, in two minutes.
demo: setup
	@trap : INT; $(PY) -m leankv_sglang.demo $(ARGS) || test $$? -eq 130

test: setup
	$(PY) -m pytest $(PARALLEL) $(ARGS)

# docs/cache-page.png: the live page of a loaded server, in Debian's chromium (apt-get install chromium chromium-driver).
picture: setup
	LEANKV_PICTURES=$(CURDIR)/build/pictures && mkdir -p $$LEANKV_PICTURES && export LEANKV_PICTURES && \
	  $(PY) -m pytest tests/e2e/test_live_page.py -k browser_sees && \
	  cp $$LEANKV_PICTURES/cache-page.png docs/cache-page.png

# For the loop of edit and try: no servers, nothing that takes long, few examples.
test-fast: setup
	$(PY) -m pytest $(PARALLEL) --hypothesis-profile fast -m "not e2e and not slow" $(ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(filter %.cpp %.h %.inl,$(CPU_SOURCES)) $(CUDA_SOURCES)
	$(VENV)/bin/lint-imports
	$(PY) .ci/typecheck.py

# The CPU kernels with the sanitizers, in a build of their own that the tests load in place of the installed one.
# libstdc++ comes along because the address sanitizer has to find it before Python loads it.
sanitize: setup
	$(VENV)/bin/cmake -S kernels/cpu -B $(SANITIZE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV)/bin/ninja) \
	  -DPython_EXECUTABLE=$(abspath $(PY)) -Dnanobind_DIR=$$($(PY) -m nanobind --cmake_dir) -DLEANKV_SANITIZE=ON
	$(VENV)/bin/cmake --build $(SANITIZE)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 LEANKV_CPU_MODULE=$$(echo $(SANITIZE)/_cpu*.so) \
	  $(PY) -m pytest tests/kernels -k "cpu or dense_baseline or shrink" $(ARGS)

bench-quality bench-hit-miss bench-stress bench-chat bench-throughput bench-kernels bench-serving bench-capacity bench-overhead bench-heads bench-offload: setup
	$(PY) -m $(subst -,_,$(subst bench-,bench.,$@)) $(ARGS)

# The CUDA kernels, compiled without a GPU: cubins for every supported one into kernels/cuda/cubins, or a check that no
# kernel spills registers. The compiler comes from the package index.
$(NVCC)/.installed: kernels/cuda/nvcc.lock
	test -x $(NVCC)/bin/python || $(PYTHON) -m venv $(NVCC)
	$(NVCC)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

kernels-cuda check-kernels-cuda: setup $(NVCC)/.installed
	LEANKV_NVCC=$$(echo $(NVCC)/lib/python3*/site-packages/nvidia/cu13/bin/nvcc) \
	  $(PY) -m leankv_kernels.cuda.build $(if $(filter check-%,$@),--check) $(ARGS)

# Wheels for every supported Python, in containers that any Linux of these years can install from; needs Docker.
wheels: setup
	$(PIP) cibuildwheel==4.3.5
	$(PY) -m cibuildwheel --platform linux --output-dir dist $(ARGS)

# A wheel for this Python, installed into an empty environment; from another folder it starts a server, which is asked.
check-wheel: setup
	.ci/wheel $(PY)

# The emulator on many more random cases than the suite has, shapes included; FUZZ times as many.
fuzz-cuda: setup
	LEANKV_FUZZ=$(or $(FUZZ),20) $(PY) -m pytest tests/kernels/test_cuda_emulated.py tests/kernels/test_cuda_layers.py tests/kernels/test_shrink.py -k "cuda or any or bytes or tiers or tokens" $(ARGS)

# Other systems' compressed caches, in an environment of their own.
rivals: $(RIVALS)/.installed model

$(RIVALS)/.installed: bench/quality/rivals/requirements.lock
	test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

bench-rivals: rivals
	$(RIVALS)/bin/python -m bench.quality.rivals $(ARGS)

clean:
	rm -rf $(VENV) $(RIVALS) $(SANITIZE) $(NVCC) kernels/cuda/cubins .mypy_cache .import_linter_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
