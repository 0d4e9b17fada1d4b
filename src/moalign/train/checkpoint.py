"""What a stopped training goes on from: whole, checked files under {work}/{pin's hash}/{data's hash}.

    00001200.best-00000800.pt        after 1200 updates; the best validation so far came after 800

A checkpoint is written under a temporary name, synced and renamed, so that a kill at any moment leaves the old ones. It
is a zip whose records carry checksums, which are verified before it is used: a damaged one is put aside, and training
goes on from the one before. Random numbers need no state of their own: all are functions of (seed, step, clip) or of
(seed, step, rank), so what is kept is the step. The pin's hash keeps an edited parameter from resuming other weights,
the data's hash keeps changed shards from it. Tensors are whole, however many ranks wrote them, and what only says how
a step is split (`SPLIT`) is left out of the pin's hash: a training may go on with more GPUs, or with fewer.
"""

import fcntl
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moalign.config import read_yaml
from moalign.errors import Problem
from moalign.manifest import disk, replacing
from moalign.progress import say

KEEP = 2  # newest ones, beside the best
SPLIT = ("micro_batch", "sharding", "checkpointing")  # keys that change a result's last bits alone
UNREADABLE = (OSError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)


@dataclass
class State:
    """A training after `step` updates."""

    step: int = 0
    log_bytes: int = 0  # of log.jsonl then: what comes after is cut off on resuming
    best: dict[str, float] | None = None  # {"step", metrics}: of the best validation
    last: dict[str, float] | None = None  # of the last one
    model: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None  # None when training is over
    ema: dict[str, Any] | None = None  # averaged weights by name, where they are asked for


def folder(work: str | Path, pin: str | Path, inputs: list[str]) -> Path:
    """Where the training that this pin and these manifests define keeps its checkpoints.

    Of a manifest count the rows and the hashes of its files, not when it was made or where it lies.
    """
    found = []
    for path in inputs:
        with open(path, "rb") as file:
            files = json.loads(file.readline())["files"]
            rows = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(rows + json.dumps(files, sort_keys=True))
    data = hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
    asked = hashlib.sha256(json.dumps(_unsplit(read_yaml(Path(pin)))).encode()).hexdigest()
    return Path(work) / asked[:12] / data[:12]


def _unsplit(section: Any) -> Any:
    """A pin without the keys of `SPLIT`."""
    if not isinstance(section, dict):
        return section
    return {key: _unsplit(value) for key, value in section.items() if key not in SPLIT}


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold a checkpoint folder. Where another process does, an orphan of a killed workflow most likely, wait for it."""
    with disk(place):
        place.mkdir(parents=True, exist_ok=True)
        file = open(place / "lock", "a+")  # noqa: SIM115, closed below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"{place}: {file.read().strip() or 'another process'} is training here; waiting until it ends")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            say(f"{place}: this file system has no locks; see to it that no second process trains here")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}, job {os.environ.get('SLURM_JOB_ID', 'local')}")
        file.flush()
        yield


def save(place: Path, state: State) -> Path:
    """Write a checkpoint and remove those that are no longer needed."""
    best = f"best-{int(state.best['step']):08d}" if state.best else "best-none"
    path = place / f"{state.step:08d}.{best}.pt"
    with disk(place), replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(vars(state), file)
        except RuntimeError as error:  # torch reports a full disk as a position that it did not expect
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)  # the new name, too
    finally:
        os.close(handle)
    prune(place, KEEP)
    return path


class Writer:
    """Saves the checkpoints of one training: at once, or `aside`, in a thread, while training goes on.

    Aside, one at most is under way, and what keeps it from being written is raised by the next `save` or by `wait`.
    """

    def __init__(self, place: Path, aside: bool):
        self.place, self.aside = place, aside
        self._under_way: Future | None = None

    def __enter__(self) -> "Writer":
        self._pool = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *given: object) -> None:
        self._pool.shutdown()

    def save(self, state: State) -> None:
        """Have a state written. Aside, its tensors must be copies that nothing changes."""
        self.wait()
        if self.aside:
            self._under_way = self._pool.submit(save, self.place, state)
        else:
            save(self.place, state)

    def wait(self) -> None:
        """Until all is on the disk."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()


def changed(state: State, change: Callable[[Tensor], Any]) -> State:
    """A state with every tensor changed."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        return change(value) if isinstance(value, Tensor) else value

    return State(**walk(vars(state)))


def prune(place: Path, keep: int) -> None:
    """Remove all but the newest `keep` and those that they call the best."""
    kept = listed(place)[-keep:]
    wanted = {_best(path) for path in kept}
    for path in listed(place)[:-keep]:
        if path.name.split(".")[0] not in wanted:
            path.unlink()


def listed(place: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(place.glob("[0-9]*.best-*.pt"))


def _best(path: Path) -> str:
    return path.name.split(".")[1].removeprefix("best-")


def newest(place: Path) -> Path | None:
    """The last whole checkpoint. Damaged ones are put aside, and said so; remains of a killed save are removed."""
    for left in place.glob(".*.tmp"):
        left.unlink()
    for path in reversed(listed(place)):
        fault = damage(path)
        if fault is None:
            return path
        aside = path.with_suffix(".damaged")
        path.rename(aside)
        say(f"WARNING: {path}: damaged ({fault}); put aside as {aside.name}, going on from the checkpoint before")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    return f"the checksum of {record} does not fit" if record else None


def read(path: Path) -> State:
    """A checkpoint, mapped from its file, so that the ranks of one machine share the memory."""
    try:
        return State(**torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (*UNREADABLE, TypeError) as error:
        raise Problem(f"{path}: no checkpoint of this program ({error}); remove it and run again") from None


def at(place: Path, step: int) -> Path:
    """The whole checkpoint of a step."""
    for path in place.glob(f"{step:08d}.best-*.pt"):
        fault = damage(path)
        if fault:
            raise Problem(f"{path}: damaged ({fault}), and it is the best one; remove {place} to train again")
        return path
    raise Problem(f"{place}: the checkpoint of step {step}, the best one, is gone; remove the folder to train again")
