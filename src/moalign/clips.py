"""Clips as the trainings see them: pixels from a stored proxy, datasets joined by key, and the order of drawing.

The order needs no state beyond (seed, step): `draw` says which clips a step sees, `streams` which random numbers.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moalign import manifest, shards, video
from moalign.config import Backbone, Processor
from moalign.errors import Problem

SYNTH = "synth"  # the source that synthetic clips name
SHOWN = 5  # keys that a message lists


def load_clip(folder: Path, clip: manifest.Clip, frames: int, fps: float, size: tuple[int, int]) -> Tensor:
    """x0 of a stored clip: float [3, F, H, W] in [-1, 1].

    `frames` at `fps` from the proxy's first frame (A18); a synthetic clip is taken at its own rate (A19). The frames
    cover `size` with their aspect kept, and are cropped at the centre.
    """
    tar = Path(folder) / clip.file
    try:
        indices = video.pick(clip.frames, clip.fps, frames, clip.fps if clip.source == SYNTH else fps)
        pixels = video.read(shards.read_bytes(tar, clip.offset, clip.size), indices)
    except video.BadVideo as error:
        raise Problem(f"{tar}: {clip.key}: {error.reason}; remove its manifest and run its stage again") from None
    except Problem as error:
        raise Problem(f"{tar}: {clip.key}: {error}") from None
    return normalise(video.cover(pixels, *size))


def normalise(frames: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> float [3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def to_frames(video: Tensor) -> np.ndarray:
    """float [3, F, H, W] in [0, 1], as a pipeline returns it -> uint8 [F, H, W, 3]."""
    return video.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def decoded(
    given: manifest.Manifest[manifest.Clip], row: Backbone, machine: Processor
) -> Iterator[tuple[manifest.Clip, Tensor]]:
    """The clips of a shard in order, each with x0 [3, F, H, W] as a backbone takes it.

    Where a GPU computes, each thread decodes a few ahead; on the CPU they have other work.
    """

    def load(clip: manifest.Clip) -> tuple[manifest.Clip, Tensor]:
        return clip, load_clip(given.path.parent, clip, row.frames, row.fps, row.size)

    threads = machine.threads if machine.device == "cuda" else 0
    return ahead(((clip,) for clip in given.rows), load, 2 * threads, threads)


def ahead(calls: Iterable[tuple], make: Callable[..., Any], depth: int, threads: int = 1) -> Iterator[Any]:
    """`make(*call)` for each call, in order, begun up to `depth` calls early in threads of its own (0: none)."""
    if depth == 0:
        yield from starmap(make, calls)
        return
    pending: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for call in calls:
                pending.append(pool.submit(make, *call))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


# --- datasets ------------------------------------------------------------------------------------------------------


class Clips(Dataset):
    """Clips of one split, sorted by key, so that the order of the manifests does not matter."""

    def __init__(self, clips: list[str | Path], split: str):
        rows = index(clips, manifest.Clip)
        self.clips = {key: rows[key] for key in sorted(rows) if rows[key][1].split == split}
        self.keys = list(self.clips)
        self.shards = shards.TensorShards()

    def __len__(self) -> int:
        return len(self.keys)

    def join(self, paths: list[str | Path], kind: type, keys: list[str] | None = None) -> dict[str, tuple[Path, Any]]:
        """Rows of another stage for these clips, or those named, by key; Problem lists the clips that have none."""
        rows, keys = index(paths, kind), self.keys if keys is None else keys
        missing = [key for key in keys if key not in rows]
        if missing:
            raise Problem(
                f"{some(missing)}: no {kind.__name__} row in the {len(paths)} manifests given;"
                " give those of every shard, made from these clips"
            )
        return {key: rows[key] for key in keys}

    def row(self, where: tuple[Path, Any], name: str) -> Tensor:
        """Row of a stacked tensor that (folder, manifest row) points to."""
        folder, row = where
        return self.shards[folder / row.file].row(name, row.index)


class FlowClips(Clips):
    """Stage 1: {key, x0 [3, F, H, W] in [-1, 1], flow uint8 [bytes] as `raft.pack` stored it}."""

    def __init__(
        self,
        clips: list[str | Path],
        flows: list[str | Path],
        split: str,
        frames: int,
        fps: float,
        size: tuple[int, int],
    ):
        super().__init__(clips, split)
        self.flows = self.join(flows, manifest.Flow)
        self.frames, self.fps, self.size = frames, fps, size

    def __getitem__(self, i: int) -> dict[str, Any]:
        key = self.keys[i]
        x0 = load_clip(*self.clips[key], self.frames, self.fps, self.size)
        return {"key": key, "x0": x0, "flow": self.flow(i)}

    def flow(self, i: int) -> Tensor:
        """The stored flow of a clip."""
        folder, row = self.flows[self.keys[i]]
        return self.shards[folder / row.file].ragged("flow", row.index)


class LatentClips(Clips):
    """Stage 2: {key, z0 [C, Fl, Hl, Wl], prompt [T, Dtext] and, where targets are given, target [Fm, Hm, Wm, D]}.

    z0 is the posterior mean; prompt states are stored without padding and padded here with zeros to `text_tokens`.
    `needed` says of how many clips which are read, as indices; without it all are. Only these need rows, and a clip
    that has none is a Problem here, before any is read.
    """

    def __init__(
        self,
        clips: list[str | Path],
        latents: list[str | Path],
        targets: list[str | Path],
        split: str,
        text_tokens: int,
        needed: Callable[[int], Iterable[int]] = range,
    ):
        super().__init__(clips, split)
        keys = [self.keys[i] for i in needed(len(self))]
        self.latents = self.join(latents, manifest.Latent, keys)
        self.targets = self.join(targets, manifest.Target, keys) if targets else None
        self.text_tokens = text_tokens

    def __getitem__(self, i: int) -> dict[str, Any]:
        key = self.keys[i]
        item = {"key": key, "z0": self.row(self.latents[key], "mean").float(), "prompt": self.prompt(key)}
        if self.targets is not None:
            item["target"] = self.row(self.targets[key], "target").float()
        return item

    def prompt(self, key: str) -> Tensor:
        """Prompt states of a clip, zeros after the last token: [text_tokens, Dtext]."""
        folder, latent = self.latents[key]
        shard = self.shards[folder / latent.file]
        states = shard.ragged("prompt", latent.index).float()
        if len(states) != latent.tokens or len(states) > self.text_tokens:
            raise Problem(
                f"{shard.path}: {key}: {len(states)} prompt states where its manifest says {latent.tokens}"
                f" and at most {self.text_tokens} are allowed; run `encode` again"
            )
        return torch.nn.functional.pad(states, (0, 0, 0, self.text_tokens - len(states)))


def of_shard(clips: str | Path, drawn: str | Path | None) -> manifest.Manifest[manifest.Clip]:
    """A shard's manifest with those clips alone that `drawn` lists, one key a line, as `draw` wrote it; None: all."""
    if drawn is None:
        return manifest.read(clips, manifest.Clip)
    try:
        wanted = set(Path(drawn).read_text(encoding="utf-8").split())
    except FileNotFoundError:
        raise Problem(f"{drawn}: no such list; run `draw`") from None
    given = manifest.read(clips, manifest.Clip, lambda row: row.key in wanted)
    if missing := sorted(wanted - {row.key for row in given.rows}):
        raise Problem(f"{drawn}: lists {some(missing)}, not among the clips of {clips}; run `draw` again")
    return given


def some(keys: list[str]) -> str:
    """The first of many keys, as a message lists them."""
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def index(paths: list[str | Path], kind: type) -> dict[str, tuple[Path, Any]]:
    """Rows of several manifests by key, each with the folder that its files lie in."""
    rows = {}
    for path in paths:
        given = manifest.read(path, kind)
        for row in given.rows:
            if row.key in rows:
                raise Problem(f"{path}: {row.key} is in an earlier manifest too; give each shard once")
            rows[row.key] = (given.path.parent, row)
    return rows


# --- the order of drawing ------------------------------------------------------------------------------------------


def draw(seed: int, step: int, batch: int, n: int) -> list[int]:
    """Indices of the clips that step `step` (from 0) sees: each clip once per epoch, batches may straddle epochs."""
    if n < 1:
        raise Problem("no clips to draw from; give manifests that hold clips of this split")
    places = range(step * batch, (step + 1) * batch)
    return [int(permutation(seed, place // n, n)[place % n]) for place in places]


def drawn(seed: int, steps: int, batch: int, n: int) -> list[int]:
    """Indices, ascending, of the clips that `draw` gives in the steps before `steps`, each once."""
    if steps * batch >= n:
        return list(range(n))
    return np.sort(permutation(seed, 0, n)[: steps * batch]).tolist()


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of epoch `epoch`: int32 [n].

    Indices sorted by a mixing of (seed, epoch, index) that never gives two of them one value (splitmix64's finaliser),
    so the order depends on no library's generator.
    """
    with np.errstate(over="ignore"):
        x = np.uint64(_hash(seed, epoch)) + np.arange(n, dtype=np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x).astype(np.int32)


def streams(seed: int, step: int, keys: list[str]) -> Tensor:
    """Seeds of the clips' random streams at a step: int64 [B], a function of (seed, step, key) alone."""
    return torch.tensor([_hash(seed, step, key) >> 1 for key in keys], dtype=torch.int64)


def _hash(*parts: object) -> int:
    """64 bits of the parts."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big")
