"""What alignment costs a step of stage 2: `python tests/bench_overhead.py [--rounds 7]`, or `make bench-overhead`.

One thread, one process; fine-tuning alone, MoAlign with cached targets, and VideoREPA's way take turns over the same
transformer and clips. VideoREPA's way is its released loss on tokens that the step makes itself: decode the clip's
proxy, run VideoMAEv2-B. Weights are random, sizes small enough for a CPU and in the paper's proportions: a grid three
times as fine as the teacher's, 24 motion tokens in time, M 64 wide, a text of 226 tokens. Times are CPU time, reading
of the cached shards included; ratios are medians over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from moalign import config, manifest, shards, video
from moalign.clips import load_clip
from moalign.interfaces import Batch
from moalign.stages import throughput
from moalign.stages.align import collate
from moalign.teacher import videomae
from moalign.train import distributed, loop

BLOCKS, WIDTH, SIZE, VIEW = 8, 256, (192, 288), (64, 96)  # of the transformer; pixels of a clip, and for the teacher
LAYER = 5  # of 8, as 18 of 30
ROUNDS = 7


def small(run: str) -> config.AlignPin:
    """The paper's training of a run, over a transformer that a CPU can step through."""
    params = config.load(Path(__file__).parents[1] / "params.yaml", scale="paper")
    pin = config.pin(params, "align", run=run, seed=0)
    row = pin.backbone.model_copy(update={"blocks": BLOCKS, "width": WIDTH, "size": SIZE, "weights": "none"})
    return pin.model_copy(
        update={
            "backbone": row,
            "encoder": params.encoder.model_copy(update={"size": VIEW}),
            "align": pin.align.model_copy(update={"layer": (LAYER,), "precision": "fp32"}),
            "machine": config.Processor(device="cpu", threads=1),
        }
    )


def proxy(folder: Path, row: config.Backbone) -> manifest.Clip:
    """A stored clip of moving noise, twice as many frames as are picked, as `ingest` leaves it."""
    still = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    frames = np.stack([np.roll(still, shift, 1) for shift in range(2 * row.frames - 1)])
    with shards.TarWriter(folder / "proxy.tar") as tar:
        offset, size = tar.add("a.mp4", video.encode(frames, 2 * row.fps))
    return manifest.Clip("a", "train", "none", "a", "", "proxy.tar", offset, size, len(frames), 2 * row.fps, *SIZE)


def turns(folder: Path) -> tuple[str, dict[str, Callable[[int], None]]]:
    """What is measured, in words, and a step of each way."""
    pins = {name: small(f"cog-{name}") for name in ("ft", "moalign", "videorepa_code")}
    pin = pins["moalign"]
    accelerator = distributed.start(pin.machine, "fp32")
    cpu, grid = accelerator.device, config.make_grid(pin.backbone, pin.encoder)
    M_width, S_width = 64, pin.encoder.width
    clips = throughput.cached(folder, pin, M_width)
    backbone = throughput.hollow(pin.backbone, grid, cpu)
    widths = {"ft": 0, "moalign": M_width, "videorepa_code": S_width}
    students = {name: throughput.student(backbone, pins[name], width, cpu) for name, width in widths.items()}
    stepper = throughput.Stepper(students.values(), pin, accelerator)
    encoder, clip, read = videomae.VideoMAE(pin.encoder).eval(), proxy(folder, pin.backbone), loop.Reader(collate, cpu)

    def online(batch: Batch) -> Batch:
        x0 = load_clip(folder, clip, grid.frames, pin.backbone.fps, SIZE)
        with torch.no_grad():
            return replace(batch, target=encoder(videomae.view(x0[None], grid)))

    def way(name: str, cached: str, then: Callable[[Batch], Batch]) -> Callable[[int], None]:
        return lambda turn: stepper.step(students[name], then(read(clips[cached], [turn % throughput.CLIPS], 0, turn)))

    said = (
        f"{grid.tokens[0]} x {grid.tokens[1]} x {grid.tokens[2]} video and {pin.backbone.text_tokens} text tokens,"
        f" {BLOCKS} blocks, {WIDTH} wide; {grid.motion[0]} x {grid.motion[1]} x {grid.motion[2]} motion tokens; fp32"
    )
    return said, {
        "fine-tuning alone": way("ft", "plain", lambda batch: batch),
        "MoAlign, M cached": way("moalign", "aligned", lambda batch: batch),
        "VideoREPA's way": way("videorepa_code", "plain", online),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    with TemporaryDirectory() as folder:
        said, steps = turns(Path(folder))
        names = list(steps)
        taken = {name: [] for name in names}
        for turn in range(rounds + 1):  # the first is not counted
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                started = time.process_time()
                steps[name](turn)
                taken[name].append(time.process_time() - started)
    print(f"{said}; {rounds} rounds, one thread\n\n| step | CPU s | over fine-tuning |\n|---|--:|--:|")
    first = taken[names[0]]
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(taken[name][1:], first[1:], strict=True))
        print(f"| {name} | {statistics.median(taken[name][1:]):.3f} | {100 * (ratio - 1):+.1f} % |")


if __name__ == "__main__":
    main()
