"""Synthetic clips: one shard of videos that Wan writes for captions of the real subset (Sec. 4.1).

`moalign synth --config PIN --selection MANIFEST --shard K --out MANIFEST`. A killed job keeps its finished clips.
"""

import hashlib
import shutil

from torch import Generator

from moalign import backbones, device, manifest, shards, video
from moalign.clips import to_frames
from moalign.config import SynthPin
from moalign.errors import Problem
from moalign.progress import say, track

BATCH = {"cpu": 4, "cuda": 1}  # videos per call, the same ones after a kill: their last bits depend on their company


def prompts(selection: list[manifest.Choice], seed: int, count: int) -> list[manifest.Choice]:
    """`count` training clips whose captions become prompts: in the order of sha256(seed + key), repeated if few."""
    real = [row for row in selection if row.split == "train" and not row.reserve]
    if not real:
        raise Problem("synth: the selection holds no training clip, so there is no caption to draw from")
    ordered = sorted(real, key=lambda row: hashlib.sha256(f"{seed}{row.key}".encode()).digest())
    return [ordered[index % len(ordered)] for index in range(count)]


def run(config: str, selection: str, shard: int, out: str) -> None:
    """Write a shard of synthetic clips: a tar of H.264 files, rows of manifest.Clip."""
    pin = SynthPin.load(config)
    where = device.use(pin.machine)
    row = pin.backbone
    chosen = prompts(manifest.read(selection, manifest.Choice).rows, pin.synth.seed, pin.synth.clips)
    numbers = range(shard * pin.synth.shard, min((shard + 1) * pin.synth.shard, pin.synth.clips))
    with manifest.making(out, manifest.Clip, pin=config, inputs=[selection]) as made:
        name = f"{made.path.stem}.tar"
        key = manifest.sha256(config) + manifest.sha256(selection)
        folder = shards.resumable(made.path.parent / f".{made.path.stem}", key)
        size = BATCH[where.type]
        batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        todo = [batch for batch in batches if not all((folder / f"{number}.mp4").exists() for number in batch)]
        if todo:
            say(f"synth: {len(batches) - len(todo)} of {len(batches)} batches are there already")
            backbone = backbones.load(row, device=where, dtype=device.sampling_dtype(where))
            for batch in track(todo, "synth"):
                captions = [chosen[number].caption for number in batch]
                rngs = [Generator().manual_seed(noise_seed(pin.synth.seed, number)) for number in batch]
                for number, frames in zip(batch, backbone.sample(captions, row.sampling, rngs), strict=True):
                    video.write(folder / f"{number}.mp4", to_frames(frames), row.fps)
        with shards.TarWriter(made.path.parent / name) as tar:
            for number in numbers:
                data = (folder / f"{number}.mp4").read_bytes()
                offset, size = tar.add(f"synth-{number:06d}.mp4", data)
                made.rows.append(
                    manifest.Clip(
                        key=f"synth-{number:06d}",
                        split="train",
                        source="synth",
                        path=f"{chosen[number].key}#{noise_seed(pin.synth.seed, number)}",
                        caption=chosen[number].caption,
                        file=name,
                        offset=offset,
                        size=size,
                        frames=row.frames,
                        fps=row.fps,
                        height=row.size[0],
                        width=row.size[1],
                    )
                )
        made.file(name)
        made.count("clips", len(numbers))
    shutil.rmtree(folder)


def noise_seed(seed: int, number: int) -> int:
    """Seed of one clip's noise, recorded in its row."""
    return int.from_bytes(hashlib.sha256(f"synth/{seed}/{number}".encode()).digest()[:6])
