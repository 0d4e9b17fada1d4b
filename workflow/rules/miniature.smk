# The small models of resources/miniature, made again from nothing: `snakemake --profile local miniature_models`.
# They are made below work/ and copied at the end, so that no other target ever trains them.


rule miniature_model:
    """Train one of them, a killed training goes on where it was; then measure it, and write its card."""
    output:
        "work/{scale}/miniature/models/{model}/README.md",
    log:
        "work/{scale}/miniature/{model}.log",
    wildcard_constraints:
        model="|".join(MINIATURE) or "none",
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    params:
        config=lambda wildcards: keep(
            "miniature", settings.dump(settings.pin(PARAMS, "miniature", model=wildcards.model))
        ),
        work="work/{scale}/miniature/{model}",
        out=subpath(output[0], parent=True),
    shell:
        "{{ moalign miniature --config {params.config} --work {params.work} --out {params.out}"
        " && moalign card --config {params.config} --model {params.out}; }} > {log} 2>&1"


rule miniature_models:
    """All of them, copied to where they are used."""
    input:
        [f"work/{PARAMS.scale}/miniature/models/{model}/README.md" for model in MINIATURE],
    log:
        f"work/{PARAMS.scale}/miniature/copy.log",
    conda:
        "../../envs/moalign.yaml"
    params:
        models=[f"work/{PARAMS.scale}/miniature/models/{model}" for model in MINIATURE],
    shell:
        "cp -r {params.models} resources/miniature/ > {log} 2>&1"
