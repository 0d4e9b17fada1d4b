"""What a run of the workflow will cost: its jobs, and the seconds, memory and disk of each, before one of them starts.

Jobs are the manifests that the stages write, from the same lists of `Params` as the Snakefile's targets. Where jobs of
a kind have run, their manifests say what a unit of them (a clip, a step, a video) took; where none has, the operations
are counted on tensors without numbers, and set against a device's peak and a share of it that such work reaches.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import optical_flow

from moalign import config, sizes
from moalign.backbones import own_grid
from moalign.bench import prompts
from moalign.config import Backbone, Params
from moalign.errors import Problem
from moalign.progress import track
from moalign.stages import throughput
from moalign.teacher import raft, videomae

CARDS = {"H100": 80, "H200": 141, "A100": 80}  # GB of memory; peaks are throughput.PEAK
CORE = 100e9  # FLOP/s of one CPU core in fp32: AVX2 at 3 GHz
OF_CORE = 0.5, "assumed"  # share of it that any stage reaches
REACHED = {  # share of a GPU's peak, and how that is known
    "synth": (0.40, "assumed"),
    "flow": (0.10, "assumed: small convolutions"),
    "encode": (0.25, "assumed: 3D convolutions"),
    "targets": (0.25, "assumed"),
    "teacher": (0.25, "assumed"),
    "align": (0.36, "measured on an H200, docs/performance.md"),
    "sample": (0.40, "assumed"),
    "bench": (0.10, "assumed"),
}
ON_CPU = ("subset", "draw")  # stages whose jobs ask for no GPU; their hours are a core's
DECODE = 1.2e-7  # seconds of a core per pixel stored of the sources: found, decoded, resized, encoded again
READ = 1.5e-8  # and per pixel of a stored clip that a GPU's job reads: 0.4 s at 480p and 97 frames, 0.2 s to scale
READERS = ("flow", "encode", "targets", "teacher")  # stages that do
RATED = {"vbench": 12 * 3600 / 4720}  # seconds per video: half a day of one H100 for its standard suite (its issue 195)
STATE = 16  # bytes of weight, gradient and two moments, fp32
KEPT = {  # bytes per token, channel and block that the way back needs, measured on an H200 (docs/performance.md)
    ("cogvideox", "none"): 60,
    ("cogvideox", "keep_attention"): 3,
    ("cogvideox", "full"): 3,
    ("wan", "none"): 90,
    ("wan", "keep_attention"): 5,
    ("wan", "full"): 5,
}


@dataclass(frozen=True)
class Job:
    """One job: one manifest."""

    stage: str
    kind: str  # jobs of one kind cost the same per unit
    path: str  # of its manifest, below results/SCALE
    units: float
    run: str | None = None  # of a backbone that is tuned or asked


@dataclass(frozen=True)
class Price:
    """What a unit of a kind of jobs costs."""

    seconds: float  # of one worker: a GPU, or a core
    bytes: float  # on disk
    known: str  # how


def jobs(params: Params) -> list[Job]:
    """Every job behind the report."""
    found = [Job("subset", "select", "clips/selection.jsonl", params.subset.clips)]
    stored = {"real": params.subset, "synth": params.synth}
    per_shard = {
        kind: [min(row.shard, row.clips - row.shard * shard) for shard in range(row.shards)]
        for kind, row in stored.items()
    }
    share = drawn_share(params)

    def sharded(stage: str, kind: str, folder: str, names: Iterable[str], part: float = 1.0) -> list[Job]:
        return [
            Job(stage, kind, f"{folder}/{name}/{shard:04d}.jsonl", clips * part)
            for name in names
            for shard, clips in enumerate(per_shard[name])
        ]

    found += sharded("subset", "store", "clips", ["real"])
    found += sharded("synth", params.synth.backbone, "clips", ["synth"])
    found += sharded("flow", params.flow.model, "flow", stored)
    found.append(Job("draw", "draw", "drawn/manifest.jsonl", params.subset.clips))
    for backbone in dict.fromkeys(params.runs[run].backbone for run, _ in params.trainings()):
        found += sharded("encode", backbone, f"latents/{backbone}", params.align.train_on, share)
    found.append(Job("teacher", "teacher", "teacher/manifest.jsonl", params.teacher.steps))
    for backbone, target in params.targets():
        folder = f"targets/{backbone}/{target}"
        found += sharded("targets", f"{backbone} {target}", folder, params.align.train_on, share)
    for run, seed in params.trainings():
        row = params.runs[run]
        kind = f"{row.backbone} {params.methods[row.method].target}"
        found.append(Job("align", kind, f"runs/{run}/s{seed}/manifest.jsonl", params.align.steps, run))
    rows = {(params.runs[run].still_of or run, bench, seed): None for run, bench, seed in params.rows()}
    for run, bench, seed in [*rows, *(row for row in params.rows() if row not in rows)]:
        still = params.runs[run].still_of is not None
        kind = f"{'still' if still else params.runs[run].backbone} {bench}"
        videos = count_videos(params, bench) / params.benches[bench].shards
        found += [Job("sample", kind, path, videos, run) for path in params.samples(run, bench, seed)]
        if (run, bench, seed) in params.rows():
            path = f"scores/{run}/s{seed}/{bench}.jsonl"
            found.append(Job("bench", bench, path, count_videos(params, bench), run))
    return found


def drawn_share(params: Params) -> float:
    """Share of the clips that stage 2 sees, so that are encoded; trainings with other seeds see others."""
    clips = sum({"real": params.subset, "synth": params.synth}[kind].clips for kind in params.align.train_on)
    missed = (1 - min(1.0, params.align.steps * params.align.batch / clips)) ** len(params.seeds)
    return 1 - missed


VIDEOS = {
    "videophy2": 591,
    "videophy": 344,
    "vbench": 6220,
    "vbench2": 4180,
}  # where the prompt files are not there yet


def count_videos(params: Params, bench: str) -> int:
    """Videos of a run on a bench: by its prompt file, or, where that is not here, as the benchmark has them."""
    row = params.benches[bench]
    try:
        return sum(prompt.videos for prompt in prompts.load(row))
    except Problem:
        if row.suite not in VIDEOS:
            raise
        return VIDEOS[row.suite]


# --- what a unit costs ------------------------------------------------------------------------------------------------


def prices(params: Params, all_jobs: list[Job], headers: dict[str, dict], peak: float) -> dict[tuple[str, str], Price]:
    """(stage, kind) -> price: measured where a job of it has a manifest, else counted.

    headers: path -> first line of the manifests that are there; peak: FLOP/s of one device.
    """
    seconds, stored, units = defaultdict(float), defaultdict(float), defaultdict(float)
    for job in all_jobs:
        if header := headers.get(job.path):
            seconds[job.stage, job.kind] += header["seconds"] * workers(params, job.stage)
            stored[job.stage, job.kind] += sum(file["bytes"] for file in header["files"].values())
            units[job.stage, job.kind] += job.units
    found = {}
    for key in track(list(dict.fromkeys((job.stage, job.kind) for job in all_jobs)), "count"):
        if units[key]:
            found[key] = Price(seconds[key] / units[key], stored[key] / units[key], "measured")
        else:
            found[key] = counted(params, *key, peak)
    for stage in dict.fromkeys(stage for stage, _ in found):
        kinds = [key for key in found if key[0] == stage]
        measured, others = [key for key in kinds if units[key]], [key for key in kinds if not units[key]]
        before = {key: counted(params, *key, peak).seconds for key in measured} if others else {}
        ratios = [found[key].seconds / seconds for key, seconds in before.items() if seconds]  # a still's count is 0
        if ratios:  # what is counted of the others goes by what was measured of these
            ratio = statistics.median(ratios)
            for key in others:
                price = found[key]
                found[key] = Price(
                    price.seconds * ratio, price.bytes, "counted, at the pace that its stage was measured at"
                )
    return found


def workers(params: Params, stage: str) -> int:
    """GPUs of a job, or cores where it asks for none."""
    if stage in ON_CPU or params.machine.device == "cpu":
        return params.machine.threads if stage != "draw" else 1
    return params.machine.processes if stage in ("teacher", "align") else 1


def counted(params: Params, stage: str, kind: str, peak: float) -> Price:
    """A price by what is counted."""
    if stage in ("subset", "draw"):
        per_clip = DECODE * sizes.pixels(params) if kind == "store" else 1e-4
        return Price(per_clip, sizes.clip(params) if kind == "store" else 0.0, "assumed")
    share, known = OF_CORE if params.machine.device == "cpu" else REACHED[stage]
    if stage == "bench" and (fixed := RATED.get(params.benches[kind].suite)):
        return Price(fixed, 0.0, "as its users report")
    work, size = WORK[stage](params, kind)
    computing, how = work / (peak * share), f"counted, {100 * share:.0f} % of the peak ({known})"
    if params.machine.device == "cuda" and stage in READERS:
        clips = params.teacher.batch if stage == "teacher" else 1
        reading = clips * READ * sizes.pixels(params) / params.machine.threads
        if reading > computing:
            return Price(reading, size, "counted: it waits for clips to be decoded")
    return Price(computing, size, how)


def of_synth(params: Params, kind: str) -> tuple[float, float]:
    row = params.backbones[kind]
    return sampling_flops(params, row), sizes.video(row)


def of_flow(params: Params, kind: str) -> tuple[float, float]:
    grid = config.make_grid(params.backbones[params.teacher.backbone], params.encoder)
    pairs = sum(map(len, raft.transitions(params.flow.reading, grid.flows, grid.teacher_tubelet)))
    return pairs * pair_flops(params.flow.model, params.flow.size, params.flow.updates), sizes.flow(params)


def of_encode(params: Params, kind: str) -> tuple[float, float]:
    row = params.backbones[kind]
    return vae_flops(row)[0], sizes.latent(params, kind) + sizes.prompt(row)


def of_targets(params: Params, kind: str) -> tuple[float, float]:
    name, target = kind.split(" ")
    size = sizes.target(params, name, target)
    if target == "flow_video":
        return of_flow(params, "")[0] + vae_flops(params.backbones[name])[0], size
    return encoder_flops(params), size


def of_teacher(params: Params, kind: str) -> tuple[float, float]:
    return params.teacher.batch * encoder_flops(params), 0.0


def of_align(params: Params, kind: str) -> tuple[float, float]:
    name, target = kind.split(" ")
    run = next(
        run
        for run, row in params.runs.items()
        if row.backbone == name and row.method and params.methods[row.method].target in (target, "tokens", "motion")
    )
    pin = config.pin(params, "align", run=run, seed=params.seeds[0])
    width = params.teacher.channels[1] if pin.method.target == "motion" else params.encoder.width
    step, _ = throughput.count(pin, width, 1, params.align.checkpointing)
    weights = sum(weight.numel() for weight in hollow(pin.backbone).parameters())
    return params.align.batch * step, 4 * weights / params.align.steps  # VideoJAM's wider ends are a hundredth of it


def of_sample(params: Params, kind: str) -> tuple[float, float]:
    name, _ = kind.split(" ")
    if name == "still":
        return 0.0, sizes.video(next(iter(params.backbones.values())))
    return sampling_flops(params, params.backbones[name]), sizes.video(params.backbones[name])


def of_bench(params: Params, kind: str) -> tuple[float, float]:
    frames = max(row.frames for row in params.backbones.values())
    return frames * pair_flops(params.flow.model, params.flow.size, params.flow.updates), 0.0


WORK: dict[str, Callable[[Params, str], tuple[float, float]]] = {  # stage -> FLOP and bytes of a unit
    "synth": of_synth,
    "flow": of_flow,
    "encode": of_encode,
    "targets": of_targets,
    "teacher": of_teacher,
    "align": of_align,
    "sample": of_sample,
    "bench": of_bench,
}


# --- operations, counted ----------------------------------------------------------------------------------------------


def hollow(row: Backbone) -> torch.nn.Module:
    """A row's transformer without numbers."""
    return throughput.hollow(row, own_grid(row), torch.device("meta")).transformer


def counted_flops(module: Callable[[], Callable], *shapes: tuple[int, ...]) -> int:
    """Operations of a function of tensors of these shapes, made by `module`; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        run = module()
        given = [torch.empty(shape) for shape in shapes]
        with FlopCounterMode(display=False, custom_mapping=throughput.ON_CPU) as counter:
            run(*given)
    return counter.get_total_flops()


def sampling_flops(params: Params, row: Backbone) -> float:
    """A video: each step's passes, two with guidance, and the decoder."""
    passes = row.sampling.steps * (2 if row.sampling.guidance > 1 else 1)
    return passes * forward_flops(row.model_dump_json()) + vae_flops(row)[1]


@cache
def forward_flops(row: str) -> int:
    """One pass of the transformer over one clip. row: a Backbone as JSON."""
    backbone = Backbone.model_validate_json(row)
    grid, (channels, states) = own_grid(backbone), throughput.widths(backbone)
    streams = torch.arange(1)

    def make() -> Callable:
        model = throughput.hollow(backbone, grid, torch.device("cpu"))
        return lambda z0, prompt: model.predict(model.noise(z0, streams), prompt)

    return counted_flops(make, (1, channels, *grid.latents), (1, backbone.text_tokens, states))


def vae_flops(row: Backbone) -> tuple[int, int]:
    """To encode and to decode one clip."""
    return _vae_flops(row.family, row.weights, row.frames, *row.size)


@cache
def _vae_flops(family: str, weights: str, frames: int, height: int, width: int) -> tuple[int, int]:
    kind = AutoencoderKLCogVideoX if family == "cogvideox" else AutoencoderKLWan
    file = Path(weights, "vae", "config.json")
    settings = json.loads(file.read_text()) if file.exists() else {}
    found = []
    with FakeTensorMode(), torch.no_grad():
        vae, x = kind.from_config(settings) if settings else kind(), torch.empty(1, 3, frames, height, width)
        for step in (lambda given: vae.encode(given).latent_dist.mean, lambda given: vae.decode(given).sample):
            with FlopCounterMode(display=False, custom_mapping=throughput.ON_CPU) as counter:
                x = step(x)
            found.append(counter.get_total_flops())
    return tuple(found)


def encoder_flops(params: Params) -> int:
    """VideoMAE's pass over one clip."""
    grid = config.make_grid(params.backbones[params.teacher.backbone], params.encoder)
    frames = grid.motion[0] * params.encoder.tubelet
    return _encoder_flops(params.encoder.model_dump_json(), frames, *grid.view)


@cache
def _encoder_flops(row: str, frames: int, height: int, width: int) -> int:
    encoder = videomae.VideoMAE(config.Encoder.model_validate_json(row))  # its first weights are drawn, so real ones
    return counted_flops(lambda: encoder, (1, 3, frames, height, width))


@cache
def pair_flops(model: str, size: tuple[int, int], updates: int) -> int:
    """RAFT on two frames."""
    frame = (1, 3, *size)

    def make() -> Callable:
        network = getattr(optical_flow, model)(weights=None).eval()
        return lambda a, b: network(a, b, num_flow_updates=updates)

    return counted_flops(make, frame, frame)


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(params: Params, backbone: str) -> float:
    """GiB that a rank of stage 2 needs at its peak: weights, gradients and moments, and what the way back needs."""
    row = params.backbones[backbone]
    weights = sum(weight.numel() for weight in hollow(row).parameters())
    state = STATE * weights / (params.machine.processes if params.align.sharding == "full" else 1)
    tokens = math.prod(own_grid(row).tokens) + row.text_tokens
    clips = params.align.micro_batch or 1
    kept = clips * tokens * row.width * row.blocks * KEPT[row.family, params.align.checkpointing]
    return (state + kept) / 2**30
