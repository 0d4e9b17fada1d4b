#!/bin/sh
# One DVC stage: Snakemake for one milestone, restricted to that milestone's rules.
#   sh workflow/stage.sh MILESTONE RULE...      SNAKEMAKE_PROFILE=slurm sends the jobs to the cluster
: "${SNAKEMAKE_PROFILE:=local}"
export SNAKEMAKE_PROFILE
command -v snakemake > /dev/null || { echo "snakemake is not on the PATH: activate the environment, . .venv/bin/activate" >&2; exit 1; }
milestone=$1
exec snakemake --allowed-rules "$@" -- "$milestone"
