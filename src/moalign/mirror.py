"""Weights & Biases, as a mirror: what is written down is in files, and nothing that goes wrong here stops a job.

WANDB_MODE (offline unless set; disabled switches it off) and WANDB_PROJECT decide; the Snakefile sets both from
params.yaml.
"""

import os
from pathlib import Path
from typing import Any

from moalign.progress import say


def run_id(place: Path) -> str:
    """The wandb run that mirrors what is made in `place`, a folder below work/."""
    return f"{place.parent.name}-{place.name}"


class Mirror:
    """The wandb run, or nothing: the first failure is said once and ends it."""

    def __init__(self, place: Path, pin: dict[str, Any], name: str):
        """place: a folder below work/, which gives the run's id; pin: the run's config.

        The jobs of one run of params.yaml, all seeds, form a group; a job's type is its stage.
        """
        self._run = None
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode != "disabled":
            self._try(self._start, place, pin, name, mode)

    def _start(self, place: Path, pin: dict[str, Any], name: str, mode: str) -> None:
        import wandb  # late: it costs a second, and most tests do without

        place.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=mode,
            project=os.environ.get("WANDB_PROJECT", "moalign"),
            name=name,
            id=run_id(place),
            group=pin.get("run"),
            job_type=pin.get("stage"),
            resume="allow" if mode == "online" else None,
            dir=str(place),
            config=pin,
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, line: dict[str, float | None]) -> None:
        """Send a line; lines of one step may come apart."""
        if self._run is not None:
            self._try(self._run.log, {name: value for name, value in line.items() if value is not None})

    def videos(self, files: dict[str, Path]) -> None:
        """Send mp4 files, each with its caption."""
        if self._run is not None:
            self._try(self._send, files)

    def _send(self, files: dict[str, Path]) -> None:
        import wandb

        shown = [wandb.Video(str(path), caption=caption, format="mp4") for caption, path in files.items()]
        self._run.log({"samples": shown})

    def finish(self, failed: bool = False) -> None:
        """End the run."""
        if self._run is not None:
            self._try(self._run.finish, exit_code=int(failed))

    def _try(self, call: Any, *values: Any, **options: Any) -> None:
        try:
            call(*values, **options)
        except Exception as error:  # whatever it is, the job matters more
            self._run = None
            say(f"WARNING: wandb failed and is off from here on; the files are not ({type(error).__name__}: {error})")
