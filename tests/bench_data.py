"""What it costs to read a clip, and a batch after a resume: `python tests/bench_data.py`, or `make bench-data`.

CPU time, one thread, warm files, the ways taking turns, median of the rounds. Each way ends with what a training gets:
the pixels of the backbone's frames at its size, or the row of the cache (z0, prompt, target). The videos are made here,
of moving noise; the shards have the true sizes and random contents.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import decord
import numpy as np
import torch

from moalign import clips, config, manifest, shards, video
from moalign.stages import align

TOP = Path(__file__).parents[1]
SOURCES = {"miniature": (240, 320), "paper": (720, 1280)}  # height, width of a video as it comes, 24 fps
FPS = 24.0
TEXT = {"miniature": (20, 64), "paper": (100, 4096)}  # tokens of a usual prompt, width of the text encoder
SHARD = 24  # clips with bytes of their own; the rows of more point to these
CROWD = 366_000  # clips of the paper
PIN = "stage: encode\nrevision: 1\nmachine: {device: cpu, threads: 1, processes: 1}\n"


def footage(frames: int, height: int, width: int) -> np.ndarray:
    """Frames [F, H, W, 3] of smooth noise that slides, with a little grain."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16, (width + 2 * frames) // 16 + 2, 3), dtype=np.uint8)
    wide = cv2.resize(coarse, (width + 2 * frames, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 9, (height, width, 3), dtype=np.uint8)
    return np.stack([cv2.add(wide[:, 2 * i : 2 * i + width], grain) for i in range(frames)])


# --- ways to pixels ------------------------------------------------------------------------------------------------


def on_decode_decord(data: bytes, indices: list[int], height: int, width: int) -> np.ndarray:
    """Frames that the decoder hands out at height x width."""
    reader = decord.VideoReader(io.BytesIO(data), width=width, height=height, num_threads=1)
    return reader.get_batch(indices).asnumpy()


def on_decode_av(data: bytes, indices: list[int], height: int, width: int) -> np.ndarray:
    """The same with PyAV: swscale resizes before it makes RGB."""
    wanted, found = set(indices), []
    with av.open(io.BytesIO(data)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                found.append(frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA"))
            if index == indices[-1]:
                return np.stack(found)
    raise ValueError("fewer frames than asked for")


def pixel_ways(params: config.Params) -> dict[str, dict[str, Callable[[], np.ndarray]]]:
    """Way -> reader -> a call that gives frames [F, H, W, 3] at the backbone's size."""
    row, subset = params.backbones["cogvideox"], params.subset
    height, width = SOURCES[params.scale]
    at_source = video.pick(2**20, FPS, row.frames, row.fps)
    frames = footage(video.pick(2**20, FPS, subset.frames, subset.fps)[-1] + 1, height, width)
    data = video.encode(frames, FPS, crf=23)
    kept = video.resize(frames[video.pick(len(frames), FPS, subset.frames, subset.fps)], subset.short_side)
    proxy = video.encode(kept, subset.fps)  # as `ingest` does
    at_proxy = video.pick(subset.frames, subset.fps, row.frames, row.fps)
    ratio = max(row.size[0] / height, row.size[1] / width)
    small = round(height * ratio), round(width * ratio)

    def full(reader: str) -> np.ndarray:
        return video.read(data, at_source, reader, lambda block: video.cover(block, *row.size))

    def from_proxy(reader: str) -> np.ndarray:
        return video.cover(video.read(proxy, at_proxy, reader), *row.size)

    on_decode = {"decord": on_decode_decord, "av": on_decode_av}
    return {
        f"full decode of {height} x {width}, resize": {name: lambda name=name: full(name) for name in on_decode},
        "resize on decode": {
            name: lambda read=read: video.crop(read(data, at_source, *small), *row.size)
            for name, read in on_decode.items()
        },
        f"proxy of {kept.shape[1]} x {kept.shape[2]}": {name: lambda name=name: from_proxy(name) for name in on_decode},
    }


# --- the cache -----------------------------------------------------------------------------------------------------


def cache(folder: Path, params: config.Params, number: int) -> Callable[..., clips.LatentClips]:
    """Shards of latents and motion targets, as `encode` and `targets` write them, for the first `steps` steps of a
    training on `number` clips; returns the dataset's opener."""
    row, grid = params.backbones["cogvideox"], params.grid("cogvideox")
    (tokens, text), steps, batch = TEXT[params.scale], params.align.steps, params.align.batch
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    mean = normal(SHARD, 16, *grid.latents).half()
    prompts = shards.end_to_end("prompt", [normal(tokens, text) for _ in range(SHARD)])
    target = normal(SHARD, *grid.motion, params.teacher.channels[1]).half()
    keys = [f"source-{i:012x}" for i in range(number)]
    drawn = clips.drawn(0, steps, batch, number)
    manifest.write_text(folder / "pin.yaml", PIN)

    def write(name: str, kind: type, rows: list, tensors: dict | None = None) -> list[str]:
        with manifest.making(folder / f"{name}.jsonl", kind, pin=folder / "pin.yaml") as made:
            if tensors:
                shards.write_tensors(folder / f"{name}.safetensors", tensors)
                made.file(f"{name}.safetensors")
            made.rows += rows
        return [str(made.path)]

    whole = [manifest.Clip(key, "train", "source", "", "", "0.tar", 0, 0, 97, 16.0, 480, 848) for key in keys]
    latents = [manifest.Latent(keys[i], "latents.safetensors", n % SHARD, tokens) for n, i in enumerate(drawn)]
    targets = [manifest.Target(keys[i], "targets.safetensors", n % SHARD) for n, i in enumerate(drawn)]
    given = (
        write("clips", manifest.Clip, whole),
        write("latents", manifest.Latent, latents, {"mean": mean} | prompts),
        write("targets", manifest.Target, targets, {"target": target}),
    )
    return lambda: clips.LatentClips(*given, "train", row.text_tokens, lambda n: clips.drawn(0, steps, batch, n))


def first_batch(data: clips.LatentClips, step: int, batch: int) -> float:
    """CPU seconds from the step's number to its batch, with nothing remembered and no file open."""
    clips.permutation.cache_clear()
    data.shards = shards.TensorShards()
    started = time.process_time()
    items = [data[i] for i in clips.draw(0, step, batch, len(data))]
    align.collate(items, clips.streams(0, step, [item["key"] for item in items]))
    return time.process_time() - started


# --- the table -----------------------------------------------------------------------------------------------------


def taking_turns(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU milliseconds of each way."""
    taken = [[] for _ in ways]
    for number in range(rounds + 1):  # the first round warms up
        for way, times in zip(ways, taken, strict=True):
            started = time.process_time()
            way()
            if number:
                times.append(1000 * (time.process_time() - started))
    return [statistics.median(times) for times in taken]


def rows(scale: str, rounds: int) -> list[str]:
    """The table's rows of one scale."""
    params = config.load(TOP / "params.yaml", scale=scale)
    row, batch, last = params.backbones["cogvideox"], params.align.batch, params.align.steps - 1
    number = CROWD if scale == "paper" else params.subset.clips
    ways = pixel_ways(params)
    with tempfile.TemporaryDirectory() as folder:
        opened = cache(Path(folder), params, number)
        started = time.process_time()
        data = opened()
        opening = time.process_time() - started
        some = clips.drawn(0, last + 1, batch, number)[:SHARD]
        calls = [call for readers in ways.values() for call in readers.values()]
        *pixels, cached = taking_turns([*calls, lambda: deque(map(data.__getitem__, some), maxlen=1)], rounds)
        starts = [lambda step=step: first_batch(data, step, batch) for step in (0, last)]
        first, resumed = taking_turns(starts, rounds)
    size = f"{scale}, {row.frames} x {row.size[0]} x {row.size[1]}"
    made = [
        f"| ms a clip: {name} | {size} | {by_decord:.1f} | {by_av:.1f} | |"
        for name, by_decord, by_av in zip(ways, pixels[::2], pixels[1::2], strict=True)
    ]
    return [
        *made,
        f"| ms a clip: latent, prompt and target, cached | {size} | | | {cached / len(some):.2f} |",
        f"| ms: first batch of {batch} from {number:,} clips, step 0 | {scale} | | | {first:.1f} |",
        f"| ms: first batch after a resume, step {last:,} | {scale} | | | {resumed:.1f} ({resumed / first:.2f} x) |",
        f"| s: manifests read, draws of {last + 1:,} steps checked | {scale} | | | {opening:.1f} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = [line for scale in given.scale for line in rows(scale, given.rounds)]
    print("\n".join(["| CPU time | size | decord | PyAV | cache |", "|---|---|--:|--:|--:|", *table]))


if __name__ == "__main__":
    main()
