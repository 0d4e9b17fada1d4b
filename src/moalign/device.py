"""The device and the threads that a job's pin gives it."""

import torch

from moalign.config import Processor
from moalign.errors import Problem


def use(machine: Processor) -> torch.device:
    """Set torch's threads and choose its device; Problem where a GPU is asked for and there is none."""
    torch.set_num_threads(machine.threads)
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise Problem("machine.device: cuda, but torch sees no GPU here; run on a GPU node, or set machine.device: cpu")
    return torch.device(machine.device)


def sampling_dtype(where: torch.device) -> torch.dtype:
    """bf16 on a GPU, as VideoREPA samples, and 28 GB instead of 56 for Wan 14B; fp32 on a CPU, where bf16 is slower."""
    return torch.bfloat16 if where.type == "cuda" else torch.float32
