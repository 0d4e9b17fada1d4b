# Two commands: `make run` ends with a report, `make test` with a green line. Needs git, make, Python 3.11 and a package index.
BIN := $(CURDIR)/.venv/bin
UV_VERSION := 0.13.9
export PATH := $(BIN):$(PATH)
.DEFAULT_GOAL := help
.PHONY: help run env rater-vbench rater-videophy test test-faults bench-loss bench-data bench-overhead bench-scale lint format schema revisions lock restore record slurm-up slurm-down clean

help:  ## what can be made
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: env  ## the whole chain at the scale that params.yaml names; ends with the report's path
	snakemake --profile local all
	@echo "The report: results/$$(sed -n 's/^scale: *\([a-z]*\).*/\1/p' params.yaml)/report/index.html"

env: .venv/installed  ## create .venv from requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || python3.11 -m venv .venv || python3 -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "MoAlign needs Python 3.11: remove .venv, put python3.11 on the PATH")'
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

rater-vbench rater-videophy: rater-%: env  ## a rater's environment, envs/NAME/.venv, from its lock (docs/raters.md)
	uv venv --quiet --allow-existing --python $(if $(filter videophy,$*),3.10,3.11) envs/$*/.venv \
	    || { echo "$@: needs Python $(if $(filter videophy,$*),3.10,3.11), which uv neither found on the PATH nor could fetch"; exit 1; }
	uv pip sync --quiet --python envs/$*/.venv/bin/python --require-hashes envs/$*/requirements.lock

test: env  ## all tests that need no GPU, no cluster and no rater
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile -m "not faults and not gpu"

test-faults: env  ## faults injected for real: full and read-only disks, kills (slow; needs root)
	python -m pytest -m faults

bench-loss: env  ## time and memory of Eq. 8, one pass against the matrices as written
	OMP_NUM_THREADS=1 python tests/bench_loss.py

bench-data: env  ## CPU time to read a clip in each way, and the first batch after a resume
	OMP_NUM_THREADS=1 python tests/bench_data.py

bench-overhead: env  ## what alignment adds to a step of fine-tuning, beside a teacher inside the step
	OMP_NUM_THREADS=1 python tests/bench_overhead.py

bench-scale: env  ## the paper's number of clips: the dry-run of all jobs, the choice from 366,000 annotations
	OMP_NUM_THREADS=1 python tests/bench_scale.py

lint: env  ## ruff, snakefmt and snakemake's own linter
	ruff check . && ruff format --check . && snakefmt --check Snakefile workflow/rules && snakemake --lint

format: env  ## the same, writing
	ruff check --fix . && ruff format . && snakefmt Snakefile workflow/rules

schema: env  ## resources/params.schema.json from the types in config.py
	moalign schema --out resources/params.schema.json

revisions: env  ## record that a change of code leaves its stage's results as they are
	python tests/test_revisions.py

lock: env  ## requirements.lock from pyproject.toml, and the raters' locks from what they ask
	uv pip compile pyproject.toml --quiet --extra dev --generate-hashes --no-header --python-version 3.11 -o requirements.lock
	uv pip compile envs/vbench/requirements.in --quiet --generate-hashes --no-header --python-version 3.11 -o envs/vbench/requirements.lock
	uv pip compile envs/videophy/requirements.in --quiet --generate-hashes --no-header --python-version 3.10 -o envs/videophy/requirements.lock

restore: env  ## after `git checkout` and `dvc pull`: tell Snakemake that what lies there is current
	snakemake --profile local --touch --forceall all

record: env  ## after a run of Snakemake: tell DVC what lies there, only of stages that are current
	python workflow/record.py

slurm-up: env  ## a SLURM of one node on this machine, for the tests (root, Debian); docs/cluster.md
	python tests/slurm/cluster.py up

slurm-down: env  ## stop it and remove it
	python tests/slurm/cluster.py down

clean:  ## remove results, checkpoints and caches, not .venv
	git clean -fdXq -- results work wandb dvc_plots .snakemake .pytest_cache .ruff_cache .hypothesis
