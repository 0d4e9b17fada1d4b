"""The paper's number of clips, without its videos: `make bench-scale`.

The dry-run of every job at the scale `paper`, and the choice of clips from 366,000 annotations. Wall and CPU seconds
and the peak of memory, each in a process of its own; the targets are for two cores that do nothing else.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moalign import config

TOP = Path(__file__).parents[1]
ROWS = 366_000


def measure(folder: Path, *command: str) -> tuple[float, float, float, str]:
    """(wall s, CPU s, peak MB, its words) of a command."""
    started = time.monotonic()
    with open(folder / "said", "w+") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        said.seek(0)
        words = said.read()
    assert status == 0, words[-2000:]
    return time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, words


def site(folder: Path) -> Path:
    """A folder in which the scale `paper` can be planned: what a user brings is there, and empty."""
    params = config.load(TOP / "params.yaml", scale="paper")
    for name in ("params.yaml", "scales", "resources"):
        (folder / name).symlink_to(TOP / name)
    brought = [row.prompts for row in params.benches.values()] + [row.annotations for row in params.sources.values()]
    for path in filter(None, brought):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("[]\n")
    return folder


def dry_run(folder: Path) -> None:
    """Every job of the paper; those behind the checkpoint `draw` are not known before it has run."""
    places = ["-s", str(TOP / "Snakefile"), "--profile", str(TOP / "local"), "--config", "scale=paper"]
    snakemake = [sys.executable, "-m", "snakemake", *places, "-n", "--quiet", "rules", "--", "all"]
    wall, cpu, peak, words = measure(site(folder), *snakemake)
    jobs = re.findall(r"^total +(\d+)$", words, re.MULTILINE)[-1]
    print(f"dry-run, {jobs} jobs: {wall:.1f} s, {cpu:.1f} s of CPU, {peak:.0f} MB (targets 12 s, 250 MB)", flush=True)


def annotate(path: Path) -> None:
    """Annotations as Open-Sora-Plan has them, with captions of its length; a tenth of the rows are refused."""
    random.seed(0)
    words = [f"word{index}" for index in range(2000)]
    with open(path, "w") as file:
        for index in range(ROWS):
            row = {"path": f"part{index % 97:03d}/{index:09d}.mp4", "cap": [" ".join(random.choices(words, k=90))]}
            row |= {"resolution": {"height": 720, "width": 1280}, "fps": 29.97, "num_frames": 300, "duration": 10.01}
            row |= {"aesthetic": 4.0 if index % 10 == 0 else 5.2, "cut": [0, 300]}
            file.write(("[" if index == 0 else ",\n") + json.dumps(row))
        file.write("]\n")


def select(folder: Path) -> None:
    """The choice of clips."""
    params = config.load(TOP / "params.yaml", scale="paper")
    params = params.model_copy(update={"subset": params.subset.model_copy(update={"clips": 320_000})})
    (folder / "pin.yaml").write_text(config.dump(config.pin(params, "subset")))
    annotate(folder / "annotations.json")
    [source] = params.sources
    command = ["select", "--config", "pin.yaml", "--source", f"{source}=annotations.json", "--out", "selection.jsonl"]
    wall, cpu, peak, _ = measure(folder, sys.executable, "-m", "moalign", *command)
    size = (folder / "annotations.json").stat().st_size / 1e6
    print(
        f"select, {ROWS} rows, {size:.0f} MB of JSON: {wall:.0f} s, {cpu:.0f} s of CPU, {peak:.0f} MB"
        " (targets 120 s, 500 MB)",
        flush=True,
    )


if __name__ == "__main__":
    for part in (dry_run, select):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))
