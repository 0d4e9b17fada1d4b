"""Both trainings: exact resume, the global batch however it is split, guards, and what each stage may change."""

import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import train_toy
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from moalign import config, manifest, shards, video
from moalign.backbones import miniature
from moalign.config import Processor
from moalign.errors import Problem
from moalign.stages import align, teacher
from moalign.teacher import motion, raft, videomae
from moalign.train import checkpoint, distributed, journal, loop

ROOT = Path(__file__).parents[1]
TOY = Path(train_toy.__file__)
PATIENCE = 300  # seconds for processes that share two cores with others
RESUMED = {"dropout": 0.3}  # draws from torch's global generator, so that its state matters


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module", autouse=True)
def processes(tmp_path_factory) -> Iterator[dict[str, tuple[subprocess.Popen, Path]]]:
    """What needs processes of its own, under way from the first test on; the last tests ask for it."""
    killed, ranks = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("ranks")
    started = {"killed": (start(killed, "step-8", "save-9"), killed), "ranks": (start(ranks, "ranks", ranks=2), ranks)}
    yield started
    for process, _ in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", autouse=True)
def nodes(tmp_path_factory) -> Iterator[tuple[list[subprocess.Popen], Path]]:
    """Two nodes, of which one is lost in the eighth step, on their way like `processes`."""
    work = tmp_path_factory.mktemp("nodes")
    agents = start_nodes(work, "lost-8")
    yield agents, work
    for agent in agents:
        agent.kill()
        agent.communicate()


def finished(processes: dict[str, tuple[subprocess.Popen, Path]], name: str) -> tuple[Path, str]:
    """The work folder and the output of a process, once it is through."""
    process, work = processes[name]
    if process.returncode is None:
        (work / "output").write_text(process.communicate(timeout=PATIENCE)[0])
    output = (work / "output").read_text()
    assert process.returncode == 0, output
    return work, output


def start(work: Path, *options: str, ranks: int = 1) -> subprocess.Popen:
    """The toy training as a process of its own, or as several."""
    return launch(["--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else [], work, *options)


def start_nodes(work: Path, *options: str) -> list[subprocess.Popen]:
    """The toy training on two nodes: an agent of torchrun each, which find one another at a port, one rank each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "toy"]
    host = (["--rdzv-conf", f"is_host={number}"] for number in (1, 0))
    return [launch([*meet, *hosting, "--local-addr", "127.0.0.1"], work, *options) for hosting in host]


def launch(torchrun: list[str], work: Path, *options: str) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(TOY), str(work), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(work: Path) -> dict[str, Tensor]:
    """Of the last checkpoint."""
    return checkpoint.read(checkpoint.listed(work)[-1]).model


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- stop and resume -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("uninterrupted")
    os.environ["WANDB_MODE"] = "disabled"
    train_toy.train(work, **RESUMED)
    return work


def assert_equals(work: Path, uninterrupted: Path) -> None:
    assert (work / "log.jsonl").read_bytes() == (uninterrupted / "log.jsonl").read_bytes()
    assert same(weights(work), weights(uninterrupted))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_saves_and_exits_with_a_status_of_its_own(tmp_path, uninterrupted, monkeypatch, number):
    forward, count = train_toy.Task.forward, iter(range(1, 100))

    def told(self, batch):
        if next(count) == 5:
            os.kill(os.getpid(), number)
        return forward(self, batch)

    monkeypatch.setattr(train_toy.Task, "forward", told)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train_toy.train(tmp_path, **RESUMED)
    assert stopped.value.code == 75
    assert signal.getsignal(number) is before
    assert checkpoint.read(checkpoint.listed(tmp_path)[-1]).step == 5
    train_toy.train(tmp_path, **RESUMED)
    assert_equals(tmp_path, uninterrupted)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """One bit of a weight."""
    data = bytearray(path.read_bytes())
    weight = checkpoint.read(path).model["net.0.weight"].numpy().tobytes()
    data[data.index(weight) + 5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted, monkeypatch, capsys, harm):
    train_toy.train(tmp_path / "whole", heldout=0, **RESUMED)
    work = tmp_path / "work"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_toy.Task, "forward", interrupted(8))
        train_toy.train(work, heldout=0, **RESUMED)
    older, newest = checkpoint.listed(work)
    harm(newest)
    train_toy.train(work, heldout=0, **RESUMED)
    said = capsys.readouterr().err
    assert f"{newest}: damaged" in said
    assert f"going on from {older}, step 3" in said
    assert newest.with_suffix(".damaged").exists()
    assert_equals(work, tmp_path / "whole")


def interrupted(step: int, task: type = train_toy.Task):
    """A task's forward that is interrupted at a step."""
    forward, count = task.forward, iter(range(1, 100))

    def stop(self, batch):
        if next(count) == step:
            raise KeyboardInterrupt
        return forward(self, batch)

    return stop


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    train_toy.train(tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    trained = weights(tmp_path)
    monkeypatch.setattr(train_toy.Task, "forward", interrupted(1))
    outcome, task = train_toy.train(tmp_path)
    assert outcome.step == train_toy.STEPS
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert same(task.state_dict(), trained)


def test_the_newest_two_and_the_best_are_kept_and_the_best_is_exported(tmp_path):
    settings = train_toy.SETTINGS.model_copy(update={"lr": 0.3, "steps": 20, "clip": 100.0, "save_every": 1})
    outcome, task = train_toy.train(tmp_path, settings)
    errors = {line["step"]: line["val_error"] for line in lines(tmp_path / "log.jsonl") if "val_error" in line}
    best = min(errors, key=errors.get)
    assert best not in (19, 20), "the toy must get worse for this test to say anything"
    assert [int(path.name[:8]) for path in checkpoint.listed(tmp_path)] == [best, 19, 20]
    assert outcome.step == best
    assert outcome.metrics["error"] == pytest.approx(errors[best], rel=1e-6)
    assert same(task.state_dict(), checkpoint.read(checkpoint.at(tmp_path, best)).model)
    assert not same(task.state_dict(), weights(tmp_path))
    assert checkpoint.read(checkpoint.listed(tmp_path)[-1]).optimizer is None


AVERAGED = train_toy.SETTINGS.model_copy(update={"ema": 0.8})


def test_averaged_weights_are_validated_kept_and_exported(tmp_path, monkeypatch):
    """They are the mean written out, and a training that is stopped and resumed ends with the same."""
    seen, averaged = [], loop.Training.average

    def look(self):
        averaged(self)
        seen.append([weight.detach().clone() for weight in self.parameters])

    torch.manual_seed(7)
    first = list(train_toy.Task().parameters())
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "average", look)
        _, task = train_toy.train(tmp_path / "whole", AVERAGED, best=None)
    means = [weight.detach().double() for weight in first]
    for weights_then in seen:
        means = [0.8 * mean + 0.2 * weight.double() for mean, weight in zip(means, weights_then, strict=True)]
    for mean, exported in zip(means, task.parameters(), strict=True):
        assert torch.allclose(mean.float(), exported, atol=1e-6)
    assert not torch.allclose(seen[-1][0], next(task.parameters()), atol=1e-3)

    last = checkpoint.read(checkpoint.listed(tmp_path / "whole")[-1])
    assert same(last.ema, task.state_dict())
    errors = [task.errors(batch) for batch in heldout_batches()]
    logged = lines(tmp_path / "whole" / "log.jsonl")[-1]["val_error"]
    assert torch.cat(errors).mean().item() == pytest.approx(logged, rel=1e-5)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_toy.Task, "forward", interrupted(8))
        train_toy.train(tmp_path / "stopped", AVERAGED, best=None)
    _, resumed = train_toy.train(tmp_path / "stopped", AVERAGED, best=None)
    assert_equals(tmp_path / "stopped", tmp_path / "whole")
    assert same(resumed.state_dict(), task.state_dict())
    _, again = train_toy.train(tmp_path / "stopped", AVERAGED, best=None)
    assert same(again.state_dict(), task.state_dict()), "a finished training has them too"


def heldout_batches() -> list[train_toy.Batch]:
    """What validation sees of the toy's held-out clips."""
    clips = train_toy.Clips("heldout", 5)
    reader = loop.Reader(train_toy.collate, torch.device("cpu"))
    return [reader(clips, group, loop.VALIDATION_SEED, 0) for group in loop.validation_groups(5, 4)]


def test_a_checkpoint_written_aside_is_that_of_its_step(tmp_path, uninterrupted, monkeypatch):
    """As on a GPU: training goes on while the disk is slow."""
    write, writer = checkpoint.save, checkpoint.Writer

    def slowly(place, state):
        time.sleep(0.2)
        write(place, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "Writer", lambda place, **given: writer(place, True))
        patch.setattr(checkpoint, "save", slowly)
        patch.setattr(train_toy.Task, "forward", interrupted(8))
        train_toy.train(tmp_path, **RESUMED)
    assert checkpoint.read(checkpoint.listed(tmp_path)[-1]).step == 6
    train_toy.train(tmp_path, **RESUMED)
    assert_equals(tmp_path, uninterrupted)


@pytest.mark.parametrize("aside", [False, True])
def test_a_full_disk_ends_with_one_sentence_and_the_old_checkpoint(tmp_path, uninterrupted, monkeypatch, aside):
    """The kernel's own full device takes the place of the file that step 6 is written to."""
    forward, count, writer = train_toy.Task.forward, iter(range(1, 100)), checkpoint.Writer

    def fill(self, batch):
        if next(count) == 6:
            while not (older := list(tmp_path.glob("00000004.*.pt"))):
                time.sleep(0.01)  # it is being written
            best = older[0].name.split(".")[1]
            (tmp_path / f".00000006.{best}.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "Writer", lambda place, **given: writer(place, aside))
        patch.setattr(train_toy.Task, "forward", fill)
        with pytest.raises(Problem, match=f"{tmp_path}.*no space left on the device; free some"):
            train_toy.train(tmp_path, **RESUMED)
    assert [int(path.name[:8]) for path in checkpoint.listed(tmp_path)][-1] == 4
    assert not list(tmp_path.glob(".*.tmp"))
    train_toy.train(tmp_path, **RESUMED)
    assert_equals(tmp_path, uninterrupted)


def test_a_second_process_waits_until_the_first_has_ended(tmp_path):
    """An orphan of a killed workflow trains on; its successor then goes on from all of its work."""
    place = tmp_path / "whole"
    with checkpoint.alone(place):
        successor = start(tmp_path)
        lines = iter(successor.stdout.readline, "")
        waiting = next(line for line in lines if "waiting until it ends" in line)
        assert f"process {os.getpid()} on" in waiting
        assert not checkpoint.listed(place)
    output, _ = successor.communicate(timeout=PATIENCE)
    assert successor.returncode == 0, output
    assert checkpoint.listed(place)


def test_checkpoints_belong_to_a_pin_and_its_data(tmp_path):
    def made(name: str, job: str, motion: float, pin: str = "stage: flow\nrevision: 1\n") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pin.yaml").write_text(pin)
        with manifest.making(folder / "0000.jsonl", manifest.Flow, pin=folder / "pin.yaml") as flows:
            flows.notes["job"] = job
            flows.rows.append(manifest.Flow("a", "0000.safetensors", 0, motion))
        return checkpoint.folder("work", folder / "pin.yaml", [folder / "0000.jsonl"])

    first = made("one", "made once", 0.5)
    assert first == made("two", "made elsewhere and later", 0.5)
    assert first.parent == made("three", "other data", 0.6).parent
    assert first != made("four", "other data", 0.6)
    assert first.parent != made("five", "made once", 0.5, "stage: flow\nrevision: 2\n").parent
    split = "stage: flow\nrevision: 1\nmachine: {{device: cpu}}\nalign: {{micro_batch: {}, sharding: {}, lr: {}}}\n"
    four = made("six", "made once", 0.5, split.format(4, "none", 1.0))
    assert four == made("seven", "made once", 0.5, split.format(8, "full", 1.0)), "goes on with other GPUs"
    assert four.parent != made("eight", "made once", 0.5, split.format(4, "none", 2.0)).parent


# --- one global batch ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    """Twenty steps of eight clips, in one piece."""
    work = tmp_path_factory.mktemp("eight")
    os.environ["WANDB_MODE"] = "disabled"
    train_toy.train(work, train_toy.SPLIT)
    return work


def assert_close(one: Path, other: Path, split: bool = True) -> None:
    """Two trainings that split their batches differently: equal to 1e-5, and not to the bit."""
    logs = (lines(work / "log.jsonl") for work in (one, other))
    for line, same_line in zip(*logs, strict=True):
        assert line == pytest.approx(same_line, rel=1e-5)
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(other)[name], atol=1e-5, rtol=1e-5), name
    assert not split or not same(weights(one), weights(other)), "equal to the bit, so most likely not split"


def test_accumulation_changes_nothing(tmp_path, eight):
    """1 process x micro-batch 8 = 1 x (2 x 4)."""
    train_toy.train(tmp_path, train_toy.SPLIT.model_copy(update={"micro_batch": 2}))
    assert_close(tmp_path, eight)


def test_micro_batches():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert distributed.micro_batch(32, 4, cpu, 17_550, "align") == 8
    assert distributed.micro_batch(32, 4, gpu, 17_550, "align") == 1  # CogVideoX-2B
    assert distributed.micro_batch(128, 4, gpu, 3600, "teacher") == 4
    assert distributed.micro_batch(16, 1, gpu, 416, "align") == 16  # the miniature
    assert distributed.micro_batch(32, 4, gpu, 17_550, "align", wanted=2) == 2
    with pytest.raises(Problem, match=r"align.micro_batch: 3 .* 8 clips .* allowed: 1, 2, 4, 8, or null"):
        distributed.micro_batch(32, 4, gpu, 1, "align", wanted=3)
    with pytest.raises(Problem, match=r"align.batch: 32 clips .* 3 processes; choose a multiple of 3"):
        distributed.micro_batch(32, 3, gpu, 1, "align")
    drawn = list(range(12))
    split = [distributed.shares(drawn, rank, 2, 3) for rank in (0, 1)]
    assert [len(share) for rank in split for share in rank] == [3, 3, 3, 3]
    assert sorted(clip for rank in split for share in rank for clip in share) == drawn


def test_a_missing_gpu_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Problem, match="cuda"):
        distributed.start(Processor(device="cuda", threads=1), "bf16")


def test_reading_ahead_keeps_the_order_and_passes_on_errors():
    def make(number: int) -> int:
        if number == 5:
            raise Problem("five")
        return number * number

    assert list(loop.ahead(((n,) for n in range(5)), make, 2)) == [0, 1, 4, 9, 16]
    got = loop.ahead(((n,) for n in range(9)), make, 2)
    assert [next(got) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(Problem, match="five"):
        next(got)


def test_clips_are_read_before_their_batch_is_due_and_batches_keep_their_order():
    class Slow(train_toy.Clips):
        def __getitem__(self, i):
            begun.append(i)
            return super().__getitem__(i)

    begun, clips = [], Slow("train", 30)
    calls = [(clips, [3 * n, 3 * n + 1], 0, n) for n in range(10)]
    reader = loop.Reader(train_toy.collate, torch.device("cpu"))
    plain = list(reader.ahead(calls))
    reader.pool, begun[:] = ThreadPoolExecutor(3), []
    batches = reader.ahead(calls)
    first = next(batches)
    reader.pool.submit(len, begun).result()
    at_hand, due = 2, (loop.AHEAD + 1) * 2 + loop.CLIPS_AHEAD * torch.get_num_threads()
    assert at_hand < len(begun) <= due + 2
    batches = [first, *batches]
    assert [batch.keys for batch in batches] == [batch.keys for batch in plain]
    for name in ("x", "streams"):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(batches, plain, strict=True))
    with pytest.raises(IndexError):
        list(reader.ahead([*calls, (clips, [99], 0, 0)]))


# --- guards and the log --------------------------------------------------------------------------------------------


def test_a_nan_stops_with_its_clip(tmp_path):
    with pytest.raises(Problem, match=r"toy: step 3: .* not finite with train-7; ") as stopped:
        train_toy.train(tmp_path, broken="train-7")
    assert "train-1" not in str(stopped.value)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    assert lines(tmp_path / "log.jsonl")[-1]["step"] == 2


def test_a_nan_among_the_held_out_clips_stops_with_its_batch(tmp_path):
    with pytest.raises(Problem, match=r"validation after step 0: .* not finite with .*heldout-2"):
        train_toy.train(tmp_path, broken="heldout-2")


def test_learning_rate_and_optimiser(tmp_path):
    train_toy.train(tmp_path)
    rates = [line["lr"] for line in lines(tmp_path / "log.jsonl") if "lr" in line]
    assert rates == pytest.approx([1e-2 / 3, 2e-2 / 3] + [1e-2] * 10, rel=1e-6)
    moments = checkpoint.read(checkpoint.listed(tmp_path)[0]).optimizer
    (group,) = moments["param_groups"]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-8, 1e-3)
    assert all(state["exp_avg"].dtype == torch.float32 for state in moments["state"].values())


def test_linear_schedule_reaches_zero_behind_the_last_step():
    settings = config.load(ROOT / "params.yaml", scale="paper").align
    linear = settings.model_copy(update={"schedule": "linear", "steps": 10, "warmup": 4, "lr": 1.0})
    rates = [loop.learning_rate(linear, step) for step in range(10)]
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert [loop.learning_rate(settings, step) for step in (0, 99, 3999)] == pytest.approx([2e-8, 2e-6, 2e-6])


def test_the_gradient_is_clipped_once_per_step(tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def look(self, *given):
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        seen.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", look)
    train_toy.train(tmp_path, train_toy.SETTINGS.model_copy(update={"micro_batch": 2}))
    logged = [line["grad_norm"] for line in lines(tmp_path / "log.jsonl") if "grad_norm" in line]
    assert min(logged) > 0.5, "every gradient must be long enough to be clipped"
    assert seen == pytest.approx([0.5] * train_toy.STEPS, rel=1e-4)


def test_validation_comes_at_step_0_every_n_and_last_and_is_a_function_of_the_weights(tmp_path):
    settings = train_toy.SETTINGS.model_copy(update={"steps": 10})
    train_toy.train(tmp_path, settings)
    assert [line["step"] for line in lines(tmp_path / "log.jsonl") if "val_error" in line] == [0, 4, 8, 10]
    still = train_toy.SETTINGS.model_copy(update={"lr": 1e-30, "weight_decay": 0.0})
    train_toy.train(tmp_path / "still", still)
    assert len({line["val_error"] for line in lines(tmp_path / "still" / "log.jsonl") if "val_error" in line}) == 1


def test_the_log_holds_numbers_and_no_clock(tmp_path):
    log = journal.Journal(tmp_path, 0, True, {}, "toy")
    log.write(1, loss=1 / 3, grad_norm=float("inf"))
    assert log.sync() == (tmp_path / "log.jsonl").stat().st_size
    assert lines(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.3333333, "grad_norm": None}]


def test_wandb_mirrors_offline_below_the_work_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_toy.train(tmp_path)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("broken", ["init", "log"])
def test_wandb_never_stops_a_training(tmp_path, monkeypatch, capsys, broken):
    import wandb

    class Run:
        def define_metric(self, *given, **options):
            pass

        def log(self, line):
            raise ConnectionError("the server is gone")

    def fail(**options):
        raise OSError("no wandb today")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", fail if broken == "init" else lambda **options: Run())
    outcome, _ = train_toy.train(tmp_path)
    assert outcome.step == train_toy.STEPS
    assert capsys.readouterr().err.count("wandb failed") == 1


# --- the two stages ------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Twelve small clips of noise, four held out, with all that the stages read."""

    top: Path
    params: config.Params

    def pin(self, stage: str, **names: object) -> str:
        path = self.top / f"{stage}{'-'.join(map(str, names.values()))}.yaml"
        path.write_text(config.dump(config.pin(self.params, stage, **names)))
        return str(path)

    def align(self, run: str, seed: int = 0, targets: str | None = None) -> Path:
        """Stage 2 of a run; its folder."""
        target = targets or self.params.methods[self.params.runs[run].method].target
        given = {} if target == "none" else {"targets": [str(self.top / target / "0000.jsonl")]}
        folder = self.top / "runs" / run
        align.run(
            self.pin("align", run=run, seed=seed),
            clips=[str(self.top / "clips" / "0000.jsonl")],
            latents=[str(self.top / "latents" / "0000.jsonl")],
            work=str(self.top / "work" / run),
            out=str(folder / "manifest.jsonl"),
            **given,
        )
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    top = tmp_path_factory.mktemp("world")
    params = config.load(ROOT / "params.yaml", scale="smoke")
    row = params.backbones["cogvideox"].model_copy(update={"weights": str(top / "cogvideox")})
    short = {"steps": 2, "validate_every": 2, "save_every": 1}
    params = params.model_copy(
        update={
            "backbones": params.backbones | {"cogvideox": row},
            "encoder": params.encoder.model_copy(update={"weights": str(top / "videomae.pth")}),
            "align": params.align.model_copy(update=short | {"batch": 2}),
            "teacher": params.teacher.model_copy(update=short | {"batch": 4}),
            "machine": Processor(device="cpu", threads=1),
        }
    )
    miniature.build(top / "cogvideox", "cogvideox", seed=0)
    torch.manual_seed(0)
    videomae.save(videomae.VideoMAE(params.encoder), top / "videomae.pth")
    world = World(top, params)
    fill(world)
    return world


def fill(world: World) -> None:
    """Manifests and shards of clips, flow, latents and both targets."""
    rng = torch.Generator().manual_seed(1)
    params, keys = world.params, [f"world-{index:02d}" for index in range(12)]
    grid, row = params.grid("cogvideox"), params.backbones["cogvideox"]
    pin = world.pin("encode", backbone="cogvideox")
    with manifest.making(world.top / "clips" / "0000.jsonl", manifest.Clip, pin=pin) as made:
        with shards.TarWriter(made.path.parent / "0000.tar") as tar:
            for index, key in enumerate(keys):
                frames = np.random.default_rng(index).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
                frames = np.roll(frames.repeat(8, 1).repeat(8, 2).repeat(17, 0), index, 1)
                offset, size = tar.add(f"{key}.mp4", video.encode(frames, row.fps))
                split = "heldout" if index % 3 == 2 else "train"
                made.rows.append(
                    manifest.Clip(key, split, "world", key, "a ball", "0000.tar", offset, size, 17, row.fps, 64, 64)
                )
        made.file("0000.tar")
    n, T, Fm = len(keys), row.text_tokens, grid.motion[0]
    drawn = {
        "flow": shards.end_to_end(
            "flow", [raft.pack(torch.randn(Fm - 1, 2, *params.flow.size, generator=rng)) for _ in keys]
        ),
        "latents": {
            "mean": torch.randn(n, miniature.LATENT_CHANNELS, *grid.latents, generator=rng).half(),
            "prompt": torch.randn(n * T, miniature.TEXT_WIDTH, generator=rng),
            "offsets": torch.arange(n + 1) * T,
        },
        "motion": {"target": torch.randn(n, *grid.motion, params.teacher.channels[1], generator=rng).half()},
        "tokens": {"target": torch.randn(n, *grid.motion, params.encoder.width, generator=rng).half()},
        "flow_video": {"target": torch.randn(n, miniature.LATENT_CHANNELS, *grid.latents, generator=rng).half()},
    }
    rows = {
        "flow": lambda key, index: manifest.Flow(key, "0000.safetensors", index, 1.0),
        "latents": lambda key, index: manifest.Latent(key, "0000.safetensors", index, T),
        "motion": lambda key, index: manifest.Target(key, "0000.safetensors", index),
    }
    rows["tokens"] = rows["flow_video"] = rows["motion"]
    for name, tensors in drawn.items():
        kind = type(rows[name]("", 0))
        with manifest.making(world.top / name / "0000.jsonl", kind, pin=pin) as made:
            shards.write_tensors(made.path.parent / "0000.safetensors", tensors, {"target": name})
            made.file("0000.safetensors")
            made.rows += [rows[name](key, index) for index, key in enumerate(keys)]


SHARDS = {"clips": "clips", "latents": "latents", "targets": "motion"}
GIVEN = ("cogvideox", "latents", "motion", "tokens", "flow_video", "clips", "videomae.pth")


def untouched(world: World) -> dict[Path, str]:
    """What no training may change."""
    files = [path for name in GIVEN for path in [world.top / name, *(world.top / name).rglob("*")] if path.is_file()]
    return {path: manifest.sha256(path) for path in files}


@dataclass(frozen=True)
class Tuned:
    before: dict[Path, str]
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def tuned(world) -> Tuned:
    """Every run of the smoke scale that has a method, trained for two steps."""
    before = untouched(world)
    return Tuned(before, {run: world.align(run) for run, row in world.params.runs.items() if row.method})


def test_every_method_trains_and_changes_the_transformer_and_its_projector_alone(world, tuned):
    stock = CogVideoXTransformer3DModel.from_pretrained(world.top / "cogvideox" / "transformer").state_dict()
    first, trained = {}, {}
    for run, folder in tuned.folders.items():
        row = world.params.runs[run]
        made = manifest.read(folder / "manifest.jsonl", manifest.Weights)
        names = {row.name for row in made.rows}
        aligned = world.params.methods[row.method].target in ("tokens", "motion")
        assert names == {"transformer", "log"} | ({"projector-4", "relations"} if aligned else set())
        assert all(row.step == 2 and made.locate(row.file).exists() for row in made.rows)
        if aligned:
            related = load_file(folder / "relations.safetensors")
            assert set(related) == {"teacher", "before", "after"} and len({of.shape for of in related.values()}) == 1
            assert all(torch.allclose(of.float().diagonal(), torch.ones(len(of)), atol=1e-3) for of in related.values())
            assert not torch.equal(related["before"], related["after"])
        log = lines(folder / "log.jsonl")
        assert [line["step"] for line in log] == [0, 1, 2, 2]
        first[run] = next(line for line in log if "loss" in line)
        trained[run] = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
        assert trained[run].keys() == stock.keys()
        assert not [name for name in stock if torch.equal(stock[name], trained[run][name])], run
        wider = [name for name in stock if stock[name].shape != trained[run][name].shape]
        ends = ["patch_embed.proj.weight", "proj_out.weight", "proj_out.bias"]
        assert sorted(wider) == (sorted(ends) if row.method == "videojam" else [])
        assert made.header.notes["validation"].keys() == {"denoise", "align"}
        (left,) = (world.top / "work" / run).rglob("*.pt")  # the last one, without the optimiser's state
        assert checkpoint.read(left).optimizer is None
    methods = ("ft", "repa", "videorepa", "no_motion", "no_soft", "moalign", "crepa", "videojam")
    assert set(first) == {f"cog-{name}" for name in methods}
    assert len(tuned.before) > 10 and untouched(world) == tuned.before
    once = {line["denoise"] for run, line in first.items() if run != "cog-videojam"}
    assert len(once) == 1, "same clips, noise and weights at the first step"
    assert first["cog-videojam"]["denoise"] == pytest.approx(once.pop(), rel=1e-6)
    assert all(line["zero_tokens"] == 0 for line in first.values())
    assert len({line["align"] for line in first.values()}) == len(first)
    for run, line in first.items():
        lam = world.params.methods[world.params.runs[run].method].lam
        assert line["loss"] == pytest.approx(line["denoise"] + lam * line["align"], rel=1e-5)
    assert first["cog-ft"]["align"] == 0.0
    alike = [run for run, other in trained.items() if run != "cog-videojam" and same(trained["cog-ft"], other)]
    assert alike == ["cog-ft"]
    (untrained,) = align.make_projectors(
        config.AlignPin.load(world.pin("align", run="cog-moalign", seed=0)), *like(world)
    )
    learned = load_file(world.top / "runs" / "cog-moalign" / "projector-4.safetensors")
    assert not any(torch.equal(value, learned[name]) for name, value in untrained.state_dict().items())
    assert learned["space.weight"].shape[0] == world.params.teacher.channels[1]
    tokens = load_file(world.top / "runs" / "cog-no_motion" / "projector-4.safetensors")
    assert tokens["space.weight"].shape[0] == world.params.encoder.width


def test_tuned_folders_are_plain_diffusers(world, tuned):
    """The stock pipeline over the stock class opens what a training wrote, and samples what our sampler samples."""
    row, seen = world.params.backbones["cogvideox"], []
    sampling = row.sampling.model_copy(update={"steps": 2})
    for run, folder in tuned.folders.items():
        if run == "cog-videojam":
            continue
        stock = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
        pipeline = CogVideoXPipeline.from_pretrained(row.weights, transformer=stock)
        pipeline.scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        theirs = pipeline(
            "a ball",
            height=64,
            width=64,
            num_frames=17,
            num_inference_steps=2,
            guidance_scale=sampling.guidance,
            use_dynamic_cfg=sampling.dynamic_guidance,
            generator=torch.Generator().manual_seed(3),
            max_sequence_length=row.text_tokens,
            output_type="pt",
        ).frames
        ours = align.backbones.load(row, transformer=folder / "transformer")
        mine = ours.sample(["a ball"], sampling, [torch.Generator().manual_seed(3)])
        # the stock VAE takes a lone clip through another convolution
        torch.testing.assert_close(mine.transpose(1, 2), theirs, rtol=0, atol=1e-4, msg=run)
        seen.append(theirs)
    assert len(seen) == 7 and not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_a_transformer_sharded_over_two_ranks_is_the_one_of_one_process(world, tuned, tmp_path):
    """Tap, projector, recomputation, validation and export under FSDP2: the same training as `tuned` has."""
    changes = {"sharding": "full", "checkpointing": "full"}
    params = world.params.model_copy(update={"align": world.params.align.model_copy(update=changes)})
    pin, out = tmp_path / "pin.yaml", tmp_path / "manifest.jsonl"
    pin.write_text(config.dump(config.pin(params, "align", run="cog-moalign", seed=0)))
    given = {name: world.top / room / "0000.jsonl" for name, room in SHARDS.items()}
    given |= {"config": pin, "work": tmp_path / "work", "out": out}
    flags = [text for name, path in given.items() for text in (f"--{name}", str(path))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "moalign", "align", *flags], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "weights sharded" in done.stderr
    whole = tuned.folders["cog-moalign"]
    for line, expected in zip(lines(tmp_path / "log.jsonl"), lines(whole / "log.jsonl"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    for file in ("transformer/diffusion_pytorch_model.safetensors", "projector-4.safetensors"):
        ours, theirs = load_file(tmp_path / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.allclose(ours[name], value, atol=1e-5), name
    assert (tmp_path / "transformer/config.json").read_text() == (whole / "transformer/config.json").read_text()


def like(world: World) -> tuple:
    """Grid and training clips, as `align` has them."""
    paths = [[str(world.top / name / "0000.jsonl")] for name in ("clips", "latents", "motion")]
    return world.params.grid("cogvideox"), align.LatentClips(*paths, "train", miniature.TEXT_TOKENS)


def test_targets_of_another_kind_are_refused(world):
    with pytest.raises(Problem, match=r"holds the target 'tokens', and the method of cog-moalign has 'motion'"):
        world.align("cog-moalign", seed=1, targets="tokens")
    with pytest.raises(Problem, match=r"--targets: missing, .* 'motion'"):
        world.align("cog-moalign", targets="none")
    with pytest.raises(Problem, match=r"--targets: given, .* 'none'"):
        world.align("cog-ft", targets="motion")


def test_prompt_dropout_puts_the_empty_prompts_states_in_place(world):
    dropping = world.params.align.model_copy(update={"prompt_dropout": 0.5})
    other = World(world.top, world.params.model_copy(update={"align": dropping}))
    pin = config.AlignPin.load(other.pin("align", run="cog-ft", seed=5))
    grid, clips = like(world)
    empty = align.empty_prompt(pin, grid)
    assert empty.shape == (1, miniature.TEXT_TOKENS, miniature.TEXT_WIDTH)
    assert empty.abs().sum() > 0
    backbone = align.backbones.load(pin.backbone, grid, parts=("transformer",))
    student = align.Student(backbone, nn.ModuleList(), pin, empty)
    prompt = clips[0]["prompt"].expand(200, -1, -1)
    streams = torch.arange(200)
    dropped = student.drop(prompt, streams)
    gone = [torch.equal(row, empty[0]) for row in dropped]
    kept = [torch.equal(row, prompt[0]) for row in dropped]
    assert all(one != two for one, two in zip(gone, kept, strict=True))
    assert 70 < sum(gone) < 130
    assert torch.equal(student.drop(prompt[:50], streams[50:100]), dropped[50:100])
    assert not any("empty" in name for name in student.state_dict())
    plain = align.Student(backbone, nn.ModuleList(), pin, None)
    assert plain.drop(prompt, streams) is prompt


def test_stage_1_learns_the_heads_and_reports_its_baselines(world, monkeypatch):
    folder, encoder = world.top / "teacher", manifest.sha256(world.top / "videomae.pth")
    given = {
        "clips": [str(world.top / "clips" / "0000.jsonl")],
        "flow": [str(world.top / "flow" / "0000.jsonl")],
    }
    seen = []
    load = teacher.FlowClips.__getitem__
    monkeypatch.setattr(teacher.FlowClips, "__getitem__", lambda clips, i: seen.append(clips.keys[i]) or load(clips, i))
    pin = world.pin("teacher")
    teacher.run(pin, work=str(world.top / "work" / "teacher"), out=str(folder / "manifest.jsonl"), **given)
    made = manifest.read(folder / "manifest.jsonl", manifest.Weights)
    assert {row.name for row in made.rows} == {"teacher", "log"}
    assert len(seen) == len(set(seen)) == 12, "each clip is decoded once; afterwards its tokens are in memory"
    notes, log = made.header.notes, lines(folder / "log.jsonl")
    assert notes["validation"].keys() == notes["zero_flow"].keys() == notes["mean_flow"].keys()
    assert notes["validation"].keys() == {"l1", "epe", "epe_moving"}
    validations = {line["step"]: line["val_l1"] for line in log if "val_l1" in line}
    assert list(validations) == [0, 2]
    assert made.rows[0].step == min(validations, key=validations.get)
    assert manifest.sha256(world.top / "videomae.pth") == encoder
    told = json.loads(shards.TensorShard(folder / "teacher.safetensors").metadata["teacher"])
    assert (told["step"], told["channels"]) == (made.rows[0].step, [64, 16])
    head = motion.load(made)
    torch.manual_seed(world.params.teacher.seed)
    start = motion.MotionHead(world.params.encoder.width, world.params.teacher.channels)
    assert made.rows[0].step > 0
    assert not any(torch.equal(value, head.state_dict()[name]) for name, value in start.state_dict().items())
    stored = shards.TensorShard(world.top / "flow" / "0000.safetensors")
    heldout = torch.stack([raft.unpack(stored.ragged("flow", i), world.params.flow.size) for i in (2, 5, 8, 11)])
    assert notes["zero_flow"]["l1"] == pytest.approx(heldout.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("stage, task", [("align", align.Student), ("teacher", teacher.Learner)])
def test_a_stage_stopped_and_resumed_exports_the_same_bytes(world, monkeypatch, stage, task):
    def export(name: str) -> dict[str, dict]:
        folder = world.top / "resumed" / stage / name
        paths = {"work": str(folder / "work"), "out": str(folder / "manifest.jsonl")}
        given = {"flow": "flow"} if stage == "teacher" else {"latents": "latents", "targets": "motion"}
        shard = {flag: [str(world.top / room / "0000.jsonl")] for flag, room in {"clips": "clips", **given}.items()}
        pin = world.pin(stage) if stage == "teacher" else world.pin(stage, run="cog-moalign", seed=0)
        {"align": align, "teacher": teacher}[stage].run(pin, **shard, **paths)
        return manifest.read(folder / "manifest.jsonl", manifest.Weights).header.files

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(task, "forward", interrupted(2, task))
        export("stopped")
    assert export("stopped") == export("whole")


def test_flow_errors_by_hand():
    O = torch.zeros(2, 1, 2, 1, 2)
    O[0, 0, :, 0, 0] = torch.tensor([3.0, 4.0])  # one of four pixels moves, by 5
    by_foreground = {
        foreground: {name: float(a / b) for name, (a, b) in teacher.errors(torch.zeros_like(O), O, foreground).items()}
        for foreground in (1.0, 3.0)
    }
    assert by_foreground[1.0] == pytest.approx({"l1": 7 / 8, "epe": 5 / 4, "epe_moving": 5.0})
    assert by_foreground[3.0] == pytest.approx({"l1": 3 * 7 / (3 * 2 + 2) / 2, "epe": 5 / 4, "epe_moving": 5.0})


def test_features_are_kept_while_there_is_room(world):
    grid, known = world.params.grid("cogvideox"), {}
    encoder = videomae.load(world.params.encoder)
    features = teacher.Features(encoder, grid, known, torch.device("cpu"))
    x0 = torch.rand(2, 3, 17, 64, 64) * 2 - 1
    features.room = math.prod(grid.motion) * world.params.encoder.width * 4
    first = [features({"key": key, "x0": clip}) for key, clip in zip("ab", x0, strict=True)]
    assert list(known) == ["a"]
    assert torch.equal(features({"key": "a"}), first[0])
    assert torch.equal(features({"key": "b", "x0": x0[1]}), first[1])


def test_losses_are_fp32_under_autocast(world):
    pin = config.AlignPin.load(world.pin("align", run="cog-moalign", seed=0))
    grid, clips = like(world)
    backbone = align.backbones.load(pin.backbone, grid, parts=("transformer",))
    student = align.Student(backbone, align.make_projectors(pin, grid, clips), pin, None)
    batch = align.collate([clips[0], clips[1]], torch.tensor([1, 2]))
    plain = student(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = student(batch)
    losses["loss"].backward()
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in student.parameters())
    for name in ("loss", "denoise", "align"):
        loss = losses[name]
        assert loss.item() != plain[name].item(), "not in bf16"
        assert loss.item() == pytest.approx(plain[name].item(), rel=0.02)


# --- processes of their own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment, newest", [("step-8", 6), ("save-9", 8)])
def test_a_killed_training_goes_on_as_if_nothing_had_been(processes, uninterrupted, moment, newest):
    work = finished(processes, "killed")[0] / moment
    assert int(checkpoint.listed(work)[-1].name[:8]) == newest
    assert bool(list(work.glob(".*.tmp"))) == (moment == "save-9")
    train_toy.train(work, **RESUMED)
    assert_equals(work, uninterrupted)
    assert not list(work.glob(".*.tmp"))


def test_two_ranks_equal_one_process_and_name_a_clip_that_either_holds(processes, tmp_path):
    work, output = finished(processes, "ranks")
    train_toy.train(tmp_path)
    assert_close(tmp_path, work / "whole")
    for sharding in ("none", "full"):
        told = f"Problem, {sharding}: toy: step 3: loss or gradient is not finite with train-7; "
        assert output.count(told) == 2, output


def test_two_ranks_times_two_micro_batches_of_two_equal_one_of_eight(processes, eight):
    work, _ = finished(processes, "ranks")
    assert_close(work / "two", eight)


def test_sharded_weights_equal_whole_ones(processes):
    """FSDP2 = DDP, on two ranks, over 20 steps, checkpoints included."""
    work, output = finished(processes, "ranks")
    assert "(micro-batch, accumulation, ranks; weights sharded)" in output
    assert_close(work / "sharded", work / "two", split=False)
    one, other = (checkpoint.read(checkpoint.listed(work / name)[0]) for name in ("sharded", "two"))
    assert one.step == other.step < 20
    assert one.optimizer["param_groups"] == other.optimizer["param_groups"]
    for index, moments in other.optimizer["state"].items():
        for name, value in moments.items():
            assert torch.allclose(one.optimizer["state"][index][name], value, rtol=1e-4, atol=1e-9)


def test_a_training_goes_on_with_other_ranks_and_another_sharding(processes, eight):
    """Two ranks, then the same sharded; and sharded, then one process with whole weights."""
    work, _ = finished(processes, "ranks")
    assert_close(work / "there", eight)
    assert checkpoint.read(checkpoint.listed(work / "back")[-1]).step == 10
    train_toy.train(work / "back", train_toy.SPLIT)
    assert_close(work / "back", eight)


def test_two_nodes_of_which_one_is_lost_end_as_if_nothing_had_been(nodes, processes):
    agents, work = nodes
    outputs = [agent.communicate(timeout=PATIENCE)[0] for agent in agents]
    assert agents[1].returncode == -signal.SIGKILL, outputs[1]
    assert agents[0].returncode > 0, outputs[0]
    assert checkpoint.read(checkpoint.listed(work / "whole")[-1]).step == 6
    for agent in start_nodes(work):
        output, _ = agent.communicate(timeout=PATIENCE)
        assert agent.returncode == 0, output
    assert_equals(work / "whole", finished(processes, "ranks")[0] / "whole")
