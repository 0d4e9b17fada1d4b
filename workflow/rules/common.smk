# Parameters, pins and paths. params.yaml is read and checked here, before anything is queued.

import fcntl
import os
from functools import cache
from hashlib import sha256
from pathlib import Path

from snakemake.exceptions import IncompleteCheckpointException, WorkflowError

from moalign import config as settings
from moalign.errors import Problem
from moalign.manifest import write_text


def read_parameters():
    """The parameters, and a frozen copy for the jobs on other nodes, which read this file again when they start.

    So params.yaml may be edited, or broken, while they wait. `--config scale=paper` replaces a top-level key.
    """
    try:
        if not workflow.is_main_process and (params := settings.frozen()):
            return params
        params = settings.load("params.yaml", **config)
    except Problem as problem:
        raise WorkflowError(str(problem)) from None
    settings.freeze(keep("params", settings.dump(params)))
    return params


def keep(kind, text):
    """Path of a file with this text, named by its hash."""
    path = Path("work/pins", kind, f"{sha256(text.encode()).hexdigest()[:12]}.yaml")
    if not path.exists():
        write_text(path, text)
    return str(path)


PARAMS = read_parameters()

RESULTS = f"results/{PARAMS.scale}"
PAGE = f"{RESULTS}/report/index.html"
MINIATURE = ["raft", "videomae", "cogvideox", "wan"] if PARAMS.pretraining else []  # resources/miniature

# wandb reads these itself, so the pins need not carry them and switching it reruns nothing.
os.environ.setdefault("WANDB_MODE", PARAMS.wandb.mode)
os.environ.setdefault("WANDB_PROJECT", PARAMS.wandb.project)


wildcard_constraints:
    scale=PARAMS.scale,
    kind="real|synth",
    shard=r"\d{4}",
    source="|".join(PARAMS.sources),
    backbone="|".join(PARAMS.backbones),
    target="tokens|motion|flow_video",
    run="|".join(PARAMS.runs),
    seed=r"\d+",
    bench="|".join(PARAMS.benches),


def take_lock():
    """One run at a time in a folder. The kernel lets go when this process dies, however it dies: no stale locks."""
    global LOCK
    LOCK = open(".snakemake/running", "w")
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError("another Snakemake is running in this folder; wait for it, or stop it") from None


def shards(kind):
    """Names of the shards of the real or of the synthetic clips."""
    count = PARAMS.subset.shards if kind == "real" else PARAMS.synth.shards
    return [f"{index:04d}" for index in range(count)]


def per_shard(folder, kinds=("real", "synth"), ending="jsonl"):
    """Manifests of a stage that works shard by shard, or its files of another ending: all of its shards."""
    return [f"{RESULTS}/{folder}/{kind}/{shard}.{ending}" for kind in kinds for shard in shards(kind)]


def weights(path):
    """What changes when a model's files do: the checksums in its folder, or the file itself. Of a hub name, nothing."""
    path = Path(path)
    sums = (path if path.is_dir() else path.parent) / "SHA256SUMS"
    return [str(found) for found in [sums, path] if found.is_file()][:1]


def aligned_with(run):
    """(backbone, target) of a run; the target is None where the method has none."""
    row = PARAMS.runs[run]
    target = PARAMS.methods[row.method].target
    return row.backbone, None if target == "none" else target


def asked(bench):
    """Files of a bench's prompts, and of what a model is given in their place."""
    row = PARAMS.benches[bench]
    return [path for path in (row.prompts, row.extended) if path]


def samples(run, bench, seed):
    """Manifests of a run's videos, a shard each."""
    return [f"{RESULTS}/{path}" for path in PARAMS.samples(run, bench, seed)]


def cells():
    """(run, bench, seed) of every row of every table, and of what a static control repeats."""
    rows = {(PARAMS.runs[run].still_of or run, bench, seed): None for run, bench, seed in PARAMS.rows()}
    return list(rows | dict.fromkeys(PARAMS.rows()))


def annotations(name):
    """The annotation file of a source: given, or made by `collect`."""
    row = PARAMS.sources[name]
    return row.annotations or f"{RESULTS}/collections/{name}/annotations.json"


def sources(roots=False):
    """NAME=PATH of every source, for the command line: its annotations, or its root folder."""
    paths = {name: annotations(name) for name in PARAMS.sources}
    if roots:
        paths = {name: PARAMS.sources[name].root or str(Path(path).parent) for name, path in paths.items()}
    return [f"{name}={path}" for name, path in paths.items()]


def launch(wildcards, resources):
    """How a training is started: `moalign`, or torchrun with machine.processes ranks, on as many nodes as the profile
    says: srun then starts one torchrun on each, and they meet on the first."""
    ranks, nodes = PARAMS.machine.processes, resources.get("nodes", 1)
    if ranks == 1:
        return "moalign"
    if ranks % nodes:
        raise WorkflowError(
            f"machine.processes: {ranks} ranks cannot be shared evenly by {nodes} nodes (profile: nodes)"
        )
    signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # SLURM's warning too: else torchrun dies and leaves its ranks
    grace = "--shutdown-timeout 110"  # a checkpoint is written meanwhile; the profile warns 120 s before the end
    ranks_here = f"--nproc-per-node {ranks // nodes} --signals-to-handle {signals} {grace} -m moalign"
    if nodes == 1:
        return f"torchrun --standalone {ranks_here}"
    step = f"srun --kill-on-bad-exit=1 --nodes={nodes} --ntasks={nodes} --cpus-per-task={resources.cpus_per_task}"
    gpus = f" --gpus={resources.gpu}" if resources.get("gpu") else ""
    meet = "--rdzv-id $SLURM_JOB_ID --rdzv-backend c10d --rdzv-endpoint $(hostname):$((20000 + SLURM_JOB_ID % 20000))"
    return f"{step}{gpus} torchrun --nnodes {nodes} {meet} {ranks_here}"


@cache
def waiting(_made):
    """What says that `draw` has yet to run, or None. Looking takes milliseconds, so once for all shards at a time."""
    try:
        checkpoints.draw.get()
    except IncompleteCheckpointException as waits:
        return waits


def drawn(wildcards):
    """A shard's list of drawn clips, once `draw` has said what is in it."""
    if waits := waiting(len(checkpoints.created_output)):
        raise waits.with_traceback(None)
    return f"{RESULTS}/drawn/{wildcards.kind}/{wildcards.shard}.txt"


def latents_of(wildcards):
    """What a run's training draws from: the latents of its backbone."""
    return per_shard(f"latents/{PARAMS.runs[wildcards.run].backbone}", PARAMS.align.train_on)


def targets_of(wildcards):
    """A run's targets; none for plain fine-tuning, and no waiting for the teacher where they are raw tokens."""
    backbone, target = aligned_with(wildcards.run)
    return per_shard(f"targets/{backbone}/{target}", PARAMS.align.train_on) if target else []


def models_of(backbone, target):
    """What changes when the models behind a target do; stage 1's are an input of their own."""
    if target == "flow_video":
        return weights(PARAMS.flow.weights) + weights(PARAMS.backbones[backbone].weights)
    return weights(PARAMS.encoder.weights)


def rows_of(wildcards):
    """What decides a clip's latent and target, whichever other clips lie in its shard: their pins and models."""
    backbone, target = aligned_with(wildcards.run)
    files = [f"{RESULTS}/pins/encode/{backbone}.yaml"]
    if target:
        files += [f"{RESULTS}/pins/targets/{backbone}-{target}.yaml", *models_of(backbone, target)]
    if target == "motion":
        files.append(f"{RESULTS}/teacher/manifest.jsonl")
    return files


def all_pins():
    """Name of every pin -> the stage and the names that `settings.pin` cuts it by."""
    pins = {f"collect/{name}": ("collect", {"source": name}) for name in PARAMS.sources}
    pins |= {stage: (stage, {}) for stage in ("subset", "synth", "flow", "draw", "teacher", "report")}
    for run, seed in PARAMS.trainings():
        backbone = PARAMS.runs[run].backbone
        pins[f"align/{run}-s{seed}"] = ("align", {"run": run, "seed": seed})
        pins[f"encode/{backbone}"] = ("encode", {"backbone": backbone})
    for backbone, target in PARAMS.targets():
        pins[f"targets/{backbone}-{target}"] = ("targets", {"backbone": backbone, "target": target})
    for run, bench, seed in PARAMS.rows():
        for name in filter(None, (run, PARAMS.runs[run].still_of)):
            for stage in ("sample", "bench"):
                pins[f"{stage}/{name}-s{seed}-{bench}"] = (stage, {"run": name, "seed": seed, "bench": bench})
    return pins


PINS = all_pins()


def share(wildcards):
    """A job's share of the parameters, resolved, kept under its hash: what a dry run names when it says what changed.

    It is the newer one exactly where the pin holds another text, whatever dates a checkout or a touch has given them.
    """
    stage, names = PINS[wildcards.name]
    text = settings.dump(settings.pin(PARAMS, stage, **names))
    path, pin = Path(keep(stage, text)), Path(RESULTS, "pins", f"{wildcards.name}.yaml")
    if workflow.is_main_process and pin.exists():
        current, newer = pin.read_text(encoding="utf-8") == text, path.stat().st_mtime > pin.stat().st_mtime
        if current and newer:
            os.utime(path, (0, 0))
        elif not current and not newer:
            os.utime(path)
    return str(path)


def studied():
    """Runs of the study: ours, its base as it came, and what it is compared with first."""
    if PARAMS.primary is None:
        raise WorkflowError("params.yaml: primary: null, and the study shows its runs; say which")
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


def votes_counted():
    """Hash of Table 6's numbers; nothing before there are any. No input: the page does not wait for people."""
    path = Path(RESULTS, "study/table6.json")
    return sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else None


def probed():
    """Runs whose tokens are probed: of the primary comparison, those that were trained on stage 1's backbone."""
    trained = dict.fromkeys(
        run for run, _ in PARAMS.trainings() if PARAMS.runs[run].backbone == PARAMS.teacher.backbone
    )
    primary = [PARAMS.primary.ours, PARAMS.primary.base] if PARAMS.primary else []
    pair = [run for run in primary if run in trained]
    return pair or list(trained)[:1]


def block_flags(given):
    """What `moalign probe` is told of the runs that are probed; nothing where none is."""
    runs = [f"{Path(path).parents[1].name}={path}" for path in given.runs]
    return f"--align {given.align} --latents {given.latents} --runs {' '.join(runs)}" if runs else ""
