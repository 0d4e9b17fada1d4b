"""`moalign throughput train`: how fast stage 2 trains at a configuration's true sizes, before any weight is fetched.

Weights, latents, prompt states and targets are random; transformer, tap, projector, losses, optimiser and the reading
of shards are those of `align`. Steps with and without the alignment take turns, so that its share is a ratio of one
run. The unit is one micro-batch with its update of the weights, which a real step spreads over its accumulation.
Beside what is measured stands what the operations, counted, would take at the device's peak.
"""

import gc
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Generator, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from moalign import backbones, config, manifest, shards
from moalign.align.projector import Projector
from moalign.backbones.loading import Parts, read_config
from moalign.clips import LatentClips, draw
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.interfaces import Batch
from moalign.progress import say
from moalign.stages.align import NO_ALIGNMENT, Student, collate
from moalign.train import distributed, loop

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s, dense bf16, of the SXM cards by their data sheets
FEED_FORWARD = {1536: 8960, 5120: 13824}  # Wan2.1's inner width, by its width
WARM = 2  # steps before the clock starts
CLIPS = 16  # in the shard that is written and read
CHECKPOINTING = ["none", "keep_attention", "full"]
ON_CPU = {  # torch counts the attention kernels of GPUs alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}


@dataclass(frozen=True)
class Row:
    """One configuration, measured; what has no number did not fit into memory."""

    micro: int
    checkpointing: str
    flops: int  # carried out by a step, recomputation included
    model_flops: int  # three forward passes
    seconds: float | None = None  # of a step
    alignment: float | None = None  # share of the step's time, its targets' reading included
    waiting: float | None = None  # share of the step's time that passes before its batch is there
    memory: float | None = None  # GiB at the peak, weights and optimiser included; GPUs alone


def train(
    run: str = "cog-moalign",
    params: str = "params.yaml",
    scale: str | None = None,
    steps: int = 5,
    micro: list[int] = (1,),
    checkpointing: list[str] = CHECKPOINTING,
    out: str | None = None,
) -> None:
    """Measure, print a table, and write the figures to `out` where given."""
    settings = config.load(Path(params), **({"scale": scale} if scale else {}))
    methods = {name: settings.methods[row.method] for name, row in settings.runs.items() if row.method}
    aligned = [name for name, method in methods.items() if method.target in ("tokens", "motion")]
    for name, given, allowed in [("run", [run], aligned), ("checkpointing", checkpointing, CHECKPOINTING)]:
        if wrong := [value for value in given if value not in allowed]:
            raise Problem(f"--{name}: {wrong[0]!r}; allowed: {', '.join(allowed)}")
    for name, given in (("steps", [steps]), ("micro", micro)):
        if wrong := [value for value in given if value < 1]:
            raise Problem(f"--{name}: {wrong[0]}; a number of at least 1 is needed")
    pin = config.pin(settings, "align", run=run, seed=settings.seeds[0])
    accelerator = distributed.start(pin.machine, pin.align.precision)
    where = accelerator.device
    card = torch.cuda.get_device_name() if where.type == "cuda" else f"CPU, {pin.machine.threads} threads"
    limit, source = peak(card, where)
    width = settings.teacher.channels[1] if pin.method.target == "motion" else pin.encoder.width
    with TemporaryDirectory() as folder:
        clips = cached(Path(folder), pin, width)
        rows = []
        for kind in checkpointing:
            for size in micro:
                rows.append(measure(pin, width, size, kind, steps, accelerator, clips))
                say(line(rows[-1], limit))
    title = f"{run} at scale {settings.scale}, {card}, {pin.align.precision}"
    title += f"; peak {limit / 1e12:.4g} TFLOP/s ({source})"
    say("\n".join([title, HEAD, *(line(row, limit) for row in rows)]))
    if out:
        found = {"run": run, "scale": settings.scale, "device": card, "torch": torch.__version__, "steps": steps}
        found |= {"peak": limit, "rows": [asdict(row) for row in rows]}
        manifest.write_text(out, json.dumps(found, indent=1) + "\n")


HEAD = "micro  checkpointing     TFLOP  clips/s: limit  measured   s/step  alignment  waiting    MFU    HFU  peak GiB"


def line(row: Row, limit: float) -> str:
    """A row of the table. MFU counts three forward passes, HFU all that is carried out, each against the peak."""
    start = f"{row.micro:5d}  {row.checkpointing:14s}  {row.flops / 1e12:7.3g}  {row.micro * limit / row.flops:14.3f}"
    if row.seconds is None:
        return f"{start}  out of memory"
    shares = [flops / row.seconds / limit for flops in (row.model_flops, row.flops)]
    memory = f"{row.memory:8.1f}" if row.memory else "       -"
    return (
        f"{start}  {row.micro / row.seconds:8.3f}  {row.seconds:7.3f}  {100 * row.alignment:8.2f}%"
        f"  {100 * row.waiting:6.2f}% {100 * shares[0]:5.1f}% {100 * shares[1]:5.1f}%  {memory}"
    )


def peak(card: str, where: torch.device) -> tuple[float, str]:
    """FLOP/s that the device has at most, and how that is known: by its data sheet, or by its fastest product here."""
    if known := next((value for name, value in PEAK.items() if name in card), None):
        return known, "data sheet"
    side, dtype = (8192, torch.bfloat16) if where.type == "cuda" else (2048, torch.float32)
    X = torch.randn(side, side, device=where, dtype=dtype)
    seconds = []
    for _ in range(5):
        started = clock(where)
        X @ X
        seconds.append(clock(where) - started)
    return 2 * side**3 / min(seconds), f"measured, products of {side} x {side}"


def measure(
    pin: config.AlignPin,
    width: int,
    micro: int,
    checkpointing: str,
    steps: int,
    accelerator: Accelerator,
    clips: dict[str, LatentClips],
) -> Row:
    """A row. Where a GPU's memory does not suffice, only what is counted."""
    row = Row(micro, checkpointing, *count(pin, width, micro, checkpointing))
    try:
        return replace(row, **timed(pin, width, micro, checkpointing, steps, accelerator, clips))
    except torch.cuda.OutOfMemoryError:
        return row
    finally:
        gc.collect()
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def timed(
    pin: config.AlignPin,
    width: int,
    micro: int,
    checkpointing: str,
    steps: int,
    accelerator: Accelerator,
    clips: dict[str, LatentClips],
) -> dict[str, float | None]:
    """Steps with the alignment and without it by turns: medians of the ratios, so that a slow moment hits both."""
    where = accelerator.device
    backbone = hollow(pin.backbone, config.make_grid(pin.backbone, pin.encoder), where)
    backbone.checkpoint(checkpointing)
    students = {"aligned": student(backbone, pin, width, where), "plain": student(backbone, plain(pin), width, where)}
    stepper = Stepper(students.values(), pin, accelerator)
    turns = [name for _ in range(WARM + steps) for name in students]
    batches = loop.Reader(collate, where).ahead(wanted(turns, clips, micro))
    times = {name: [] for name in students}
    for turn, name in enumerate(turns):
        if where.type == "cuda" and turn == 2 * WARM:
            torch.cuda.reset_peak_memory_stats()
        started = clock(where)
        batch = next(batches)
        there = clock(where)
        stepper.step(students[name], batch)
        times[name].append((clock(where) - started, there - started))
    pairs = list(zip(times["aligned"], times["plain"], strict=True))[WARM:]
    return {
        "seconds": statistics.median(whole for (whole, _), _ in pairs),
        "alignment": statistics.median(1 - without / whole for (whole, _), (without, _) in pairs),
        "waiting": statistics.median(waited / whole for (whole, waited), _ in pairs),
        "memory": torch.cuda.max_memory_allocated() / 2**30 if where.type == "cuda" else None,
    }


def wanted(turns: list[str], clips: dict[str, LatentClips], micro: int) -> Iterator[tuple]:
    """What a `loop.Reader` is asked for, turn by turn; both students see the same clips."""
    for turn, name in enumerate(turns):
        step = turn // len(clips)
        yield clips[name], draw(0, step, micro, CLIPS), 0, step


class Stepper:
    """An update of the weights as the loop does it, over one micro-batch."""

    def __init__(self, students: Iterable[Student], pin: config.AlignPin, accelerator: Accelerator):
        """`students` share a transformer; weights that a step does not use keep still."""
        weights = dict.fromkeys(weight for student in students for weight in student.parameters())
        self.weights, self.clip, self.accelerator = list(weights), pin.align.clip, accelerator
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-6, fused=accelerator.device.type == "cuda")

    def step(self, student: Student, batch: Batch) -> None:
        with self.accelerator.autocast():
            loss = student(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def clock(where: torch.device) -> float:
    """Seconds, when all work asked for so far is done."""
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# --- what is measured ----------------------------------------------------------------------------------------------


def plain(pin: config.AlignPin) -> config.AlignPin:
    """The same training without an alignment."""
    return pin.model_copy(update={"method": NO_ALIGNMENT})


def student(backbone: backbones.TextToVideo, pin: config.AlignPin, width: int, where: torch.device) -> Student:
    """The student of a pin's method over a backbone; targets have `width` channels."""
    sizes = backbone.grid, pin.backbone.width, pin.align.hidden, width, pin.align.projector
    layers = pin.align.layer if pin.method.target != "none" else ()
    with where:
        projectors = nn.ModuleList(Projector(*sizes) for _ in layers)
    return Student(backbone, projectors, pin, None).train()


def hollow(row: config.Backbone, grid: Grid, where: torch.device) -> backbones.TextToVideo:
    """The backbone of a row with random weights: by its folder's config where it has one, else by the paper's sizes."""
    folder = Path(row.weights)
    cls = backbones.FAMILIES[row.family]
    vae = {"scaling_factor": 1.0, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    torch.manual_seed(0)
    with where:
        if folder.is_dir():
            transformer = cls.transformer_class.from_config(read_config(folder / "transformer" / "config.json"))
            vae |= read_config(folder / "vae" / "config.json")
        elif row.family == "cogvideox":
            transformer = CogVideoXTransformer3DModel(num_layers=row.blocks, num_attention_heads=row.width // 64)
        else:
            transformer = WanTransformer3DModel(
                num_layers=row.blocks, num_attention_heads=row.width // 128, ffn_dim=FEED_FORWARD[row.width]
            )
    return cls(row, grid, Parts(transformer, None, None, None, vae, scheduler))


def widths(row: config.Backbone) -> tuple[int, int]:
    """Channels of z0 and of prompt states that a row's transformer takes."""
    sizes = hollow(row, backbones.own_grid(row), torch.device("meta")).transformer.config
    return sizes.in_channels, sizes.get("text_embed_dim") or sizes.text_dim


def cached(folder: Path, pin: config.AlignPin, width: int) -> dict[str, LatentClips]:
    """Random clips as `encode` and `targets` would have cached them: read with targets, and `plain` without."""
    grid, (channels, states) = config.make_grid(pin.backbone, pin.encoder), widths(pin.backbone)
    row, rng, keys = pin.backbone, Generator().manual_seed(0), [f"{index:02d}" for index in range(CLIPS)]
    manifest.write_text(folder / "pin.yaml", config.dump(pin))
    drawn = {
        "latents": {
            "mean": torch.randn(CLIPS, channels, *grid.latents, generator=rng).half(),
            "prompt": torch.randn(CLIPS * row.text_tokens, states, generator=rng).bfloat16(),
            "offsets": torch.arange(CLIPS + 1) * row.text_tokens,
        },
        "targets": {"target": torch.randn(CLIPS, *grid.motion, width, generator=rng).half()},
    }
    clip = (0, 0, row.frames, row.fps, *row.size)
    rows = {
        "clips": [manifest.Clip(key, "train", "none", key, "", "none", *clip) for key in keys],
        "latents": [manifest.Latent(key, "latents.safetensors", i, row.text_tokens) for i, key in enumerate(keys)],
        "targets": [manifest.Target(key, "targets.safetensors", i) for i, key in enumerate(keys)],
    }
    for name, tensors in drawn.items():
        shards.write_tensors(folder / f"{name}.safetensors", tensors)
    for name, made in rows.items():
        with manifest.making(folder / f"{name}.jsonl", type(made[0]), pin=folder / "pin.yaml") as making:
            making.rows += made
    clips, latents, targets = ([folder / f"{name}.jsonl"] for name in rows)
    read = {"aligned": targets, "plain": []}
    return {name: LatentClips(clips, latents, given, "train", row.text_tokens) for name, given in read.items()}


def count(pin: config.AlignPin, width: int, micro: int, checkpointing: str) -> tuple[int, int]:
    """Floating-point operations of a step as it is carried out, and of three forward passes; nothing is computed.

    The tensors have sizes and no numbers. Attention is counted as its fused kernels do it: the way back makes the
    scores again, five products for the way there's two.
    """
    grid, (channels, states) = config.make_grid(pin.backbone, pin.encoder), widths(pin.backbone)
    streams = torch.arange(micro)
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone = hollow(pin.backbone, grid, torch.device("cpu"))
        backbone.checkpoint(checkpointing)
        model = student(backbone, pin, width, torch.device("cpu"))
        z0 = torch.empty(micro, channels, *grid.latents)
        prompt = torch.empty(micro, pin.backbone.text_tokens, states)
        batch = Batch([""] * micro, streams, z0, prompt, torch.empty(micro, *grid.motion, width))
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as forward, torch.no_grad():
            backbone.predict(backbone.noise(z0, streams), prompt)
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as step:
            model(batch)["loss"].backward()
    return step.get_total_flops(), 3 * forward.get_total_flops()
