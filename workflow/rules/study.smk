# The user study of Table 6: `snakemake --profile local study`. No other target waits for people.

STUDY = f"{RESULTS}/study"


def studied():
    """Runs of the study: ours, its base as it came, and what it is compared with first."""
    ours, base = PARAMS.primary.ours, PARAMS.primary.base
    bare = [
        name
        for name, row in PARAMS.runs.items()
        if row.method is None and row.still_of is None and row.backbone == PARAMS.runs[ours].backbone
    ]
    return [ours, *bare[:1], base]


def shown(_wildcards):
    """Manifests of the videos that raters see."""
    return [path for run in studied() for path in samples(run, PARAMS.primary.bench, PARAMS.seeds_of(run)[0])]


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
        study=STUDY,
        samples=lambda wildcards, input: [f"{path.split('/samples/')[1].split('/')[0]}={path}" for path in input],
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
        study=STUDY,
        simulate=f"moalign study simulate --study {STUDY} > /dev/null 2>&1 &&" if PARAMS.scale == "smoke" else "",
    shell:
        "{params.simulate} moalign study report --study {params.study} --out {output} > {log} 2>&1"
        " || {{ cat {log} >&2; exit 1; }}"
