"""A training of seconds for test_train.py, which also runs it as a process of its own.

python train_toy.py WORK                 trains to the end
python train_toy.py WORK step-8 save-9   is killed in the middle of the eighth step; of the save after the ninth
torchrun ... train_toy.py WORK lost-8    the same, where rank 1 takes its torchrun along: a node is gone
torchrun ... train_toy.py WORK ranks     everything that a test wants of two ranks, in folders of their own
"""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from moalign.config import Optimiser, Processor
from moalign.errors import Problem
from moalign.train import distributed, loop

STEPS = 12
SETTINGS = Optimiser(
    steps=STEPS,
    batch=4,
    lr=1e-2,
    betas=(0.9, 0.95),
    weight_decay=1e-3,
    warmup=3,
    schedule="constant",
    clip=0.5,
    precision="fp32",
    validate_every=4,
    save_every=3,
)


SPLIT = SETTINGS.model_copy(update={"steps": 20, "batch": 8, "save_every": 20, "ema": 0.9})  # 8 = 1 x 2 x 4 = 2 x 2 x 2


class Clips:
    """Ten clips, each a function of its key; the one in `broken` holds a NaN."""

    def __init__(self, split: str, n: int, broken: str | None = None):
        self.keys = [f"{split}-{index}" for index in range(n)]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict:
        key = self.keys[index]
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
        return {"key": key, "x": x * float("nan") if key == self.broken else x}


@dataclass(frozen=True)
class Batch:
    keys: list[str]
    streams: Tensor
    x: Tensor


def collate(items: list[dict], streams: Tensor) -> Batch:
    return Batch([item["key"] for item in items], streams, torch.stack([item["x"] for item in items]))


class Task(loop.Task):
    """Denoise six numbers. Dropout, where asked for, draws from torch's global generator."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 15), nn.SiLU(), nn.Dropout(dropout), nn.Linear(15, 6))

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.net[0]]

    def errors(self, batch: Batch) -> Tensor:
        draws = [torch.randn(6, generator=torch.Generator().manual_seed(stream)) for stream in batch.streams.tolist()]
        return (self.net(batch.x + torch.stack(draws)) - batch.x).square().mean(1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.errors(batch).mean()}

    def measure(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        errors = self.errors(batch)
        return {"error": (errors.sum(), torch.tensor(len(errors)))}


def train(
    work: Path,
    settings: Optimiser = SETTINGS,
    dropout: float = 0.0,
    broken: str | None = None,
    heldout: int = 5,
    best: str | None = "error",
) -> tuple[loop.Outcome, Task]:
    """Run, or go on, below `work`."""
    torch.manual_seed(7)
    task = Task(dropout)
    accelerator = distributed.start(Processor(device="cpu", threads=1), "fp32")
    plan = loop.Plan("toy", "toy", settings, seed=3, tokens=1, best=best)
    data = loop.Data(Clips("train", 10, broken), Clips("heldout", heldout, broken), collate)
    return loop.fit(task, data, plan, accelerator, work, {"made": "by a test"}), task


def kill_in_save(step: int) -> None:
    """SIGKILL when the checkpoint of `step` is written but does not have its name yet."""
    replace = os.replace

    def die(old: str, new: str) -> None:
        if Path(new).name.startswith(f"{step:08d}."):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    os.replace = die


def signalled(call: int, number: int, *processes: int) -> None:
    """Send a signal in the middle of the forward pass that has this number, counted from 1, and of no later one."""
    forward, count = Task.forward, iter(range(1, 1000))

    def send(self: Task, batch: Batch) -> dict[str, Tensor]:
        if next(count) == call:
            for process in processes:
                os.kill(process, number)
        return forward(self, batch)

    Task.forward = send


def stopped(work: Path, settings: Optimiser) -> None:
    """Train until told to stop in the tenth step, of two micro-batches."""
    forward = Task.forward
    signalled(19, signal.SIGTERM, os.getpid())
    with suppress(SystemExit):
        train(work, settings)
    Task.forward = forward


def of_two_ranks(work: Path) -> None:
    """One training after the other; each is as long as a test needs it."""
    train(work / "whole")
    two = SPLIT.model_copy(update={"micro_batch": 2})
    sharded = two.model_copy(update={"sharding": "full"})
    train(work / "two", two)
    train(work / "sharded", sharded)
    stopped(work / "there", two)
    train(work / "there", sharded)
    stopped(work / "back", sharded)
    for settings in (SETTINGS, SETTINGS.model_copy(update={"sharding": "full"})):
        try:
            train(work / f"broken-{settings.sharding}", settings, broken="train-7")
        except Problem as problem:
            print(f"Problem, {settings.sharding}: {problem}", flush=True)


def in_child(work: Path, scenario: str) -> None:
    """A process of its own that trains until it kills itself."""
    child = os.fork()  # nothing here has computed yet: forking is safe
    if child == 0:
        where, step = scenario.split("-")
        kill_in_save(int(step)) if where == "save" else signalled(int(step), signal.SIGKILL, os.getpid())
        train(work / scenario, dropout=0.3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, scenario


if __name__ == "__main__":
    place, *scenarios = sys.argv[1:]
    if scenarios == ["ranks"]:
        of_two_ranks(Path(place))
    elif not scenarios or scenarios[0].startswith("lost"):
        if scenarios and os.environ["RANK"] == "1":
            signalled(int(scenarios[0].split("-")[1]), signal.SIGKILL, os.getppid(), os.getpid())
        train(Path(place) / "whole")
    else:
        for given in scenarios:
            in_child(Path(place), given)
