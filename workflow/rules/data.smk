# From collections of videos to what the two trainings read: clips, flow, latents.


rule collection:
    """A collection that this repo makes itself: the physics world, or real footage that a package ships."""
    input:
        config="results/{scale}/pins/collect/{source}.yaml",
    output:
        "results/{scale}/collections/{source}/annotations.json",
    log:
        "results/{scale}/logs/collect/{source}.log",
    conda:
        "../../envs/moalign.yaml"
    shell:
        "moalign collect --config {input.config} --out {output} > {log} 2>&1"


rule collect:
    """All collections, those that a user brought included, and a list of their annotations."""
    input:
        [f"{RESULTS}/pins/collect/{name}.yaml" for name in PARAMS.sources],
        annotations=[annotations(name) for name in PARAMS.sources],
    output:
        f"{RESULTS}/collections/index.txt",
    log:
        f"{RESULTS}/logs/collect/index.log",
    conda:
        "../../envs/moalign.yaml"
    shell:
        "printf '%s\\n' {input.annotations:q} > {output} 2> {log}"


rule selection:
    """Which clips, from the annotations alone (Sec. 4.1)."""
    input:
        rules.collect.output,
        config="results/{scale}/pins/subset.yaml",
        annotations=[annotations(name) for name in PARAMS.sources],
    output:
        "results/{scale}/clips/selection.jsonl",
    log:
        "results/{scale}/logs/subset/selection.log",
    conda:
        "../../envs/moalign.yaml"
    params:
        sources=sources(),
    shell:
        "moalign select --config {input.config} --source {params.sources:q} --out {output} > {log} 2>&1"


rule subset_shard:
    """One shard of the chosen clips, decoded once into small proxies (Sec. 4.1)."""
    input:
        config="results/{scale}/pins/subset.yaml",
        selection="results/{scale}/clips/selection.jsonl",
    output:
        "results/{scale}/clips/real/{shard}.jsonl",
    log:
        "results/{scale}/logs/subset/{shard}.log",
    conda:
        "../../envs/moalign.yaml"
    params:
        sources=sources(roots=True),
        shard=lambda wildcards: int(wildcards.shard),
    shell:
        "moalign ingest --config {input.config} --selection {input.selection} --source {params.sources:q}"
        " --shard {params.shard} --out {output} > {log} 2>&1"


rule subset:
    """All real clips."""
    input:
        per_shard("clips", ["real"]),


rule synth_shard:
    """One shard of synthetic clips from Wan, prompts from the real clips' captions (Sec. 4.1)."""
    input:
        weights(PARAMS.backbones[PARAMS.synth.backbone].weights),
        config="results/{scale}/pins/synth.yaml",
        selection="results/{scale}/clips/selection.jsonl",
    output:
        "results/{scale}/clips/synth/{shard}.jsonl",
    log:
        "results/{scale}/logs/synth/{shard}.log",
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    params:
        shard=lambda wildcards: int(wildcards.shard),
    shell:
        "moalign synth --config {input.config} --selection {input.selection} --shard {params.shard}"
        " --out {output} > {log} 2>&1"


rule synth:
    """All synthetic clips."""
    input:
        per_shard("clips", ["synth"]),


rule flow_shard:
    """RAFT's flow O for one shard of clips (Sec. 3.2)."""
    input:
        weights(PARAMS.flow.weights),
        config="results/{scale}/pins/flow.yaml",
        clips="results/{scale}/clips/{kind}/{shard}.jsonl",
    output:
        "results/{scale}/flow/{kind}/{shard}.jsonl",
    log:
        "results/{scale}/logs/flow/{kind}-{shard}.log",
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    shell:
        "moalign flow --config {input.config} --clips {input.clips} --out {output} > {log} 2>&1"


rule flow:
    """All flow."""
    input:
        per_shard("flow"),


checkpoint draw:
    """Which clips the trainings will draw: nothing else is encoded. A checkpoint, for what is made of a shard whose
    list comes out as it was need not run again, and that is known only then."""
    input:
        config=f"{RESULTS}/pins/draw.yaml",
        clips=per_shard("clips", PARAMS.align.train_on),
    output:
        manifest=f"{RESULTS}/drawn/manifest.jsonl",
        lists=per_shard("drawn", PARAMS.align.train_on, "txt"),
    log:
        f"{RESULTS}/logs/draw/draw.log",
    conda:
        "../../envs/moalign.yaml"
    shell:
        "moalign draw --config {input.config} --clips {input.clips} --out {output.manifest} > {log} 2>&1"


rule encode_shard:
    """Latents z0 and prompt states of what is drawn of one shard, for one backbone (Sec. 3.1)."""
    input:
        lambda wildcards: weights(PARAMS.backbones[wildcards.backbone].weights),
        config="results/{scale}/pins/encode/{backbone}.yaml",
        clips="results/{scale}/clips/{kind}/{shard}.jsonl",
        drawn=drawn,
    output:
        "results/{scale}/latents/{backbone}/{kind}/{shard}.jsonl",
    log:
        "results/{scale}/logs/encode/{backbone}-{kind}-{shard}.log",
    conda:
        "../../envs/moalign.yaml"
    threads: PARAMS.machine.threads
    shell:
        "moalign encode --config {input.config} --clips {input.clips} --drawn {input.drawn} --out {output} > {log} 2>&1"


rule encode:
    """All latents that a training reads."""
    input:
        [
            path
            for backbone in dict.fromkeys(PARAMS.runs[run].backbone for run, _ in PARAMS.trainings())
            for path in per_shard(f"latents/{backbone}", PARAMS.align.train_on)
        ],
