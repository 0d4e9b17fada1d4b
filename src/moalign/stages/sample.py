"""A shard of a bench's videos from one run (Sec. 5.1), or the static control: another run's first frames, repeated.

`moalign sample --config PIN --shard 0 [--run MANIFEST] [--still MANIFEST] --work FOLDER --out BENCH/0000.jsonl`. Noise
is a function of (seed, prompt, index) alone, the same for every run of a table. A killed job keeps its finished videos.
"""

import hashlib
from pathlib import Path

import numpy as np
from torch import Generator

from moalign import backbones, device, manifest, shards, video
from moalign.bench import prompts
from moalign.clips import to_frames
from moalign.config import SamplePin
from moalign.errors import Problem
from moalign.mirror import Mirror
from moalign.progress import say, track

BATCH = {"cpu": 6, "cuda": 1}  # videos per call, the same ones after a kill: their last bits depend on their company

MIRRORED = 8  # videos that wandb gets of a run: one for each of the first prompts


def run(config: str, shard: int, work: str, out: str, run: str | None = None, still: str | None = None) -> None:
    """Write mp4 files below a folder named like the shard, rows of manifest.Sample. `work` is for wandb's mirror."""
    pin = SamplePin.load(config)
    if bool(pin.still_of) != bool(still):
        known = f"repeats the first frames of {pin.still_of}" if pin.still_of else "is no static control"
        raise Problem(f"--still: {'given' if still else 'missing'}; {pin.run} {known}")
    if pin.trained != bool(run):
        known = "is trained: give its manifest" if pin.trained else "is sampled with the weights as they came"
        raise Problem(f"--run: {'given' if run else 'missing'}; {pin.run} {known}")
    if not 0 <= shard < pin.asked.shards:
        raise Problem(f"--shard: {shard} is not among the {pin.asked.shards} shards, which count from 0")
    asked = prompts.load(pin.asked)
    plan = prompts.plan(asked, shard, pin.asked.shards)
    inputs = [path for path in (pin.asked.prompts, pin.asked.extended, run, still) if path]
    with manifest.making(out, manifest.Sample, pin=config, inputs=inputs) as made:
        name = made.path.stem
        key = "".join(manifest.sha256(path) for path in (config, *inputs))
        folder = shards.resumable(made.path.parent / name, key)
        size = BATCH[pin.machine.device]
        batches = [plan[start : start + size] for start in range(0, len(plan), size)]
        todo = [batch for batch in batches if not all((folder / file_of(*cell)).exists() for cell in batch)]
        say(f"sample: {len(batches) - len(todo)} of {len(batches)} batches are there already")
        if todo and still:
            repeat_first(todo, manifest.read(still, manifest.Sample), folder)
        elif todo:
            draw(pin, [prompt.text for prompt in asked], todo, folder, run)
        for number, index in plan:
            file = f"{name}/{file_of(number, index)}"
            made.file(file)
            seed = noise_seed(pin.noise_seed, number, index)
            prompt, row = asked[number], pin.backbone
            made.rows.append(manifest.Sample(number, prompt.name, prompt.text, index, seed, file, row.fps, row.frames))
        made.count("videos", len(plan))
        if shard == 0:
            bench = made.path.parent.name
            first = [row for row in made.rows if row.index == 0][:MIRRORED]
            mirror = Mirror(Path(work) / bench, pin.model_dump(mode="json"), f"{pin.run}-s{pin.seed}-{bench}")
            mirror.videos({row.prompt: made.path.parent / row.file for row in first})
            mirror.finish()


def draw(pin: SamplePin, texts: list[str], todo: list[list[tuple[int, int]]], folder: Path, run: str | None) -> None:
    """Sample the batches that are missing."""
    where = device.use(pin.machine)
    transformer = None
    if run:
        trained = manifest.read(run, manifest.Weights)
        files = {row.name: row.file for row in trained.rows}
        if "transformer" not in files:
            raise Problem(
                f"{run}: no transformer, but {', '.join(files)}; --run takes the manifest of a stage-2 training"
            )
        transformer = trained.locate(files["transformer"])
    joint = pin.inner_guidance is not None
    guidance = {"inner_guidance": pin.inner_guidance} if joint else {}
    precision = device.sampling_dtype(where)
    backbone = backbones.load(pin.backbone, device=where, transformer=transformer, dtype=precision, joint=joint)
    for batch in track(todo, "sample"):
        rngs = [Generator().manual_seed(noise_seed(pin.noise_seed, *cell)) for cell in batch]
        videos = backbone.sample([texts[number] for number, _ in batch], pin.backbone.sampling, rngs, **guidance)
        for cell, frames in zip(batch, videos, strict=True):
            if not frames.isfinite().all():
                raise Problem(f"sample: prompt {cell[0]}, video {cell[1]} has NaN; see the run's training log")
            video.write(folder / file_of(*cell), to_frames(frames), pin.backbone.fps)


def repeat_first(todo: list[list[tuple[int, int]]], moving: manifest.Manifest[manifest.Sample], folder: Path) -> None:
    """The static control of Tab. 1: each video's first frame, as long as the video."""
    of = {(row.prompt_id, row.index): row for row in moving.rows}
    for cell in track([cell for batch in todo for cell in batch], "still"):
        if (row := of.get(cell)) is None:
            raise Problem(
                f"{moving.path}: no video {cell[1]} of prompt {cell[0]}; --still takes the same shard's manifest"
            )
        first = video.read(moving.locate(row.file), [0])
        video.write(folder / file_of(*cell), np.repeat(first, row.frames, axis=0), row.fps)


def file_of(number: int, index: int) -> str:
    """Name of a video inside its bench's folder."""
    return f"{number:05d}-{index}.mp4"


def noise_seed(seed: int, number: int, index: int) -> int:
    """Seed of one video's noise: (sample.seed, prompt, index) alone decide."""
    return int.from_bytes(hashlib.sha256(f"sample/{seed}/{number}/{index}".encode()).digest()[:6])
