"""`moalign throughput train`: how fast stage 2 trains at a configuration's true sizes, before any weight is fetched.

Weights are random, latents and targets too; transformer, tap, projector, losses and optimiser are those of `align`.
Steps with and without the alignment take turns, so that its share is a ratio of one run. The unit is one micro-batch
with its update of the weights, which a real step spreads over its accumulation.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moalign import backbones, config, manifest
from moalign.align.projector import Projector
from moalign.backbones.loading import Parts, read_config
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.interfaces import Batch
from moalign.progress import say
from moalign.stages.align import NO_ALIGNMENT, Student
from moalign.train import distributed

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s, dense bf16, of the SXM cards by their data sheets
FEED_FORWARD = {1536: 8960, 5120: 13824}  # Wan2.1's inner width, by its width
WARM = 2  # steps before the clock starts
CHECKPOINTING = ["none", "keep_attention", "full"]


@dataclass(frozen=True)
class Row:
    """One configuration, measured."""

    micro: int
    checkpointing: str
    seconds: float | None  # of a step; None: out of memory
    clips: float | None = None  # per second
    alignment: float | None = None  # share of the step's time
    flops: float | None = None  # carried out by a step, recomputation included
    model_flops: float | None = None  # three forward passes
    memory: float | None = None  # GiB at the peak, weights and optimiser included


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
    settings = config.load(Path(params), scale=scale)
    for name, given, allowed in [("run", [run], settings.runs), ("checkpointing", checkpointing, CHECKPOINTING)]:
        if wrong := [value for value in given if value not in allowed]:
            raise Problem(f"--{name}: {wrong[0]!r}; allowed: {', '.join(allowed)}")
    pin = config.pin(settings, "align", run=run, seed=settings.seeds[0])
    accelerator = distributed.start(pin.machine, pin.align.precision)
    card = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else f"CPU, {pin.machine.threads} threads"
    rows = []
    for kind in checkpointing:
        for size in micro:
            rows.append(measure(pin, settings.teacher.channels[1], size, kind, steps, accelerator))
            say(line(rows[-1], card))
    say(
        "\n".join(
            [f"{run} at scale {settings.scale}, {card}, {pin.align.precision}", HEAD, *[line(r, card) for r in rows]]
        )
    )
    if out:
        found = {"run": run, "scale": settings.scale, "device": card, "torch": torch.__version__, "steps": steps}
        manifest.write_text(out, json.dumps(found | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


HEAD = "micro  checkpointing    s/step  clips/s  alignment    TFLOP   MFU    HFU   peak GiB"


def line(row: Row, card: str) -> str:
    """A row of the table. MFU counts three forward passes, HFU all that was carried out."""
    start = f"{row.micro:5d}  {row.checkpointing:14s}"
    if row.seconds is None:
        return f"{start}  out of memory"
    peak = next((value for name, value in PEAK.items() if name in card), None)
    shares = [f"{100 * f / row.seconds / peak:5.1f}%" if peak else "     -" for f in (row.model_flops, row.flops)]
    memory = f"{row.memory:8.1f}" if row.memory else "       -"
    return (
        f"{start}  {row.seconds:7.3f}  {row.clips:7.3f}  {100 * row.alignment:8.2f}%  {row.flops / 1e12:7.3g}"
        f" {shares[0]} {shares[1]}  {memory}"
    )


def measure(
    pin: config.AlignPin, channels: int, micro: int, checkpointing: str, steps: int, accelerator: Accelerator
) -> Row:
    """A row: steps with the alignment and without it by turns, the median of each."""
    where = accelerator.device
    grid = config.make_grid(pin.backbone, pin.encoder)
    try:
        backbone = hollow(pin.backbone, grid, where)
        forward = forward_flops(backbone, pin, micro, where)
        backbone.checkpoint(checkpointing)
        width = channels if pin.method.target == "motion" else pin.encoder.width
        projectors = nn.ModuleList(
            Projector(grid, pin.backbone.width, pin.align.hidden, width, pin.align.projector) for _ in pin.align.layer
        )
        aligned = Student(backbone, projectors, pin, None).to(where).train()
        plain = Student(backbone, nn.ModuleList(), pin.model_copy(update={"method": NO_ALIGNMENT}), None).train()
        optimizer = torch.optim.AdamW(aligned.parameters(), lr=1e-6, fused=where.type == "cuda")
        batch = random_batch(backbone, pin, micro, width, where)

        def step(student: Student) -> float:
            started = clock(where)
            with accelerator.autocast():
                loss = student(batch)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(aligned.parameters(), pin.align.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return clock(where) - started

        for _ in range(WARM):
            step(aligned), step(plain)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = [(step(aligned), step(plain)) for _ in range(steps)]
        memory = torch.cuda.max_memory_allocated() / 2**30 if where.type == "cuda" else None
        with FlopCounterMode(display=False) as counter:
            step(aligned)
    except torch.cuda.OutOfMemoryError:
        return Row(micro, checkpointing, None)
    finally:
        backbone = aligned = plain = optimizer = batch = projectors = None
        if where.type == "cuda":
            torch.cuda.empty_cache()
    whole, without = (statistics.median(column) for column in zip(*times, strict=True))
    flops = counter.get_total_flops()
    return Row(micro, checkpointing, whole, micro / whole, 1 - without / whole, flops, 3 * forward, memory)


def clock(where: torch.device) -> float:
    """Seconds, when all work asked for so far is done."""
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


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


def random_batch(
    backbone: backbones.TextToVideo, pin: config.AlignPin, micro: int, width: int, where: torch.device
) -> Batch:
    """What `align` would read from shards."""
    rng = Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(micro, *shape, generator=rng).to(where)

    sizes, grid = backbone.transformer.config, backbone.grid
    z0 = normal(sizes.in_channels, *grid.latents)
    prompt = normal(pin.backbone.text_tokens, sizes.get("text_embed_dim") or sizes.text_dim)
    return Batch([str(index) for index in range(micro)], torch.arange(micro), z0, prompt, normal(*grid.motion, width))


def forward_flops(backbone: backbones.TextToVideo, pin: config.AlignPin, micro: int, where: torch.device) -> int:
    """Of one pass through the transformer."""
    batch = random_batch(backbone, pin, micro, 1, where)
    with torch.no_grad(), torch.autocast(where.type, torch.bfloat16), FlopCounterMode(display=False) as counter:
        backbone.predict(backbone.noise(batch.z0, batch.streams), batch.prompt)
    return counter.get_total_flops()
