"""A benchmark's own rater, started as it was written to be: files go out, a command runs, files come back.

It runs in an environment of its own, offline, one task (a question, a dimension) at a time. A task that ended well is
not repeated after a kill; one that did not starts from an empty folder, since some raters append to what they find.
"""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from moalign import manifest
from moalign.errors import Problem
from moalign.progress import say, track

TOLD = 15  # last lines of a rater's words that an error repeats
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # of this environment, which would reach into the rater's
ASK = """\
import importlib.metadata, json, sys
print(json.dumps([sys.version.split()[0], {name: importlib.metadata.version(name) for name in sys.argv[1:]}]))
"""


def called(name: str, code: str | None) -> str:
    """A rater's name in its scores; a checkout may say that it is a stand-in, whose numbers mean nothing."""
    places = [Path(code), Path(code).parent] if code else []
    return f"stand-in for {name}" if any((place / "STAND-IN").exists() for place in places) else name


@dataclass(frozen=True)
class Task:
    """One question to a rater."""

    name: str  # of its folder: sa, pc, a dimension
    command: list[str]  # run in `cwd`
    makes: str  # the file that it leaves in its folder, a pattern
    cwd: Path | None = None
    inputs: dict[str, str] = field(default_factory=dict)  # files written beside it first


def ask(tasks: list[Task], folder: Path) -> dict[str, Path]:
    """Run what has not ended well yet, in order; task -> the file that it left below `folder`."""
    for task in track(tasks, "ask"):
        place = folder / task.name
        if not (place / ".done").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for name, text in task.inputs.items():
                manifest.write_text(place / name, text)
            run(task, place)
            left(task, place)
            manifest.write_text(place / ".done", json.dumps(task.command) + "\n")
    return {task.name: left(task, folder / task.name) for task in tasks}


def run(task: Task, place: Path) -> None:
    """One command; its words go to `log.txt`, and to the error where it fails."""
    started, log = time.monotonic(), place / "log.txt"
    environment = {name: value for name, value in os.environ.items() if name not in OURS} | OFFLINE
    environment["PATH"] = f"{Path(task.command[0]).absolute().parent}:{os.environ['PATH']}"  # VBench starts `python`
    try:
        with open(log, "w") as words:
            done = subprocess.run(task.command, cwd=task.cwd, env=environment, stdout=words, stderr=words, check=False)
    except OSError as error:
        raise Problem(
            f"{task.command[0]}: {error.strerror}; `raters` in params.yaml says how a rater is started"
        ) from None
    if done.returncode:
        last = "\n  ".join(log.read_text(errors="replace").splitlines()[-TOLD:])
        raise Problem(f"{log}: the rater ended with status {done.returncode} at {task.name}; its last words:\n  {last}")
    say(f"asked {task.name}: {time.monotonic() - started:.0f} s")


def left(task: Task, place: Path) -> Path:
    """The file that a task was to leave."""
    found = sorted(place.glob(task.makes))
    if len(found) != 1:
        raise Problem(f"{place}: {len(found)} files {task.makes} where the rater was to leave one; see log.txt there")
    return found[0]


def versions(python: str, *packages: str) -> dict[str, str]:
    """What a rater's environment holds: Python and these packages."""
    try:
        done = subprocess.run([python, "-c", ASK, *packages], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Problem(f"{python}: {error.strerror}; `raters` in params.yaml names the interpreter") from None
    if done.returncode:
        raise Problem(
            f"{python}: {done.stderr.strip().splitlines()[-1]}; `moalign doctor --raters` says what is missing"
        )
    own, found = json.loads(done.stdout)
    return {"python": own, **found}
