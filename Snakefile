# MoAlign, from videos to tables: `snakemake --profile local all`, or `snakemake --profile slurm all`.


container: "envs/moalign.sif"  # used with `--sdm apptainer` alone; made from envs/moalign.def


include: "workflow/rules/common.smk"
include: "workflow/rules/pins.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/bench.smk"
include: "workflow/rules/miniature.smk"
include: "workflow/rules/study.smk"


localrules:
    all,
    pin,
    pins,
    collect,
    subset,
    synth,
    flow,
    encode,
    targets,
    align,
    sample,
    bench,
    miniature_models,


onstart:
    take_lock()


rule all:
    """Every table of this scale, and the page that shows them."""
    default_target: True
    input:
        PAGE,
