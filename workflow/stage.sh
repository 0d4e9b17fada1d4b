#!/bin/sh
# One DVC stage: Snakemake for one milestone, restricted to that milestone's rules.
#   sh workflow/stage.sh MILESTONE RULE...      SNAKEMAKE_PROFILE=slurm sends the jobs to the cluster
: "${SNAKEMAKE_PROFILE:=local}"
export SNAKEMAKE_PROFILE
command -v snakemake > /dev/null || { echo "snakemake is not on the PATH: activate the environment, . .venv/bin/activate" >&2; exit 1; }
milestone=$1
# A folder that DVC has just filled, a clone or one of `dvc exp run --queue`: what lies there is current, whatever its dates.
if [ ! -e .snakemake/metadata ] && ls results/*/pins > /dev/null 2>&1; then
    echo "marking what DVC has brought as current" >&2
    snakemake --touch --forceall --quiet all -- all || exit 1
    [ "$milestone" = pins ] && set -- "$@" --forcerun pin # whatever their text: parameters may have been edited before
fi
exec snakemake --allowed-rules "$@" -- "$milestone"
