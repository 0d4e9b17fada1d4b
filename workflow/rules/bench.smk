# From trained runs to tables: sample, rate, report.


rule sample_run:
    """One shard of a bench's videos from one run (Sec. 5.1)."""
    input:
        lambda wildcards: weights(PARAMS.backbones[PARAMS.runs[wildcards.run].backbone].weights),
        config="results/{scale}/pins/sample/{run}-s{seed}-{bench}.yaml",
        prompts=lambda wildcards: asked(wildcards.bench),
        run=lambda wildcards: (
            "results/{scale}/runs/{run}/s{seed}/manifest.jsonl" if PARAMS.runs[wildcards.run].method else []
        ),
        still=lambda wildcards: (
            f"results/{{scale}}/samples/{PARAMS.runs[wildcards.run].still_of}/s{{seed}}/{{bench}}/{{shard}}.jsonl"
            if PARAMS.runs[wildcards.run].still_of
            else []
        ),
    output:
        "results/{scale}/samples/{run}/s{seed}/{bench}/{shard}.jsonl",
    log:
        "results/{scale}/logs/sample/{run}-s{seed}-{bench}-{shard}.log",
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    params:
        work="work/{scale}/{run}-s{seed}",
        run=lambda wildcards, input: f"--run {input.run}" if input.run else "",
        still=lambda wildcards, input: f"--still {input.still}" if input.still else "",
    shell:
        "moalign sample --config {input.config} --shard {wildcards.shard} {params.run} {params.still}"
        " --work {params.work} --out {output} > {log} 2>&1"


rule sample:
    """All videos that a table needs."""
    input:
        [path for cell in cells() for path in samples(*cell)],


rule bench_run:
    """One run's videos, rated: one row per video and metric."""
    input:
        weights(PARAMS.flow.weights),
        lambda wildcards: PARAMS.benches[wildcards.bench].rules or [],
        config="results/{scale}/pins/bench/{run}-s{seed}-{bench}.yaml",
        prompts=lambda wildcards: asked(wildcards.bench),
        samples=lambda wildcards: samples(wildcards.run, wildcards.bench, wildcards.seed),
    output:
        "results/{scale}/scores/{run}/s{seed}/{bench}.jsonl",
    log:
        "results/{scale}/logs/bench/{run}-s{seed}-{bench}.log",
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    params:
        work="work/{scale}/{run}-s{seed}",
    shell:
        "moalign bench --config {input.config} --samples {input.samples} --work {params.work} --out {output}"
        " > {log} 2>&1"


rule bench:
    """All scores."""
    input:
        [f"{RESULTS}/scores/{run}/s{seed}/{bench}.jsonl" for run, bench, seed in cells()],


rule plan:
    """What all of it should cost, computed before anything is measured."""
    input:
        f"{RESULTS}/pins/report.yaml",
    output:
        f"{RESULTS}/report/plan.json",
    log:
        f"{RESULTS}/logs/report/plan.log",
    conda:
        "../../envs/moalign.yaml"
    shell:  # work/nothing: no results that could calibrate it
        "moalign plan --results work/nothing --out {output} > {log} 2>&1"


rule probe:
    """Whether M is disentangled: what a linear map reads from S, from M, and from the block that our run aligns."""
    input:
        weights(PARAMS.encoder.weights),
        weights(PARAMS.backbones[PARAMS.teacher.backbone].weights),
        config=f"{RESULTS}/pins/teacher.yaml",
        align=[f"{RESULTS}/pins/align/{run}-s{PARAMS.seeds[0]}.yaml" for run in probed()[:1]],
        clips=per_shard("clips", PARAMS.align.train_on),
        flow=per_shard("flow", PARAMS.align.train_on),
        latents=per_shard(f"latents/{PARAMS.teacher.backbone}", PARAMS.align.train_on) if probed() else [],
        teacher=rules.teacher.output,
        runs=[f"{RESULTS}/runs/{run}/s{PARAMS.seeds[0]}/manifest.jsonl" for run in probed()],
    output:
        f"{RESULTS}/report/probe.json",
    log:
        f"{RESULTS}/logs/report/probe.log",
    benchmark:
        f"{RESULTS}/logs/report/probe.tsv"
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    params:
        run=lambda wildcards, input: block_flags(input),
    shell:
        "moalign probe --config {input.config} --clips {input.clips} --flow {input.flow}"
        " --teacher {input.teacher} {params.run} --out {output} > {log} 2>&1"


rule report:
    """Tables, metrics.json and the page of this scale."""
    input:
        config=f"{RESULTS}/pins/report.yaml",
        selection=f"{RESULTS}/clips/selection.jsonl",
        clips=per_shard("clips"),
        flow=per_shard("flow"),
        drawn=f"{RESULTS}/drawn/manifest.jsonl",
        latents=rules.encode.input,
        targets=rules.targets.input,
        teacher=rules.teacher.output,
        runs=rules.align.input,
        samples=rules.sample.input,
        scores=rules.bench.input,
        paper="resources/paper_scores.json",
        plan=rules.plan.output,
        probe=rules.probe.output,
    output:
        page=report(PAGE, caption="../report/page.rst", category="Page"),
        metrics=report(f"{RESULTS}/metrics.json", caption="../report/metrics.rst", category="Numbers"),
        tables=report(
            [f"{RESULTS}/tables/{table}.md" for table in PARAMS.tables],
            caption="../report/table.rst",
            category="Tables",
        ),
        latex=[f"{RESULTS}/tables/{table}.tex" for table in PARAMS.tables],
        curves=report(f"{RESULTS}/tables/curves.csv", caption="../report/curves.rst", category="Numbers"),
    log:
        f"{RESULTS}/logs/report/report.log",
    conda:
        "../../envs/moalign.yaml"
    params:
        results=subpath(output.metrics, parent=True),
        study=lambda wildcards: votes_counted(),  # so that the page is made again once raters have spoken
    shell:
        "moalign report --config {input.config} --results {params.results} --out {output.page} > {log} 2>&1"
