"""Ranks: who computes which clips of a step. One process, or several that torchrun started; accelerate is beneath.

clips per step (teacher.batch, align.batch) = micro-batch x accumulation x ranks

Every rank holds all weights (DDP), or, with `sharding: full`, its part of each weight, of its gradient and of AdamW's
moments (FSDP2); a checkpoint holds them whole in both cases, so a training may go on with another split.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from moalign import device
from moalign.config import Processor
from moalign.errors import Problem

Batch = TypeVar("Batch")
FULL = 20_000  # tokens that keep one large GPU busy; a clip of CogVideoX at 480 x 720 has 17,550
PATIENCE = timedelta(hours=1)  # of a rank that waits while another writes a checkpoint


def start(machine: Processor, precision: str) -> Accelerator:
    """This process's rank and device. `precision` bf16 means autocast on a GPU; the CPU always computes in fp32.

    Weights, gradients, AdamW's moments and losses are fp32 in both cases (A24).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms need it, before CUDA starts
    device.use(machine)
    cpu = machine.device == "cpu"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if not cpu:
        torch.set_float32_matmul_precision("high")  # TF32 for the parts that autocast leaves in fp32
    wrapping = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if cpu else {"fp32": "no", "bf16": "bf16"}[precision],
        kwargs_handlers=[wrapping, InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise Problem(
            f"accelerate was set up for {accelerator.distributed_type.value}; a training here runs as one process or"
            " under torchrun, without an accelerate configuration"
        )
    torch.set_num_threads(machine.threads)  # accelerate may have set its own
    return accelerator


def micro_batch(batch: int, ranks: int, device: torch.device, tokens: int, key: str, wanted: int | None = None) -> int:
    """Clips of one forward pass. `tokens` is what one clip costs, `key` the section of params.yaml that holds `batch`.

    Where none is `wanted`: on the CPU a rank's whole share, on a GPU the largest part of it whose tokens fill the
    device: one clip at the paper's size. What it is changes speed and memory, not the result.
    """
    if batch % ranks:
        raise Problem(
            f"{key}.batch: {batch} clips per step cannot be shared evenly by {ranks} processes; choose a multiple of"
            f" {ranks}, or start another number of processes"
        )
    share = batch // ranks
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    if wanted is not None:
        if wanted not in sizes:
            raise Problem(
                f"{key}.micro_batch: {wanted} does not divide the {share} clips that each of {ranks} processes has of a"
                f" step; allowed: {', '.join(map(str, sizes))}, or null"
            )
        return wanted
    if device.type == "cpu":
        return share
    return max(size for size in sizes if size == 1 or size * tokens <= FULL)


def shares(clips: list[Any], rank: int, ranks: int, micro: int) -> list[list[Any]]:
    """A rank's micro-batches of one step's clips."""
    mine = clips[rank::ranks]
    return [mine[first : first + micro] for first in range(0, len(mine), micro)]


def shard(task: nn.Module, blocks: Iterable[nn.Module], accelerator: Accelerator) -> None:
    """Leave each rank its part of every weight, in place (FSDP2).

    A block's weights are put together while it computes, all others while the task does; so every rank has to call the
    task, or its `measure`, equally often. Gradients are averaged over the ranks at each backward pass.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in (*blocks, task):
        fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(task, "measure")


def part(whole: Tensor, weight: Tensor) -> Tensor:
    """This rank's part of what belongs to a weight, on the weight's device; all of it where that is not sharded."""
    if not isinstance(weight, DTensor) or whole.shape != weight.shape:
        return whole
    place = whole.to(weight.device)
    return distribute_tensor(place, weight.device_mesh, weight.placements, src_data_rank=None)


def whole(part: Tensor) -> Tensor:
    """A tensor put together from all ranks' parts; to be called by all of them."""
    return part.full_tensor() if isinstance(part, DTensor) else part


def gather(task: nn.Module) -> None:
    """Give every rank all weights of a sharded task, in place. It is then to be read, not to be called."""
    for module in task.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(whole(weight.detach()), weight.requires_grad))


def average(accelerator: Accelerator, numbers: list[float]) -> list[float]:
    """Mean of each number over the ranks, in float64."""
    if accelerator.num_processes == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    return accelerator.reduce(tensor, reduction="mean").tolist()


def everyone(accelerator: Accelerator, items: list[Any]) -> list[Any]:
    """The items of all ranks, on every rank."""
    return gather_object(items) if accelerator.num_processes > 1 else items


def each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A dataclass with every tensor changed."""
    tensors = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return replace(batch, **{name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)})


def single(batch: Batch, index: int) -> Batch:
    """Clip `index` of a batch, as a batch of one."""
    return replace(each(batch, lambda rows: rows[index : index + 1]), keys=[batch.keys[index]])
