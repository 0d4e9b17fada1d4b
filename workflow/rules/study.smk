# The user study of Table 6: `snakemake --profile local study`. No other target waits for people.

STUDY = f"{RESULTS}/study"


rule study_ready:
    """A frozen plan, the clips as raters get them, and their links: `moalign study serve --study results/S/study`."""
    input:
        shown,
    output:
        plan=f"{STUDY}/plan.jsonl",
        secret=f"{STUDY}/secret.json",
        invites=f"{STUDY}/invites.csv",
    log:
        f"{RESULTS}/logs/study/ready.log",
    conda:
        "../../envs/moalign.yaml"
    params:
        study=lambda wildcards, output: str(Path(output.plan).parent),
        samples=lambda wildcards, input: [f"{Path(path).parents[2].name}={path}" for path in input],
    shell:
        "{{ moalign study plan --study {params.study} --samples {params.samples}"
        " && moalign study prepare --study {params.study} --samples {params.samples}; }} > {log} 2>&1"


rule study:
    """Table 6, once all votes are there; before, it says how many it waits for. At the smoke scale nobody is asked."""
    input:
        rules.study_ready.output,
    output:
        f"{STUDY}/table6.md",
    log:
        f"{RESULTS}/logs/study/report.log",
    conda:
        "../../envs/moalign.yaml"
    params:
        study=lambda wildcards, output: str(Path(output[0]).parent),
        voters="moalign study simulate --study" if PARAMS.scale == "smoke" else "true",  # at the desk nobody is asked
    shell:
        "{params.voters} {params.study} > /dev/null 2>&1 && moalign study report --study {params.study} --out {output} > {log} 2>&1"
        " || {{ cat {log} >&2; exit 1; }}"
