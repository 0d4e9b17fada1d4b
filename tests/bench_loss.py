"""Time and memory of Eq. 8, one pass against the matrices as written: `python tests/bench_loss.py [--device cuda]`.

Forward and backward, one thread. Time is CPU time (CUDA: events), the forms taking turns, median of the rounds. On CUDA
there are three: the one pass is shown as torch operations and as the Triton kernel that `soft_trd` uses there.
Memory is what the peak rises above the inputs, each form in a process of its own.
"""

import argparse
import ctypes
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch

from moalign.align import losses
from moalign.align.losses import soft_trd, soft_trd_dense


def soft_trd_torch(*given) -> torch.Tensor:
    """`soft_trd` as on a machine without Triton."""
    with patch.object(losses, "find_spec", return_value=None):
        return soft_trd(*given)


FORMS = {"dense": soft_trd_dense, "one-pass": soft_trd_torch, "triton": soft_trd}
SHOWN = {"cpu": ["dense", "one-pass"], "cuda": [*FORMS]}
D, TAU = 64, 10.0
SIZES = [(6, 150, 1), (6, 150, 4), (24, 150, 1), (24, 150, 2), (24, 150, 4)]  # F, P, B; the paper's is 24 x 150


def inputs(frames: int, tokens: int, batch: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Z, which asks for a gradient, and M."""
    rng = torch.Generator().manual_seed(0)
    Z, M = torch.randn(2, batch, frames, tokens, D, generator=rng).to(device)
    return Z.clone().requires_grad_(), M


def step(form: str, Z: torch.Tensor, M: torch.Tensor) -> None:
    """One forward and backward."""
    Z.grad = None
    FORMS[form](Z, M, TAU).backward()


def seconds(form: str, Z: torch.Tensor, M: torch.Tensor) -> float:
    """Of one step: CPU time, or the GPU's own clock."""
    if Z.is_cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(form, Z, M)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.process_time()
    step(form, Z, M)
    return time.process_time() - start


def times(size: tuple[int, int, int], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of each form, taking turns."""
    Z, M = inputs(*size, device)
    forms = SHOWN[device]
    for form in forms:
        step(form, Z, M)
    taken = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            taken[form].append(seconds(form, Z, M))
    return {form: statistics.median(values) for form, values in taken.items()}


def status(key: str) -> float:
    """A line of /proc/self/status in MiB."""
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak(form: str, size: tuple[int, int, int], device: str) -> float:
    """MiB by which one step rises above its inputs. To be called in a fresh process."""
    step(form, *inputs(2, 8, 1, device))  # what the libraries allocate once
    Z, M = inputs(*size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(form, Z, M)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    step(form, Z, M)
    return status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=4, metavar=("FORM", "F", "P", "B"), help="print one form's memory and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print(peak(given.peak[0], tuple(map(int, given.peak[1:])), given.device))
        return
    dense, *others = SHOWN[given.device]
    columns = ["N".rjust(4), "B"]
    for unit in ("ms", "MB"):
        columns.append(f"{dense} {unit}")
        for form in others:
            columns += [f"{form} {unit}", "ratio"]
    print("|", " | ".join(columns), "|")
    print("|" + "|".join("-" * (len(column) + 1) + ":" for column in columns) + "|")
    for size in SIZES:
        spent = times(size, given.device, given.rounds)
        child = [sys.executable, __file__, "--device", given.device, "--peak"]
        used = {
            form: float(subprocess.run([*child, form, *map(str, size)], capture_output=True, check=True).stdout)
            for form in spent
        }
        cells = [str(size[0] * size[1]), str(size[2])]
        for values, scale in ((spent, 1000), (used, 1)):
            cells.append(f"{values[dense] * scale:.1f}")
            for form in others:
                cells += [f"{values[form] * scale:.1f}", f"{values[form] / values[dense]:.3f}"]
        print(
            "|",
            " | ".join(cell.rjust(len(column)) for cell, column in zip(cells, columns, strict=True)),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main()
