"""Which clips are used (Sec. 4.1), and their small stored proxies.

    moalign select --config PIN --source NAME=annotations.json ... --out results/SCALE/clips/selection.jsonl
    moalign ingest --config PIN --selection FILE --source NAME=ROOT ... --shard 0 --out .../clips/real/0000.jsonl

`select` reads annotations in Open-Sora-Plan's layout (docs/data.md) and opens a video only where its row leaves out
what a filter needs. `ingest` decodes each chosen clip once. What is left out is counted by its reason in the manifest.
"""

import hashlib
import json
import math
import posixpath
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from moalign import manifest, shards, video
from moalign.config import Subset, SubsetPin
from moalign.errors import Problem
from moalign.manifest import Choice, Clip
from moalign.progress import say, track

READ = 1 << 20  # characters of an annotation file read at a time, at first
SAID = 50_000  # rows between lines in the log
STILL = 12  # grey levels: a clip none of whose pixels leaves its first value by more is a still picture, as coded
LARGEST = 1e9  # pixels, frames, seconds or a rate beyond this are a mistake
SPACE = " \t\r\n"  # what JSON calls white space


class Rejected(Exception):
    """A clip that is left out; the text is the reason that is counted."""


# --- select --------------------------------------------------------------------------------------------------------


def select(config: str, source: dict[str, str], out: str) -> None:
    """Filter the rows of every source, order them by sha256(seed + path + cut), take the first n and a reserve."""
    pin = SubsetPin.load(config)
    check_sources(source, pin)
    with manifest.making(out, Choice, pin=config, inputs=list(source.values())) as made:
        passed, places = [], array("Q")
        for name, annotations in sorted(source.items()):
            root = Path(pin.sources[name].root or Path(annotations).parent)
            for place, choice in survey(name, annotations, root, pin.subset, made.count):
                passed.append(choice)
                places.append(place)
        made.rows = list(once([passed[i] for i in np.argsort(places, kind="stable")], made.count))
        del passed
        deal(made.rows, pin.subset)
        report_selection(made, pin.subset)


def check_sources(given: dict[str, str], pin: SubsetPin) -> None:
    """The sources on the command line are those of the pin."""
    if set(given) != set(pin.sources):
        names, wanted = ", ".join(given) or "none", ", ".join(pin.sources)
        raise Problem(f"--source: {names} given, and the pin has {wanted}; give NAME=PATH for each of these")


def survey(
    name: str, annotations: str, root: Path, subset: Subset, count: Callable[[str], None]
) -> Iterator[tuple[int, Choice]]:
    """The rows of one source that pass, each with its place in the order; the others are counted."""
    for row in rows(annotations):
        count("rows")
        try:
            yield consider(row, name, root, subset, count)
        except (Rejected, video.BadVideo) as error:
            count(f"rejected: {error.reason if isinstance(error, video.BadVideo) else error}")


def once(ordered: list[Choice], count: Callable[[str], None]) -> Iterator[Choice]:
    """Without what was listed before: of one source, path and cut, such rows stand side by side."""
    last = ""
    for choice in ordered:
        if choice.key == last:
            count("rejected: duplicate")
            continue
        last = choice.key
        yield choice


def rows(path: str) -> Iterator[Any]:
    """Elements of a file's JSON list, one at a time: only a stretch of the file is in memory."""
    done = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for row in elements(file):
                yield row
                done += 1
                if done % SAID == 0:
                    say(f"select: {done} rows of {path} read")
    except FileNotFoundError:
        raise Problem(f"{path}: no such file; check `annotations` of its source") from None
    except (ValueError, RecursionError, OSError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise Problem(f"{path}: no JSON list of rows (docs/data.md): after row {done}: {what}") from None


def elements(file: TextIO) -> Iterator[Any]:
    """Elements of the JSON list that a text file holds; json.JSONDecodeError where it holds no such list."""
    decode = json.JSONDecoder().raw_decode
    text, at, first = "", 1, True
    while not text and (start := file.read(READ)):
        text = start.lstrip(SPACE)
    if text[:1] != "[":
        raise json.JSONDecodeError("it does not begin with '['", text, 0)
    more = READ
    while True:
        try:
            end = skip(text, at)
            if first and text[end : end + 1] == "]":
                return
            row, end = decode(text, end)
            end = skip(text, end)
            if text[end : end + 1] not in (",", "]"):
                raise json.JSONDecodeError("',' or ']' is missing", text, end)
        except json.JSONDecodeError:
            further = file.read(more)
            if not further:
                raise
            text, at, more = text[at:] + further, 0, 2 * more  # doubled, so that a broken file costs no square time
            continue
        yield row
        if text[end] == "]":
            break
        at, first, more = end + 1, False, READ
    if text[end + 1 :].strip(SPACE) or file.read().strip(SPACE):
        raise json.JSONDecodeError("something follows the list", text, end)


def skip(text: str, at: int) -> int:
    """Where white space that begins at `at` ends."""
    while text[at : at + 1] and text[at] in SPACE:
        at += 1
    return at


def consider(row: Any, name: str, root: Path, subset: Subset, count: Callable[[str], None]) -> tuple[int, Choice]:
    """One row as a Choice (shard and split still open) with its place in the order, or Rejected with the reason."""
    if not isinstance(row, dict):
        raise Rejected("not a row")
    path, caption = inside(row.get("path")), caption_of(row.get("cap"))
    facts = facts_of(row)
    if facts is None:
        facts = video.probe(root / path)
        count("probed")
    start, frames = cut_of(row.get("cut"), facts.frames)
    judge(replace(facts, frames=frames), subset)
    scores = [row[name] for name in ("aesthetic", "aes") if is_number(row.get(name))]
    if not scores:
        count("without an aesthetic score, kept")
    elif scores[0] < subset.min_aesthetic:
        raise Rejected("aesthetic score")
    cut = f"[{start}, {start + frames}]" if row.get("cut") else ""
    place = int.from_bytes(hashlib.sha256(f"{subset.seed}{path}{cut}".encode()).digest()[:8], "big")
    key = f"{name}-{hashlib.sha256(f'{path}{cut}'.encode()).hexdigest()[:12]}"
    return place, Choice(key, 0, False, "", name, path, start, frames, facts.fps, caption)


def inside(path: Any) -> str:
    """A path below the source's root, tidied, so that two spellings of a file are one."""
    if not isinstance(path, str) or not path.strip() or "\0" in path or path.encode(errors="replace").decode() != path:
        raise Rejected("no path")
    path = posixpath.normpath(path)
    if path.startswith("/") or path.split("/")[0] == ".." or path == ".":
        raise Rejected("path outside the root")
    return path


def caption_of(given: Any) -> str:
    """The first caption that is not empty, its white space collapsed: one line, whatever stood in it."""
    for text in given if isinstance(given, list) else [given]:
        if isinstance(text, str) and text.split():
            return " ".join(text.encode("utf-8", "replace").decode().split())
    raise Rejected("no caption")


def facts_of(row: dict) -> video.Probe | None:
    """Frames, rate and size as the row states them, or None where some are missing or are no positive numbers."""
    size = row.get("resolution") if isinstance(row.get("resolution"), dict) else {}
    height, width = positive(size.get("height")), positive(size.get("width"))
    fps, frames, seconds = positive(row.get("fps")), positive(row.get("num_frames")), positive(row.get("duration"))
    if not (height and width and fps and (frames or seconds)):
        return None
    return video.Probe(round(frames or seconds * fps), fps, math.ceil(height), math.ceil(width))


def positive(value: Any) -> float | None:
    """A number that can be a size, a rate or a length, or None."""
    return float(value) if is_number(value) and 0 < value < LARGEST else None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def cut_of(cut: Any, frames: int) -> tuple[int, int]:
    """(first frame, frames) of a cut [start, end, ...], end excluded; without one, the whole video."""
    if not cut:
        return 0, frames
    whole = isinstance(cut, list) and all(isinstance(at, int) and not isinstance(at, bool) for at in cut[:2])
    if not whole or len(cut) < 2 or not 0 <= cut[0] < cut[1] < LARGEST:
        raise Rejected("bad cut")
    return cut[0], cut[1] - cut[0]


def judge(facts: video.Probe, subset: Subset) -> None:
    """Raise Rejected where a clip is not of the length, size, shape and rate that is wanted."""
    seconds, aspect = round(facts.frames / facts.fps, 3), facts.width / facts.height
    if seconds < subset.min_seconds:
        raise Rejected("too short")
    if seconds > subset.max_seconds:
        raise Rejected("too long")
    if min(facts.height, facts.width) < subset.min_short_side:
        raise Rejected("too small")
    if not subset.min_aspect <= aspect <= subset.max_aspect:
        raise Rejected("aspect")
    if round(facts.fps, 2) < subset.min_fps:  # 14.9999 is a 15
        raise Rejected("too few frames per second")
    if facts.frames < span(facts.fps, subset.frames, subset.fps):
        raise Rejected("too few frames")


@lru_cache(maxsize=1024)
def span(fps: float, frames: int, wanted_fps: float) -> int:
    """Frames of a video at `fps` that `frames` frames at `wanted_fps` reach over."""
    return video.pick(2**62, fps, frames, wanted_fps)[-1] + 1


def deal(rows: list[Choice], subset: Subset) -> None:
    """The first n in equal parts over the shards, the next ones as each shard's reserve; shard by shard, in order.

    In place: there are 350,000 of them, each with its caption.
    """
    parts = subset.shards
    del rows[subset.clips + parts * math.ceil(subset.reserve * subset.shard) :]
    chosen = min(subset.clips, len(rows))
    held = heldout(rows[:chosen], rows[chosen:], subset)
    for i, choice in enumerate(rows):
        reserve = i >= chosen
        shard = (i - chosen) * parts // (len(rows) - chosen) if reserve else i * parts // chosen
        split = "heldout" if video_of(choice) in held else "train"
        rows[i] = replace(choice, shard=shard, reserve=reserve, split=split)
    rows.sort(key=lambda choice: (choice.shard, choice.reserve))  # stable: the order stays


def video_of(choice: Choice) -> str:
    """The source video, all of whose cuts are on one side of the split."""
    return f"{choice.source}/{choice.path}"


def heldout(chosen: list[Choice], spare: list[Choice], subset: Subset) -> set[str]:
    """Videos held out: those whose hash, read as a number in [0, 1), is below the share.

    Where that leaves one side of the split without a chosen clip, the chosen video of the lowest hash is held out.
    """

    def place(name: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{subset.seed} heldout {name}".encode()).digest()[:8], "big") / 2**64

    held = {name for name in map(video_of, chain(chosen, spare)) if place(name) < subset.heldout}
    ours = sum(video_of(choice) in held for choice in chosen)
    if subset.heldout and ours in (0, len(chosen)) and len(names := {video_of(choice) for choice in chosen}) > 1:
        held = (held - names) | {min(names, key=place)}
    return held


def report_selection(made: manifest.Making, subset: Subset) -> None:
    """Counts of what was chosen; loud where it is less than was asked for, a Problem where it is nothing."""
    chosen = [choice for choice in made.rows if not choice.reserve]
    reasons = ", ".join(f"{name} {n}" for name, n in sorted(made.counts.items()))
    if not chosen:
        raise Problem(f"{made.path}: no clip passes the filters of `subset` ({reasons}); relax them or add a source")
    made.count("chosen", len(chosen))
    made.count("reserve", len(made.rows) - len(chosen))
    made.count("heldout", sum(choice.split == "heldout" for choice in chosen))
    made.notes["order"] = "sha256(seed + path + cut)"
    say(f"select: {len(chosen)} clips in {subset.shards} shards ({reasons})")
    if len(chosen) < subset.clips:
        made.count("fewer than asked", subset.clips - len(chosen))
        say(
            f"select: WARNING: only {len(chosen)} of the {subset.clips} clips that subset.clips asks for pass the"
            " filters; the shards are smaller and there is no reserve"
        )


# --- ingest --------------------------------------------------------------------------------------------------------


def ingest(config: str, selection: str, source: dict[str, str], shard: int, out: str) -> None:
    """Decode the chosen clips of one shard once, and store them as H.264 in a tar beside the manifest of Clip rows."""
    pin = SubsetPin.load(config)
    check_sources(source, pin)
    if not 0 <= shard < pin.subset.shards:
        raise Problem(f"--shard: {shard} is not among the {pin.subset.shards} shards, which count from 0")
    choices = manifest.read(selection, Choice, where=lambda choice: choice.shard == shard).rows
    roots = {name: Path(root) for name, root in source.items()}
    chosen = [choice for choice in choices if not choice.reserve]
    spare = [choice for choice in choices if choice.reserve]
    with manifest.making(out, Clip, pin=config, inputs=[selection]) as made:
        name = f"{made.path.stem}.tar"
        with shards.TarWriter(made.path.parent / name) as tar:
            for choice in track(chosen, f"ingest {shard}"):
                used, frames = first_usable(choice, spare, roots, pin.subset, made)
                if used is not None:
                    made.rows.append(store(used, frames, tar, name, pin.subset.fps))
            check_shard(made, chosen, selection)
        made.file(name)
        made.notes |= {"filter": video.FILTER, "crf": video.CRF, "preset": video.PRESET}


def first_usable(
    choice: Choice, spare: list[Choice], roots: dict[str, Path], subset: Subset, made: manifest.Making
) -> tuple[Choice | None, np.ndarray | None]:
    """The frames of a clip, or where it cannot be used those of a spare one; what fails is counted and said."""
    wanted = choice
    while choice is not None:
        path = roots[choice.source] / choice.path
        try:
            frames = proxy(path, choice, subset)
        except (Rejected, video.BadVideo) as error:
            reason = error.reason if isinstance(error, video.BadVideo) else str(error)
            made.count(f"rejected: {reason}")
            say(f"ingest: left out {path}, frames {choice.start} to {choice.start + choice.frames}: {reason}")
            choice = replacement(spare, wanted.split)
            continue
        if choice is not wanted:
            made.count("taken from the reserve")
        return choice, frames
    made.count("not replaced: the reserve is used up")
    return None, None


def replacement(spare: list[Choice], split: str) -> Choice | None:
    """Take the next spare clip: of the same split where there is one. A clip's own split never changes."""
    if not spare:
        return None
    same = [choice for choice in spare if choice.split == split]
    taken = (same or spare)[0]
    spare.remove(taken)
    return taken


def proxy(path: Path, choice: Choice, subset: Subset) -> np.ndarray:
    """Frames [F, H, W, 3] of a clip at subset.fps from the middle of its cut, the short side at subset.short_side.

    The filters are asked again, now of the file itself: annotations can be wrong.
    """
    facts = video.probe(path)
    frames = min(choice.frames, facts.frames - choice.start)
    try:
        judge(replace(facts, frames=max(frames, 0)), subset)
    except Rejected:
        if frames < choice.frames:
            raise Rejected("shorter than its annotation says") from None
        raise
    first = choice.start + (frames - span(facts.fps, subset.frames, subset.fps)) // 2
    indices = [first + i for i in video.pick(frames, facts.fps, subset.frames, subset.fps)]
    pixels = video.read(path, indices, each=lambda block: video.resize(block, subset.short_side))
    if is_still(pixels):
        raise Rejected("static")
    return pixels


def is_still(frames: np.ndarray) -> bool:
    """Whether a clip is one picture throughout, black ones included, but for what a codec does to it."""
    low, high = frames[0].astype(np.int16) - STILL, frames[0].astype(np.int16) + STILL
    return all(((frame >= low) & (frame <= high)).all() for frame in frames[1:])


def store(choice: Choice, frames: np.ndarray, tar: shards.TarWriter, name: str, fps: float) -> Clip:
    """Append a clip to the shard's tar."""
    offset, size = tar.add(f"{choice.key}.mp4", video.encode(frames, fps))
    return Clip(
        key=choice.key,
        split=choice.split,
        source=choice.source,
        path=choice.path,
        caption=choice.caption,
        file=name,
        offset=offset,
        size=size,
        frames=len(frames),
        fps=fps,
        height=frames.shape[1],
        width=frames.shape[2],
    )


def check_shard(made: manifest.Making, chosen: list[Choice], selection: str) -> None:
    """Say where a shard is smaller than was chosen; Problem where nothing of it can be used."""
    reasons = ", ".join(f"{name} {n}" for name, n in sorted(made.counts.items()))
    if chosen and not made.rows:
        raise Problem(
            f"{selection}: none of the {len(chosen)} clips of this shard can be used ({reasons});"
            " check the sources' `root`, and that their videos were fetched whole"
        )
    made.count("clips", len(made.rows))
    if len(made.rows) < len(chosen):
        made.count("fewer than chosen", len(chosen) - len(made.rows))
        say(f"ingest: WARNING: {len(made.rows)} clips where {len(chosen)} were chosen ({reasons})")
