"""Collections of videos that this repo makes itself, in Open-Sora-Plan's layout (docs/data.md).

    moalign collect --config PIN --out results/SCALE/collections/NAME/annotations.json

`world` renders the miniature world and adds about a tenth of rows that `subset` must reject. `footage` takes the real
clips that an installed package ships. The videos lie in videos/ beside the annotations, which are written last.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moalign import manifest, video
from moalign.config import CollectPin
from moalign.errors import Problem
from moalign.progress import say, track
from moalign.world import captions, physics, render
from moalign.world import footage as shots

BAD_EVERY = 8  # one bad row after so many good ones
BAD = ("truncated", "no caption", "short", "wide", "text", "duplicate", "still", "ugly", "slow")  # in turn
UNPROBED_EVERY = 12  # of the good rows one lacks what only the file tells, one has its caption in a list, as v1.2 has


def run(config: str, out: str) -> None:
    """Make the collection of the pin's source; `out` is its annotations.json."""
    started = time.monotonic()
    pin = CollectPin.load(config)
    folder = Path(out).parent / "videos"
    with manifest.disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows = MAKERS[pin.source.make](pin, folder)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    manifest.write_text(out, f"[\n{lines}\n]\n")
    say(f"{out}: {len(rows)} rows in {time.monotonic() - started:.1f} s")


# --- the miniature world -------------------------------------------------------------------------------------------


def world(pin: CollectPin, folder: Path) -> list[dict]:
    """Render `source.clips` good clips and, beside them, one bad row after every eighth."""
    check_clip(pin)
    clips, seed = pin.source.clips, pin.source.seed
    rows: list[dict] = []
    for index in track(range(clips), "clips rendered"):
        row = describe(*physics.choose(seed, index), f"videos/{index:05d}.mp4", index)
        video.write(folder.parent / row["path"], picture(row), physics.FPS)
        rows.append(vary(row, index))
        number, at = divmod(index, BAD_EVERY)
        if at == BAD_EVERY - 1:
            extra = clips + number  # its own clip, beyond the good ones
            bad = describe(*physics.choose(seed, extra), f"videos/{extra:05d}.mp4", extra)
            rows.append(spoil(bad, BAD[number % len(BAD)], rows[-1], folder.parent))
    return rows


def check_clip(pin: CollectPin) -> None:
    """The clips that `subset` wants can be had from what the world renders."""
    frames, fps, short_side = pin.clip
    try:
        video.pick(physics.FRAMES, physics.FPS, frames, fps)
    except Problem as problem:
        raise Problem(f"subset.frames, subset.fps: too long for the world's clips: {problem}") from None
    if short_side > physics.SIDE:
        raise Problem(f"subset.short_side: {short_side} is more than the world's {physics.SIDE} pixels; lower it")


def describe(scene: str, seed: int, path: str, index: int) -> dict:
    """The annotation of a clip; `attributes` and `seed` (of the simulation) are ours, the rest is Open-Sora-Plan's."""
    what = physics.attributes(scene, seed)
    return {
        "path": path,
        "cap": captions.caption(what, seed),
        "resolution": {"height": physics.SIDE, "width": physics.SIDE},
        "fps": float(physics.FPS),
        "num_frames": physics.FRAMES,
        "duration": physics.FRAMES / physics.FPS,
        "aesthetic": round(4.8 + 0.1 * (index % 14), 1),  # a column to be read; nobody scored these
        "attributes": what.row(),
        "seed": seed,
    }


def picture(row: dict) -> np.ndarray:
    """Frames of an annotated clip: uint8 [F, 64, 64, 3]."""
    return render.draw(physics.simulate(row["attributes"]["scene"], row["seed"]))


def vary(row: dict, index: int) -> dict:
    """Good rows as collections have them: some with the caption in a list, some with little known about the file."""
    if index % UNPROBED_EVERY == 3:
        return {**row, "cap": [row["cap"]]}
    if index % UNPROBED_EVERY == 9:
        return bare(row)
    return row


def bare(row: dict) -> dict:
    """A row without what a look at the file tells as well."""
    return {key: row[key] for key in ("path", "cap", "attributes", "seed")}


def spoil(row: dict, kind: str, before: dict, root: Path) -> dict:
    """Write a video that `subset` must not take, or none, and return its row. before: the row above it."""
    path, frames, fps = root / row["path"], picture(row), float(physics.FPS)
    if kind == "duplicate":
        return before
    if kind == "no caption":
        row = {**row, "cap": ""}
    if kind == "ugly":
        row = {**row, "aesthetic": 3.9}
    if kind == "short":
        frames = frames[:9]
    if kind == "wide":
        frames = np.tile(frames, (1, 1, 4, 1))
    if kind == "still":
        frames = np.repeat(frames[:1], len(frames), axis=0)
    if kind == "slow":
        frames, fps = frames[::2], fps / 2
    data = video.encode(frames, fps)
    if kind == "truncated":
        data = data[: len(data) * 2 // 3]
    if kind == "text":
        data = b"This is a text file with the wrong name.\n"
    path.write_bytes(data)
    if kind == "text":
        return bare(row)
    size = {"height": frames.shape[1], "width": frames.shape[2]}
    return {**row, "resolution": size, "fps": fps, "num_frames": len(frames), "duration": len(frames) / fps}


# --- real footage --------------------------------------------------------------------------------------------------


def footage(pin: CollectPin, folder: Path) -> list[dict]:
    """Copy the package's videos and cut their shots, those that hold a wanted clip."""
    frames, fps, _ = pin.clip
    files = shots.find()
    rows = []
    for name, start, end, caption in shots.SHOTS:
        found = video.probe(files[name])
        try:
            video.pick(end - start, found.fps, frames, fps)
        except Problem:
            say(f"left out {name}, frames {start} to {end}: too short for {frames} frames at {fps:g} fps")
            continue
        shutil.copyfile(files[name], folder / name)
        row = {"path": f"videos/{name}", "cap": caption, "cut": [start, end]}
        row |= {"resolution": {"height": found.height, "width": found.width}, "fps": found.fps}
        rows.append({**row, "num_frames": found.frames, "duration": found.frames / found.fps})
    if not rows:
        raise Problem(f"subset.frames, subset.fps: no shot of the footage lasts {frames / fps:.1f} s; ask for less")
    return rows


MAKERS: dict[str, Callable[[CollectPin, Path], list[dict]]] = {"world": world, "footage": footage}
