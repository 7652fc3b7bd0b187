# The README's commands. Each does all it needs and skips what is done.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
ARGS ?=
MODEL := SmolLM2-135M-Instruct
# Spinning OpenMP threads of several processes slow each other down tenfold.
export GOMP_SPINCOUNT ?= 0

.PHONY: setup model serve test lint bench-quality bench-hit-miss bench-stress bench-chat bench-throughput clean

setup: $(VENV)/.installed model

$(VENV)/.installed: requirements-cpu.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-cpu.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

model: $(VENV)/.installed
	@$(PY) -m leankv_sglang.models fetch $(MODEL)

serve: setup
	$(PY) -m leankv_sglang.launch_server $(ARGS)

test: setup
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p .mypy && ln -sfn ../kernels .mypy/leankv_kernels && ln -sfn ../patches .mypy/leankv_patches \
	  && ln -sfn ../leankv_sglang .mypy/leankv_sglang && ln -sfn ../bench .mypy/bench
	cd .mypy && ../$(VENV)/bin/mypy --config-file ../pyproject.toml -p leankv_kernels -p leankv_patches -p leankv_sglang -p bench

bench-quality bench-hit-miss bench-stress bench-chat bench-throughput: setup
	$(PY) -m $(subst -,_,$(subst bench-,bench.,$@)) $(ARGS)

clean:
	rm -rf $(VENV) .mypy .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
