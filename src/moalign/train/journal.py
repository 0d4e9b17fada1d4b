"""What a training writes down: log.jsonl, one line per update or validation, mirrored to Weights & Biases.

    {"step": 12, "loss": 0.31, "denoise": 0.3, "align": 0.02, "lr": 2e-06, "grad_norm": 0.8}
    {"step": 12, "val_denoise": 0.29, "val_align": 0.02}

`step` counts the updates done. The log holds no clock time, so a resumed training writes the same bytes as one that
was never stopped; seconds are in times.jsonl.
"""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from moalign.manifest import disk
from moalign.mirror import Mirror
from moalign.progress import say


class Journal:
    """The log of one training, open for appending; rank 0 writes, the others keep silent."""

    def __init__(self, place: Path, length: int, writes: bool, pin: dict[str, Any], name: str):
        self.path = place / "log.jsonl"
        self.writes = writes
        if not writes:
            return
        with disk(self.path):
            self._file = open(self.path, "ab")  # noqa: SIM115, closed on leaving
            if self._file.tell() < length:
                say(f"WARNING: {self.path}: shorter than its checkpoint says; its earlier lines are lost")
            self._file.truncate(min(length, self._file.tell()))
            self._times = open(place / "times.jsonl", "a")  # noqa: SIM115
        self._mirror = Mirror(place, pin, name)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writes:
            self._file.close()
            self._times.close()
            self._mirror.finish(failed=kind is not None)

    def write(self, step: int, **numbers: float) -> None:
        """One line, seven digits a number; what is not finite becomes null."""
        if not self.writes:
            return
        line = {"step": step} | {name: rounded(value) for name, value in numbers.items()}
        with disk(self.path):
            self._file.write(json.dumps(line).encode() + b"\n")
        self._mirror.log(line)

    def tick(self, step: int, seconds: float, clips: int) -> None:
        """Note how long an update of so many clips took."""
        if not self.writes:
            return
        line = {"step": step, "seconds": round(seconds, 4), "clips_per_second": round(clips / seconds, 3)}
        self._times.write(json.dumps(line) + "\n")
        self._mirror.log(line)

    def sync(self) -> int:
        """Bring the log to the disk; returns its length in bytes."""
        if not self.writes:
            return 0
        with disk(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._times.flush()
        return self._file.tell()


def rounded(value: float) -> float | None:
    """Seven significant digits, or None for what JSON has no number for."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
