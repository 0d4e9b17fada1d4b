"""The one training loop: data, noise, predict, losses, backward, clip, step, log, save. Both stages run it.

A stage brings a `Task`, which knows the losses, and `Data`, which knows the shards; the loop knows neither. Clips are
drawn by counter and every random number is a function of (seed, step, clip), so neither the number of ranks, nor how
weights are shared among them, nor the micro-batch, nor a stop and resume changes what a step computes.
"""

import math
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from moalign.clips import Clips, ahead, draw, streams
from moalign.config import Optimiser
from moalign.errors import Problem
from moalign.progress import say, track
from moalign.train import checkpoint
from moalign.train.distributed import (
    average,
    each,
    everyone,
    gather,
    micro_batch,
    part,
    shard,
    shares,
    single,
    whole,
)
from moalign.train.journal import Journal

STOPPED = 75  # exit status of a training that was told to stop and can go on: EX_TEMPFAIL
VALIDATION = 256  # held-out clips looked at, the same at every validation
VALIDATION_BATCH = 4
VALIDATION_SEED = 2**31  # of their random streams; no training has it
AHEAD = 2  # micro-batches put together while a GPU computes
CLIPS_AHEAD = 2  # clips that each thread has to read beside those of the next batch


class Batch(Protocol):
    """A dataclass of tensors whose rows are clips."""

    keys: list[str]


class Task(nn.Module, ABC):
    """What a stage trains: its parameters are the optimiser's."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Modules that hold most weights and are called one after the other: units of `sharding: full`."""
        return ()

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses as fp32 scalars, means over the batch's clips; `loss` is the one that is minimised."""

    @abstractmethod
    def measure(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Validation: name -> (sum, weight); the metric is the quotient of both sums over all batches."""


@dataclass(frozen=True)
class Data:
    """Where batches come from."""

    train: Clips  # clips[i] is a dictionary of one clip's tensors
    heldout: Clips
    collate: Callable[[list[dict[str, Any]], Tensor], Batch]  # such dictionaries and the clips' random streams [B]


@dataclass(frozen=True)
class Plan:
    """How to train: the pin's numbers, and what the stage adds."""

    key: str  # section of params.yaml, for messages
    name: str  # of the training, for wandb
    settings: Optimiser
    seed: int
    tokens: int  # of one clip, for the choice of the micro-batch
    best: str | None = None  # metric whose smallest value decides what is exported; None: the last step


@dataclass(frozen=True)
class Outcome:
    """What the task holds when `fit` returns."""

    step: int  # updates that its weights have seen
    metrics: dict[str, float]  # validation of these weights; empty without held-out clips
    log: Path


def fit(task: Task, data: Data, plan: Plan, accelerator: Accelerator, place: Path, pin: dict[str, Any]) -> Outcome:
    """Train to the end, going on from the newest checkpoint below `place`. The optimiser is gone when this returns.

    The weights of `plan.best` are the main process's alone, which waited for them to be written.
    SIGTERM and SIGUSR1 end the process with status 75 after the step at hand, its checkpoint written.
    """
    if not len(data.train):
        raise Problem(f"{plan.key}: none of the clips given is for training (split: train)")
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(checkpoint.alone(place))
        told = stack.enter_context(stop_signals())
        writer = stack.enter_context(checkpoint.Writer(place, aside=accelerator.device.type == "cuda"))
        training = Training(task, data, plan, accelerator, place, writer)
        log = Journal(place, training.state.log_bytes, accelerator.is_main_process, pin, plan.name)
        training.run(stack.enter_context(log), told)
        training.finish()
    state = training.state
    if accelerator.is_main_process and plan.best and state.best and state.best["step"] != state.step:
        best = checkpoint.read(checkpoint.at(place, int(state.best["step"])))
        task.load_state_dict(best.model | (best.ema or {}))
        return _outcome(best.step, state.best, place)
    return _outcome(state.step, state.last or {}, place)


def _outcome(step: int, numbers: dict[str, float], place: Path) -> Outcome:
    metrics = {name: value for name, value in numbers.items() if name != "step"}
    return Outcome(step, metrics, place / "log.jsonl")


class Training:
    """A training under way."""

    def __init__(
        self,
        task: Task,
        data: Data,
        plan: Plan,
        accelerator: Accelerator,
        place: Path,
        writer: checkpoint.Writer,
    ):
        self.data, self.plan, self.accelerator, self.place, self.writer = data, plan, accelerator, place, writer
        self.settings = plan.settings
        ranks, device = accelerator.num_processes, accelerator.device
        share = self.settings.batch, ranks, device, plan.tokens, plan.key
        self.micro = micro_batch(*share, wanted=self.settings.micro_batch)
        self.accumulation = self.settings.batch // (ranks * self.micro)
        self.task = task.to(device).train()
        self.state = self.resume()
        self.sharded = self.settings.sharding == "full" and ranks > 1
        if self.sharded:
            shard(self.task, self.task.blocks, accelerator)
        self.model = self.task if self.sharded else accelerator.prepare_model(self.task)
        trained = {name: weight for name, weight in task.named_parameters() if weight.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.optimizer = self.make_optimizer()
        self.means = self.make_means()
        self.state.model = self.state.optimizer = self.state.ema = None  # loaded: not held twice
        size = micro_batch(VALIDATION_BATCH, 1, device, plan.tokens, plan.key)
        self.heldout = validation_groups(len(data.heldout), size)
        self.fetch = Reader(data.collate, device)

    def resume(self) -> checkpoint.State:
        """The state of the newest whole checkpoint, its weights loaded; a fresh one where there is none."""
        found = [checkpoint.newest(self.place) if self.accelerator.is_main_process else None]
        path = next((path for path in everyone(self.accelerator, found) if path), None)
        if path is None:
            return checkpoint.State()
        state = checkpoint.read(path)
        self.task.load_state_dict(state.model)
        self.say(f"{self.plan.key}: going on from {path}, step {state.step} of {self.settings.steps}")
        return state

    def make_optimizer(self) -> torch.optim.AdamW:
        """AdamW, with the moments of the checkpoint that the training goes on from."""
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.settings.lr,
            betas=self.settings.betas,
            eps=1e-8,
            weight_decay=self.settings.weight_decay,
            fused=self.accelerator.device.type == "cuda",
        )
        if saved := self.state.optimizer:
            weights = self.parameters
            moments = {
                index: {name: part(value, weights[index]) for name, value in of.items()}
                for index, of in saved["state"].items()
            }
            optimizer.load_state_dict(saved | {"state": moments})
        return optimizer

    def make_means(self) -> list[Tensor]:
        """Of `ema`: the running mean of each weight, which begins as the weight; empty without it."""
        if self.settings.ema is None:
            return []
        saved = self.state.ema or dict(zip(self.names, self.parameters, strict=True))
        pairs = [(saved[name], weight) for name, weight in zip(self.names, self.parameters, strict=True)]
        return [part(value, weight).detach().to(weight.device, copy=True) for value, weight in pairs]

    def run(self, log: Journal, told: "Told") -> None:
        """From the state's step to the last."""
        first, last = self.state.step, self.settings.steps
        clips = f"{len(self.data.train)} training clips, {len(self.data.heldout)} held out"
        split = f"{self.micro} x {self.accumulation} x {self.accelerator.num_processes}"
        how = "micro-batch, accumulation, ranks"
        if self.settings.sharding == "full":
            how += "; weights sharded" if self.sharded else "; one rank, so nothing is sharded"
        self.say(f"{self.plan.key}: {clips}; {self.settings.batch} a step = {split} ({how})")
        if self.state.last is None and self.validate(log):
            self.save(log)
        steps: Iterable[int] = range(first, last)
        batches = self.fetch.ahead(self.wanted(steps))
        for step in track(steps, self.plan.key, last, first) if self.accelerator.is_main_process else steps:
            started = time.monotonic()
            stop = self.update(step, batches, log, told)
            log.tick(step + 1, time.monotonic() - started, self.settings.batch)
            improved = self.validate(log) if self.due(self.settings.validate_every) else False
            if stop or improved or self.due(self.settings.save_every):
                self.save(log)
            if stop:
                self.writer.wait()
                self.accelerator.wait_for_everyone()  # torchrun ends the writer soon after another rank has left
                self.say(f"{self.plan.key}: told to stop, saved after step {step + 1}; run again to go on")
                raise SystemExit(STOPPED)

    def update(self, step: int, batches: Iterator[Batch], log: Journal, told: "Told") -> bool:
        """One step of the optimiser over the global batch. Returns whether any rank was told to stop."""
        set_seed((self.plan.seed * 1_000_003 + step) * 1024 % 2**31, device_specific=True)  # for global generators
        seen, sums = [], {}
        for index in range(self.accumulation):
            batch = next(batches)  # data
            more = index + 1 < self.accumulation and not self.sharded  # of a sharded gradient, no rank holds all
            with self.accelerator.no_sync(self.model) if more else nullcontext():
                with self.accelerator.autocast():
                    losses = self.model(batch)  # noise, predict, losses
                self.accelerator.backward(losses["loss"] / self.accumulation)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item() / self.accumulation
            seen.append(batch)
        norm = whole(self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip)).item()
        *means, stop = average(self.accelerator, [*sums.values(), float(told.stop)])
        if not all(map(math.isfinite, [*means, norm])):
            self.accuse(step, seen)
        lr = learning_rate(self.settings, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average()
        self.state.step = step + 1
        log.write(step + 1, **dict(zip(sums, means, strict=True)), lr=lr, grad_norm=norm)
        return stop > 0

    @torch.no_grad()
    def average(self) -> None:
        """Of `ema`: mean <- decay mean + (1 - decay) weight."""
        if self.means:
            torch._foreach_lerp_(self.means, self.parameters, 1 - self.settings.ema)

    @torch.no_grad()
    def swap(self) -> None:
        """Of `ema`: exchange the weights and their means."""
        for mean, weight in zip(self.means, self.parameters, strict=False):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def due(self, every: int) -> bool:
        """Whether something done every so many updates, and after the last, is to be done now."""
        return self.state.step % every == 0 or self.state.step == self.settings.steps

    def wanted(self, steps: Iterable[int]) -> Iterator[tuple[Clips, list[int], int, int]]:
        """This rank's micro-batches, step by step, as arguments of `fetch`."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        for step in steps:
            drawn = draw(self.plan.seed, step, self.settings.batch, len(self.data.train))
            for indices in shares(drawn, rank, ranks, self.micro):
                yield self.data.train, indices, self.plan.seed, step

    @torch.no_grad()
    def validate(self, log: Journal) -> bool:
        """Measure the held-out clips, each rank its share. Returns whether the weights are the best so far.

        No rank waits in a collective while another works: results meet once, when all are through their shares. Only
        sharded weights are put together batch by batch, so there a rank that is through goes along with another batch.
        Clips, batches and random streams are the same at every step, for every run and any number of ranks.
        """
        if not self.heldout:
            return False
        self.task.eval()
        self.swap()
        rows, groups, ranks = [], len(self.heldout), self.accelerator.num_processes
        turns = math.ceil(groups / ranks) * ranks if self.sharded else groups
        for turn in range(self.accelerator.process_index, turns, ranks):
            index = turn % groups
            batch = self.fetch(self.data.heldout, self.heldout[index], VALIDATION_SEED, 0)
            with self.accelerator.autocast():
                measured = self.task.measure(batch)
            if turn == index:
                sums = {name: (total.item(), weight.item()) for name, (total, weight) in measured.items()}
                rows.append((index, sums))
        self.swap()
        self.task.train()
        metrics = self.summed(sorted(everyone(self.accelerator, rows), key=lambda row: row[0]))
        log.write(self.state.step, **{f"val_{name}": value for name, value in metrics.items()})
        self.state.last = {"step": self.state.step, **metrics}
        best = self.plan.best
        if best is None or (self.state.best and self.state.best[best] <= metrics[best]):
            return False
        self.state.best = self.state.last
        return True

    def summed(self, rows: list[tuple[int, dict[str, tuple[float, float]]]]) -> dict[str, float]:
        """Metrics of the validation's groups, added in their order; Problem with the keys where one is not finite."""
        bad = [index for index, row in rows if not all(math.isfinite(x) for pair in row.values() for x in pair)]
        if bad:
            keys = [self.data.heldout.keys[clip] for index in bad for clip in self.heldout[index]]
            raise Problem(self.not_finite(f"validation after step {self.state.step}", keys))
        names = rows[0][1]
        sums = {name: [sum(row[name][side] for _, row in rows) for side in (0, 1)] for name in names}
        return {name: total / weight for name, (total, weight) in sums.items() if weight > 0}

    def accuse(self, step: int, seen: list[Batch]) -> NoReturn:
        """Stop, naming the clips whose loss or gradient is not finite, each tried alone; where none is, all of them.

        A sharded gradient is that of a clip of every rank at once, so it counts only where all losses are finite.
        """
        losses, gradients = [], []  # keys where they are not finite
        for batch in seen:
            for index, key in enumerate(batch.keys):
                self.optimizer.zero_grad(set_to_none=True)
                with self.accelerator.autocast():
                    loss = self.task(single(batch, index))["loss"]
                loss.backward()
                if not loss.isfinite():
                    losses.append(key)
                made = [whole(weight.grad) for weight in self.parameters if weight.grad is not None]
                if not all(bool(gradient.isfinite().all()) for gradient in made):
                    gradients.append(key)
        losses, gradients = everyone(self.accelerator, losses), everyone(self.accelerator, gradients)
        every = everyone(self.accelerator, [key for batch in seen for key in batch.keys])
        bad = losses if self.sharded and losses else losses + gradients
        raise Problem(self.not_finite(f"step {step + 1}", sorted(set(bad or every))))

    def not_finite(self, where: str, keys: list[str]) -> str:
        """The sentence about NaN or infinity."""
        return (
            f"{self.plan.key}: {where}: loss or gradient is not finite with {', '.join(keys)}; make the shards that"
            f" hold it again, or lower {self.plan.key}.lr"
        )

    def save(self, log: Journal) -> None:
        """Have a checkpoint written; the last one needs no optimiser."""
        self.state.log_bytes = log.sync()
        over = self.state.step == self.settings.steps
        moments = None if over else self.optimizer.state_dict()
        means = dict(zip(self.names, self.means, strict=True)) if self.means else None
        state = replace(self.state, model=self.task.state_dict(), optimizer=moments, ema=means)
        if self.sharded or self.writer.aside:
            state = checkpoint.changed(state, self.copied)
        if self.accelerator.is_main_process:
            self.writer.save(state)

    def copied(self, tensor: Tensor) -> Tensor | None:
        """A copy on the CPU of the rank that writes; all ranks take part in putting a sharded one together."""
        found = whole(tensor)
        return found.detach().to("cpu", copy=True) if self.accelerator.is_main_process else None

    def finish(self) -> None:
        """Leave the task with the weights that are exported, whole; the last checkpoint is then on the disk."""
        self.writer.wait()
        self.optimizer.zero_grad(set_to_none=True)
        self.swap()
        if self.sharded:
            gather(self.task)

    def say(self, text: str) -> None:
        """One line, from one rank."""
        if self.accelerator.is_main_process:
            say(text)


class Reader:
    """Batches of clips, on the device. A GPU's are read by a thread per CPU; on the CPU they have other work."""

    def __init__(self, collate: Callable[[list[dict[str, Any]], Tensor], Batch], device: torch.device):
        self.collate, self.device = collate, device
        self.pool = ThreadPoolExecutor(torch.get_num_threads()) if device.type == "cuda" else None

    def __call__(self, clips: Clips, indices: list[int], seed: int, step: int) -> Batch:
        """Clips by their indices, with their random streams of a step."""
        return self.finish(*self.begin(clips, indices, seed, step))

    def ahead(self, calls: Iterable[tuple[Clips, list[int], int, int]]) -> Iterator[Batch]:
        """The batch of each call, in order; on a GPU clips are read and batches put together before their turn."""
        return ahead(self.begun(calls), self.finish, AHEAD) if self.pool else starmap(self, calls)

    def begun(self, calls: Iterable[tuple[Clips, list[int], int, int]]) -> Iterator[tuple[list[Future], int, int]]:
        """Calls whose clips are on their way, CLIPS_AHEAD more for each thread than those of the call at hand."""
        waiting: deque = deque()
        for call in calls:
            waiting.append(self.begin(*call))
            while sum(len(items) for items, *_ in waiting) > CLIPS_AHEAD * torch.get_num_threads() + len(waiting[0][0]):
                yield waiting.popleft()
        yield from waiting

    def begin(self, clips: Clips, indices: list[int], seed: int, step: int) -> tuple[list[Any], int, int]:
        """Start to read the clips of a batch; without threads, read them."""
        read = partial(self.pool.submit, clips.__getitem__) if self.pool else clips.__getitem__
        return [read(index) for index in indices], seed, step

    def finish(self, items: list[Any], seed: int, step: int) -> Batch:
        """The batch of clips that are read."""
        items = [item.result() for item in items] if self.pool else items
        batch = self.collate(items, streams(seed, step, [item["key"] for item in items]))
        return each(batch, lambda rows: rows.to(self.device, non_blocking=True))


def learning_rate(settings: Optimiser, step: int) -> float:
    """Linear warm-up, whose first update has lr / warmup; then constant, or in a line to 0 behind the last step."""
    warmed = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "constant":
        return settings.lr * warmed
    return settings.lr * min(warmed, (settings.steps - step) / max(1, settings.steps - settings.warmup))


def validation_groups(heldout: int, size: int) -> list[list[int]]:
    """Indices of the held-out clips that validation looks at, in batches."""
    if not heldout:
        return []
    return shares(sorted(draw(VALIDATION_SEED, 0, min(VALIDATION, heldout), heldout)), 0, 1, size)


@dataclass
class Told:
    """Whether a signal asked this process to stop."""

    stop: bool = False


@contextmanager
def stop_signals() -> Iterator[Told]:
    """Note SIGTERM (schedulers, torchrun) and SIGUSR1 (sbatch --signal) instead of dying of them."""
    told = Told()

    def note(number: int, frame: object) -> None:
        told.stop = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
