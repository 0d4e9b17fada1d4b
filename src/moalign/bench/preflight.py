"""Look at a folder of videos before a rater spends hours on it: missing, misnamed, extra, doubled, broken, short.

VBench's standard mode averages what is there and takes its suffix from whatever file is listed first; VBench-2.0 stops
at the first missing video. So all that differs from what is wanted is named here, at about a millisecond a video.
"""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from moalign import video
from moalign.bench.motion import OF_FRAMES, RATE
from moalign.bench.scores import Key
from moalign.bench.vbench import MODES, VBENCH2, Wanted, collisions, mode_of
from moalign.errors import Problem
from moalign.progress import track
from moalign.video import BadVideo, Probe

THREADS = 8  # reading waits for the disk, a shared one above all
DEPTH = 2  # folders that are looked into, one inside the other
INSTANCE_SECONDS = 2.0  # Instance_Preservation judges no second of a shorter clip, and passes it

Kind = Literal["missing", "misnamed", "extra", "doubled", "unreadable", "short", "length", "rate"]


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """What a rater should not be started with."""

    kind: Kind
    path: str  # below the folder
    detail: str


@dataclass(frozen=True)
class Preflight:
    """What was found. Remarks need no cure, but a reader of the scores must know them."""

    faults: list[Fault]
    remarks: list[str]
    videos: int  # wanted, each once
    ready: int  # of these, without a fault


def preflight(
    folder: str | Path, wanted: Sequence[Wanted], frames: int = 1, mode: str | None = None, threads: int = THREADS
) -> Preflight:
    """Compare a folder with what is wanted of it: names, bytes, and frames by header, without decoding.

    frames: that each video must have. mode: "standard" or "long", the evaluator of VBench that was chosen; None for
    VBench-2.0, which has one.
    """
    folder = Path(folder)
    if mode is not None and mode not in MODES:
        raise Problem(f"mode {mode!r}: choose one of {', '.join(MODES)}")
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder; sample the videos first, or correct the path")
    keys = {row.path: row.key for row in wanted}
    dimensions: dict[str, set[str]] = defaultdict(set)
    for row in wanted:
        dimensions[row.path].add(row.dimension)
    found = _files(folder)
    faults = _names(keys, found)
    sizes, looks, broken = _look(folder, [path for path in found if path in keys], threads)
    faults += broken
    faults += _doubled(folder, found, keys, sizes)
    for path, look in looks.items():
        if why := _short(look, frames, dimensions[path]):
            faults.append(Fault("short", path, why))
    remarks = _case(wanted) + (_modes(looks.values(), mode) if mode else [])
    ready = len(keys.keys() - {fault.path for fault in faults})
    return Preflight(sorted(faults), remarks, len(keys), ready)


def _files(folder: Path) -> list[str]:
    """All files below the folder, hidden ones too: an evaluator's listing shows them. Folders may be links."""
    found = []
    for top, folders, names in os.walk(folder, followlinks=True):
        inside = Path(top).relative_to(folder)
        if len(inside.parts) >= DEPTH:
            folders.clear()  # a link may lead back
        found += [(inside / name).as_posix() for name in names]
    return sorted(found)


def _loose(path: str) -> str:
    """A path without what is easily got wrong: case, suffix, Unicode form, hyphens and underscores, the cut at 180."""
    prompt, _, index = PurePosixPath(path).stem.rpartition("-")
    text = f"{PurePosixPath(path).parent} {prompt[: VBENCH2.cut]} {index}"
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("_", " ").replace("-", " ").split())


def _names(keys: dict[str, Key], found: list[str]) -> list[Fault]:
    """Missing, misnamed and extra files. A file that stands in for a missing one is told once, as misnamed."""
    there = set(found)
    meant: dict[str, list[str]] = defaultdict(list)
    for path in keys:
        meant[_loose(path)].append(path)
    faults, renamed = [], set()
    for path in found:
        if path in keys:
            continue
        alike = meant.get(_loose(path), [])
        absent = [other for other in alike if other not in there and other not in renamed]
        if absent:
            renamed.add(absent[0])
            faults.append(Fault("misnamed", path, f"rename it to {absent[0]}"))
        elif alike:
            faults.append(Fault("doubled", path, f"its name is {alike[0]} but for case, suffix or blanks; keep one"))
        else:
            faults.append(Fault("extra", path, "not wanted; move it away, a suffix may be taken from it"))
    return faults + [Fault("missing", path, "sample it") for path in keys.keys() - there - renamed]


def _look(folder: Path, paths: list[str], threads: int) -> tuple[dict[str, int], dict[str, Probe], list[Fault]]:
    """Bytes of each file, what each holds, and the faults of those that hold no video."""

    def look(path: str) -> tuple[int, Probe | BadVideo]:
        try:
            return _size(folder / path), video.probe(folder / path)
        except BadVideo as error:
            return _size(folder / path), error

    sizes, looks, faults = {}, {}, []
    with ThreadPoolExecutor(threads) as pool:
        for path, (size, seen) in zip(paths, track(pool.map(look, paths), "videos", len(paths)), strict=True):
            sizes[path] = size
            if isinstance(seen, BadVideo):
                faults.append(Fault("unreadable", path, f"{seen.reason}; sample it again"))
            else:
                looks[path] = seen
    return sizes, looks, faults


def _doubled(folder: Path, found: list[str], keys: dict[str, Key], sizes: dict[str, int]) -> list[Fault]:
    """Files with the bytes of another video. One video in the folders of several dimensions is as it should be."""
    same_size: dict[int, list[str]] = defaultdict(list)
    for path in found:
        size = sizes[path] if path in sizes else _size(folder / path)
        if size:
            same_size[size].append(path)
    first: dict[bytes, str] = {}
    faults = []
    for paths in same_size.values():
        for path in sorted(paths, key=lambda path: path not in keys) if len(paths) > 1 else ():
            try:
                with open(folder / path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
            except OSError:
                continue  # told as unreadable, where it is wanted
            other = first.setdefault(digest, path)
            if other != path and (path not in keys or keys[path] != keys[other]):
                faults.append(Fault("doubled", path, f"the same bytes as {other}; sample it again or remove it"))
    return faults


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0  # a link may point nowhere


def _short(look: Probe, frames: int, dimensions: set[str]) -> str | None:
    """Why a clip is too short: for what was wanted, or for a dimension that then gives a number without meaning."""
    if look.frames < frames:
        return f"{look.frames} frames, {frames} are wanted; sample it again"
    if look.frames < 2:
        return "one frame; temporal_flickering would be NaN; sample it again"
    sampled = -(-look.frames // max(1, round(look.fps / RATE)))
    if "dynamic_degree" in dimensions and round(OF_FRAMES * sampled) == 0:
        return f"{sampled} frames at {RATE} a second; dynamic_degree counts any such clip as moving; sample more frames"
    if "Instance_Preservation" in dimensions and look.frames / look.fps < INSTANCE_SECONDS:
        return f"{look.frames / look.fps:.2f} s; Instance_Preservation passes any clip below {INSTANCE_SECONDS:g} s"
    return None


def _case(wanted: Sequence[Wanted]) -> list[str]:
    return [
        f"{one.path!r} and {other.path!r} are two videos; a disk that takes A for a keeps only one of them"
        for one, other in collisions(wanted, ignore_case=True)
    ]


def _modes(looks: Iterable[Probe], mode: str) -> list[str]:
    """What the official rule would have done otherwise, in one line."""
    seconds = [look.frames / look.fps for look in looks]
    others = [length for length in seconds if mode_of(length) != mode]
    if not others:
        return []
    span = f"{min(others):.2f}" + (f" to {max(others):.2f}" if max(others) > min(others) else "")
    return [
        f"{len(others)} of {len(seconds)} clips last {span} s, for which VBench's own rule takes the"
        f" {mode_of(others[0])} evaluator; {mode} was chosen, so compare with scores of {mode} alone"
    ]
