# Pins: what a job reads in place of params.yaml.


rule pin:
    """A job's share of the parameters. It changes only when that share does, and then its job runs again."""
    input:
        share,
    output:
        "results/{scale}/pins/{name}.yaml",
    log:
        "results/{scale}/logs/pins/{name}.log",
    wildcard_constraints:
        name="|".join(PINS),
    conda:
        "../../envs/moalign.yaml"
    shell:
        "cp {input} {output} > {log} 2>&1"


rule pins:
    """Every pin of this scale."""
    input:
        [f"{RESULTS}/pins/{name}.yaml" for name in PINS],
