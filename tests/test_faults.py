"""The chain, killed for real: SIGKILL in the middle of both trainings, and it ends with the same metrics.

make test-faults
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]


def workplace(folder: Path) -> Path:
    """A folder with the repo's parameters and models, and no results."""
    folder.mkdir()
    shutil.copy(TOP / "params.yaml", folder)
    for name in ("scales", "resources"):
        (folder / name).symlink_to(TOP / name)
    return folder


def start(folder: Path, *targets: str) -> subprocess.Popen:
    """Snakemake, in a process group of its own."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "WANDB_MODE": "disabled"}
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(TOP / "Snakefile"),
        "--profile",
        str(TOP / "local"),
        *targets,
    ]
    output = open(folder / "output.log", "a")  # noqa: SIM115, the process keeps it
    return subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)


def finish(folder: Path, *targets: str) -> dict:
    """Run to the end; the metrics."""
    process = start(folder, *(targets or ("all",)))
    assert process.wait(timeout=1800) == 0, (folder / "output.log").read_text()[-3000:]
    return json.loads((folder / "results/smoke/metrics.json").read_text())


def kill_when(folder: Path, pattern: str, *targets: str) -> None:
    """Start the chain and SIGKILL it and all of its jobs as soon as a file matches `pattern`."""
    process = start(folder, *targets)
    deadline = time.monotonic() + 1500
    while not list(folder.glob(pattern)):
        assert process.poll() is None, (folder / "output.log").read_text()[-3000:]
        assert time.monotonic() < deadline, f"nothing matched {pattern}"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for job in processes_in(folder):
        os.kill(job, signal.SIGKILL)


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is the folder: jobs may have left the group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink() == folder:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.faults
def test_a_chain_killed_in_both_trainings_ends_with_the_same_metrics(tmp_path):
    expected = finish(workplace(tmp_path / "whole"))
    folder = workplace(tmp_path / "killed")
    kill_when(folder, "work/smoke/teacher/*/*/00000020*.pt", "teacher")
    assert not (folder / "results/smoke/teacher/manifest.jsonl").exists()
    kill_when(folder, "work/smoke/cog-moalign-s0/*/*/00000004*.pt", "all")
    assert not (folder / "results/smoke/runs/cog-moalign/s0/manifest.jsonl").exists()
    assert finish(folder) == expected
    assert (folder / "results/smoke/metrics.json").read_bytes() == (
        tmp_path / "whole/results/smoke/metrics.json"
    ).read_bytes()
