"""What stages hand to each other: JSON-lines files of typed rows, the first line telling what made them.

A stage writes its data files first and its manifest last, by rename: a manifest that exists promises that all that it
lists is there. Paths inside are relative to the manifest's folder, so a results folder can be moved.

    with manifest.making("results/smoke/flow/real/0000.jsonl", Flow, pin=args.config, inputs=[args.clips]) as made:
        made.rows.append(Flow(...))          # and made.file("0000.safetensors") for each data file
"""

import dataclasses
import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from moalign import __version__
from moalign.errors import Problem

Row = TypeVar("Row")
LOCK = Path(__file__).parents[2] / "requirements.lock"  # of the environment


@dataclass(frozen=True, slots=True)
class Choice:
    """A clip that `select` listed for a shard: where its frames are to be had, not yet looked at."""

    key: str  # of the clip everywhere after: {source}-{12 hex digits of path and cut}
    shard: int
    reserve: bool  # taken only where a chosen clip cannot be read
    split: str  # train | heldout
    source: str
    path: str  # below the source's root
    start: int  # first frame of the cut
    frames: int  # of the cut
    fps: float
    caption: str


@dataclass(frozen=True, slots=True)
class Clip:
    """A stored clip: H.264 bytes inside a tar, cut, resampled and resized."""

    key: str
    split: str  # train | heldout
    source: str
    path: str  # where it came from: below the source's root, or the synthesiser's prompt index
    caption: str
    file: str  # tar beside the manifest
    offset: int
    size: int  # bytes
    frames: int
    fps: float
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Flow:
    """Optical flow O of one clip (Sec. 3.2): row `index` of a stacked shard."""

    key: str
    file: str
    index: int
    motion: float  # mean |O|, pixels of the flow's size per transition


@dataclass(frozen=True, slots=True)
class Drawn:
    """What stage 2 draws of one shard of clips: a file with one key a line, which changes with these keys alone."""

    file: str
    clips: int  # keys in the file
    of: int  # clips of the shard


@dataclass(frozen=True, slots=True)
class Latent:
    """Unscaled z0 and prompt states of one clip for one backbone (Sec. 3.1)."""

    key: str
    file: str
    index: int
    tokens: int  # of the prompt, without padding


@dataclass(frozen=True, slots=True)
class Target:
    """What the student is aligned to, for one clip: M (Eq. 3), or the encoder's raw tokens S."""

    key: str
    file: str
    index: int


@dataclass(frozen=True, slots=True)
class Weights:
    """The export of a training."""

    name: str  # teacher | transformer | projector-LAYER | relations | log
    file: str  # file or folder beside the manifest
    step: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled video of a bench."""

    prompt_id: int  # place among the bench's prompts
    prompt: str  # the benchmark's own, which raters see
    text: str  # what the model was given
    index: int  # 0.. among the videos of one prompt
    seed: int  # of its noise: a function of (sample.seed, prompt_id, index) alone
    file: str
    fps: float
    frames: int


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one rater for one video; joined by (prompt_id, index), never by order."""

    prompt_id: int
    index: int
    seed: int
    metric: str
    value: float
    rater: str
    rule: str  # how the number is defined, in words


@dataclass(frozen=True, slots=True)
class Rated:
    """A video and all its numbers, as `moalign freeze` keeps them: which metric is what, the header's notes say."""

    prompt_id: int
    index: int
    seed: int
    sha256: str  # of the video's file
    values: dict[str, float]  # by metric; none where no rater had a number


@dataclass(frozen=True)
class Header:
    """The first line of every manifest: what it is, and what made it."""

    manifest: str  # type of its rows
    rows: int
    stage: str
    revision: int
    pin: str  # sha256 of the pin's text
    inputs: dict[str, str]  # path of each manifest read -> its sha256
    files: dict[str, dict]  # data file -> {sha256, bytes}
    counts: dict[str, int]  # e.g. rejections by reason
    code: str  # version and commit
    job: str  # the scheduler's id, or local
    seconds: float
    peak_mb: int
    notes: dict = field(default_factory=dict)  # what a stage wants remembered
    lock: str | None = None  # sha256 of requirements.lock, where this is a checkout


@dataclass
class Making(Generic[Row]):
    """A manifest in the making: rows and files so far."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    files: dict[str, dict] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def count(self, name: str, more: int = 1) -> None:
        """Add to a count of the header."""
        self.counts[name] = self.counts.get(name, 0) + more

    def file(self, name: str) -> Path:
        """Note a finished data file (or all files of a folder) beside the manifest, with its hash; its path."""
        path = self.path.parent / name
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if part.is_file():
                key = part.relative_to(self.path.parent).as_posix()
                self.files[key] = {"sha256": sha256(part), "bytes": part.stat().st_size}
        return path


@dataclass(frozen=True)
class Manifest(Generic[Row]):
    """A manifest as read."""

    path: Path
    header: Header
    rows: list[Row]

    def locate(self, name: str) -> Path:
        """Path of a file that a row names."""
        return self.path.parent / name


@contextmanager
def making(path: str | Path, kind: type[Row], pin: str | Path, inputs: list = ()) -> Iterator[Making[Row]]:
    """Collect rows and files; on leaving without an error write the manifest, by rename, and say so in the log."""
    started = time.monotonic()
    path = Path(path)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    made: Making[Row] = Making(path)
    with disk(path):
        yield made
    from moalign.config import read_yaml  # late: config is not needed to read a manifest

    share = read_yaml(Path(pin))
    header = Header(
        manifest=kind.__name__,
        rows=len(made.rows),
        stage=share["stage"],
        revision=share["revision"],
        pin=sha256(pin),
        inputs={str(given): sha256(given) for given in inputs},
        files=made.files,
        counts=dict(sorted(made.counts.items())),
        code=code_version(),
        job=os.environ.get("SLURM_JOB_ID", "local"),
        seconds=round(time.monotonic() - started, 3),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        notes=made.notes,
        lock=sha256(LOCK) if LOCK.exists() else None,
    )
    with disk(path), replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for line in (header, *made.rows):  # line by line: a selection has 350,000
            file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
    counts = "".join(f", {name} {number}" for name, number in header.counts.items())
    print(f"{path}: {header.rows} rows{counts}; {header.seconds:.1f} s, {header.peak_mb} MB at most", file=sys.stderr)


def read(path: str | Path, kind: type[Row], where: Callable[[Row], bool] | None = None) -> Manifest[Row]:
    """A manifest whose rows are `kind`, checked: Problem names the file and the line that is wrong.

    With `where`, only the rows for which it is true are kept.
    """
    path = Path(path)
    rows, number = [], 0
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    header = _header(line, kind, path)
                    continue
                row = _row(kind, line, path, number)
                if where is None or where(row):
                    rows.append(row)
    except FileNotFoundError:
        raise Problem(f"{path}: no such manifest; run the stage that makes it") from None
    if not number:
        raise Problem(f"{path}: empty; remove it and run its stage again")
    if number - 1 != header.rows:
        raise Problem(f"{path}: promises {header.rows} rows and holds {number - 1}; remove it and run its stage again")
    return Manifest(path, header, rows)


def kind(path: str | Path) -> str | None:
    """What a manifest's rows are, from its first line; None where that cannot be told: `read` then says why."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return json.loads(file.readline())["manifest"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def _header(line: str, kind: type, path: Path) -> Header:
    header = _row(Header, line, path, 1)
    if header.manifest != kind.__name__:
        raise Problem(f"{path}: holds {header.manifest} rows where {kind.__name__} rows are needed")
    return header


def _row(kind: type, line: str, path: Path, number: int) -> Any:
    try:
        data = json.loads(line)
        row = kind(**data)
    except (json.JSONDecodeError, TypeError) as error:
        raise Problem(f"{path}:{number}: not a {kind.__name__} row: {error}") from None
    for name, hint in _hints(kind).items():
        value = data.get(name)
        if hint in (int, float, str, bool) and not isinstance(value, (int, float) if hint is float else hint):
            raise Problem(f"{path}:{number}: {name}: expected {hint.__name__}, found {value!r}")
    return row


@cache
def _hints(kind: type) -> dict[str, type]:
    names = {item.name for item in dataclasses.fields(kind)}
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names and not get_args(hint)}


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write by rename: a reader sees the old file or the whole new one."""
    path = Path(path)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, synced and renamed to it on success, removed on failure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk(path: str | Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into one Problem that names the place and the cure."""
    cures = {
        errno.ENOSPC: "no space left on the device; free some or move the results folder, then run again",
        errno.EDQUOT: "the disk quota is used up; free some or move the results folder, then run again",
        errno.EROFS: "the file system is read-only; choose a results folder that can be written",
        errno.EACCES: "permission denied; make it readable, or choose a results folder that can be written",
    }
    try:
        yield
    except OSError as error:
        if error.errno in cures:
            raise Problem(f"{error.filename or path}: {cures[error.errno]}") from None
        raise


@cache
def code_version() -> str:
    """Package version, and the commit where this is a checkout (with + where files differ from it)."""
    top = Path(__file__).parents[2]
    git = ["git", "-C", str(top), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "no checkout"
    return f"{__version__} {commit}"
