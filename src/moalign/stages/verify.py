"""Whether the artifacts of a scale are what their manifests say: `moalign data verify --results results/SCALE`.

Every file that a manifest names is hashed, several at a time. Exit status 0 where all is right. Where something is not,
the commands are printed that make it again, it and what was made from it and nothing else.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from moalign import manifest
from moalign.errors import Problem
from moalign.progress import track

ROOMS = ("clips", "drawn", "flow", "latents", "targets", "teacher", "runs", "samples", "scores")  # that hold manifests
KINDS = {kind.__name__: kind for kind in vars(manifest).values() if hasattr(kind, "__dataclass_fields__")}
NAME = re.compile(r'"manifest": "(\w+)"')
OWN = {".key"}  # of `shards.resumable`


@dataclass
class Checked:
    """A manifest, the files that it names, and what is wrong."""

    path: Path
    files: dict[Path, dict] = field(default_factory=dict)  # -> {sha256, bytes}
    wrong: list[str] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


def verify(results: str, jobs: int | None = None) -> int:
    """Check all manifests below a results folder, `jobs` files at a time (by default one per core); 0: all is right."""
    top = Path(results)
    if not top.is_dir():
        raise Problem(f"{results}: no such folder; --results takes results/SCALE")
    checked = [look(path) for path in manifests(top)]
    named = [(one, path) for one in checked for path in one.files]
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        found = pool.map(lambda pair: compare(pair[1], pair[0].files[pair[1]]), named)
        for (one, path), wrong in zip(named, track(found, "files verified", total=len(named)), strict=True):
            if wrong:
                one.wrong.append(f"{path}: {wrong}")
                one.damaged.append(path)
    spare = extra(top, {path for _, path in named} | {one.path for one in checked})
    bad = [one for one in checked if one.wrong]
    report(bad, spare)
    total = sum(entry["bytes"] for one in checked for entry in one.files.values())
    print(
        f"{len(checked)} manifests, {len(named)} files, {total / 1e9:.3f} GB:"
        f" {len(bad)} to make again, {len(spare)} that no manifest names"
    )
    return int(bool(bad))


def manifests(top: Path) -> Iterator[Path]:
    """The manifests of a scale: JSON-lines files, but for the logs of trainings."""
    for room in ROOMS:
        yield from sorted(path for path in (top / room).rglob("*.jsonl") if path.name != "log.jsonl")


def look(path: Path) -> Checked:
    """A manifest, read and counted; the files that its rows name are those that its header lists."""
    one = Checked(path)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            kind = NAME.search(file.readline())
        if kind is None or kind[1] not in KINDS:
            raise Problem(f"{path}: no manifest")
        read = manifest.read(path, KINDS[kind[1]])
        one.files = {path.parent / name: entry for name, entry in read.header.files.items()}
    except (Problem, UnicodeDecodeError) as problem:
        one.wrong.append(str(problem))
        return one
    listed = {name for file in read.header.files for name in (file, *map(str, Path(file).parents))}
    for name in dict.fromkeys(row.file for row in read.rows if hasattr(row, "file")):
        if name not in listed:
            one.wrong.append(f"{path}: a row names {name}, and the header does not")
    return one


def compare(path: Path, entry: dict) -> str | None:
    """What is wrong with a file, or None."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{size} bytes instead of {entry['bytes']}"
        return None if manifest.sha256(path) == entry["sha256"] else "other bytes than were written (sha256)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def extra(top: Path, known: set[Path]) -> list[Path]:
    """Files that no manifest names: of a killed job, or of a job that is running."""
    found = (path for room in ROOMS for path in (top / room).rglob("*") if path.is_file())
    return sorted(path for path in found if path not in known and path.name not in OWN)


def report(bad: list[Checked], spare: list[Path]) -> None:
    """What is wrong, and the commands that cure it."""
    for one in bad:
        for line in one.wrong:
            print(f"wrong  {line}")
    for path in spare:
        print(f"spare  {path}: no manifest names it; delete it if no job is running")
    if bad:
        print("\nThese commands make it again, with what was made from it:")
        for one in bad:  # a stage keeps finished videos, so what is damaged goes as well
            print(f"rm -f {' '.join(map(str, [one.path, *one.damaged]))}")
        again = " ".join(str(one.path) for one in bad)  # named, for Snakemake makes no lost file that no job asks for
        print(f"snakemake --profile local all --forcerun {again}   # or --profile slurm; with -n it lists the jobs\n")
