"""Annotations of a folder of your own videos: `moalign annotate --root FOLDER --out annotations.json`.

The caption of clip.mp4 is the text of clip.txt beside it. The layout is Open-Sora-Plan's (docs/data.md).
"""

import json
from pathlib import Path

from moalign import manifest, video
from moalign.errors import Problem
from moalign.progress import say, track

ENDINGS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}


def run(root: str, out: str) -> None:
    """Probe every video below `root`; write a row for each that has a caption, and count those left out."""
    folder = Path(root)
    if not folder.is_dir():
        raise Problem(f"{root}: no such folder; give the folder that holds the videos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and visible(path, folder))
    rows, left_out = [], {}
    for path in track(found, "videos probed"):
        try:
            rows.append(describe(path, folder))
        except video.BadVideo as error:
            left_out[error.reason] = left_out.get(error.reason, 0) + 1
            say(f"annotate: left out {error}")
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(left_out.items())) or "none"
    if not rows:
        raise Problem(f"{root}: no video with a caption (left out: {reasons}); write them in clip.txt beside clip.mp4")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    manifest.write_text(out, f"[\n{lines}\n]\n")
    say(f"{out}: {len(rows)} rows; left out: {reasons}")


def visible(path: Path, root: Path) -> bool:
    """Whether neither a file below `root` nor a folder above it is hidden."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def describe(path: Path, root: Path) -> dict:
    """The row of one video; BadVideo where it cannot be used or has no caption."""
    beside = path.with_suffix(".txt")
    try:
        caption = " ".join(beside.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError):
        caption = ""
    if not caption:
        raise video.BadVideo(path, "no caption", f"write one in {beside.name}, as UTF-8 text")
    facts = video.probe(path)
    return {
        "path": path.relative_to(root).as_posix(),
        "cap": [caption],
        "resolution": {"height": facts.height, "width": facts.width},
        "fps": facts.fps,
        "num_frames": facts.frames,
        "duration": round(facts.frames / facts.fps, 3),
    }
