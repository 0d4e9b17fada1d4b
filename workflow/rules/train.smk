# The two stages of the paper, and the targets between them. One process, or torchrun with one per GPU.


rule teacher:
    """Stage 1: the motion subspace M_psi and its decoder F_omega, trained on flow (Eq. 3-4, A.3)."""
    input:
        weights(PARAMS.encoder.weights),
        config=f"{RESULTS}/pins/teacher.yaml",
        clips=per_shard("clips"),
        flow=per_shard("flow"),
    output:
        f"{RESULTS}/teacher/manifest.jsonl",
    log:
        f"{RESULTS}/logs/teacher/teacher.log",
    benchmark:
        f"{RESULTS}/logs/teacher/benchmark.tsv"
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads * PARAMS.machine.processes
    params:
        launch=launch,
        work=f"work/{PARAMS.scale}/teacher",
    shell:
        "exec {params.launch} teacher --config {input.config} --clips {input.clips} --flow {input.flow}"
        " --work {params.work} --out {output} > {log} 2>&1"


rule targets_shard:
    """What the student learns beside the video, of what is drawn of one shard: M (Eq. 3), raw tokens, or flow as a
    video (VideoJAM)."""
    input:
        lambda wildcards: models_of(wildcards.backbone, wildcards.target),
        config="results/{scale}/pins/targets/{backbone}-{target}.yaml",
        clips="results/{scale}/clips/{kind}/{shard}.jsonl",
        drawn=drawn,
        teacher=lambda wildcards: (rules.teacher.output if wildcards.target == "motion" else []),
    output:
        "results/{scale}/targets/{backbone}/{target}/{kind}/{shard}.jsonl",
    log:
        "results/{scale}/logs/targets/{backbone}-{target}-{kind}-{shard}.log",
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    params:
        teacher=lambda wildcards, input: (f"--teacher {input.teacher}" if input.teacher else ""),
    shell:
        "moalign targets --config {input.config} --clips {input.clips} --drawn {input.drawn} {params.teacher}"
        " --out {output} > {log} 2>&1"


rule targets:
    """All targets that a training reads."""
    input:
        [
            path
            for backbone, target in PARAMS.targets()
            for path in per_shard(f"targets/{backbone}/{target}", PARAMS.align.train_on)
        ],


rule align_run:
    """Stage 2: one run, one seed (Eq. 5-9, A.4)."""
    input:
        lambda wildcards: weights(PARAMS.backbones[PARAMS.runs[wildcards.run].backbone].weights),
        rows_of,
        config="results/{scale}/pins/align/{run}-s{seed}.yaml",
        clips=per_shard("clips", PARAMS.align.train_on),
        latents=ancient(latents_of),  # made again for the clips of one more seed, they hold the same for the others:
        targets=ancient(targets_of),  # what decides a run's rows is in `rows_of`
    output:
        "results/{scale}/runs/{run}/s{seed}/manifest.jsonl",
    log:
        "results/{scale}/logs/align/{run}-s{seed}.log",
    benchmark:
        "results/{scale}/logs/align/{run}-s{seed}.tsv"
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads * PARAMS.machine.processes
    params:
        launch=launch,
        work="work/{scale}/{run}-s{seed}",
        targets=lambda wildcards, input: (["--targets", *input.targets] if input.targets else []),
    shell:
        "exec {params.launch} align --config {input.config} --clips {input.clips} --latents {input.latents} {params.targets}"
        " --work {params.work} --out {output} > {log} 2>&1"


rule align:
    """All trainings that a table needs."""
    input:
        [f"{RESULTS}/runs/{run}/s{seed}/manifest.jsonl" for run, seed in PARAMS.trainings()],
