"""From sampled videos to clips that tell nothing but what they show.

All are coded alike, brought to one size, rate and length, stripped of metadata and padded to the same number of bytes;
their names are random. What is what lies in secret.json, which the server alone reads.
"""

import hashlib
import json
import secrets
import struct
from pathlib import Path

import numpy as np

from moalign import manifest, video
from moalign.errors import Problem
from moalign.progress import track
from moalign.study.plan import SHUFFLED, Plan

CRF = 18
BLOCK = 4096  # bytes to whose multiple all files are padded


def prepare(plan: Plan, folder: Path, videos: dict[str, dict[int, Path]]) -> list[str]:
    """Write clips/ and secret.json; returns the raters' tokens. videos: run -> prompt -> file."""
    wanted = sorted({(run, trial.prompt) for trial in plan.trials for run in (trial.left, trial.right)})
    sources = {run.removeprefix(SHUFFLED) for run, _ in wanted}
    lacking = [
        f"{run}, prompt {number}" for run, number in wanted if number not in videos.get(run.removeprefix(SHUFFLED), {})
    ]
    if lacking:
        raise Problem(
            f"{folder}: no video of {lacking[0]} and {len(lacking) - 1} others; give samples of all runs of the plan"
        )
    looks = [video.probe(videos[run][number]) for run in sources for number in {n for _, n in wanted}]
    fps, frames = min(look.fps for look in looks), min(look.frames for look in looks)
    height, width = min((look.height, look.width) for look in looks)
    salt = secrets.token_hex(16)
    coded: dict[str, bytes] = {}
    for run, number in track(wanted, "clips"):
        seen = video.read(videos[run.removeprefix(SHUFFLED)][number], list(range(frames)))
        if run.startswith(SHUFFLED):
            seen = np.random.default_rng([plan.seed, number]).permutation(seen)
        if seen.shape[1:3] != (height, width):
            seen = video.scale(seen, height, width)
        coded[f"{run}/{number}"] = video.encode(seen, fps, crf=CRF)
    size = -(-(max(map(len, coded.values())) + 8) // BLOCK) * BLOCK
    names = {key: f"{hashlib.sha256(f'{salt}/{key}'.encode()).hexdigest()[:24]}.mp4" for key in coded}
    for key, data in coded.items():
        path = folder / "clips" / names[key]
        with manifest.disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with manifest.replacing(path) as temporary:
                temporary.write_bytes(padded(data, size))
    tokens = [secrets.token_urlsafe(18) for _ in range(plan.raters)]
    hashed = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    manifest.write_text(folder / "secret.json", json.dumps({"salt": salt, "tokens": hashed, "clips": names}) + "\n")
    (folder / "secret.json").chmod(0o600)
    return tokens


def padded(data: bytes, size: int) -> bytes:
    """An mp4 with a `free` box behind it, `size` bytes in all."""
    return data + struct.pack(">I4s", size - len(data), b"free") + bytes(size - len(data) - 8)
