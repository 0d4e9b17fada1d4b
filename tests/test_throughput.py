"""`moalign throughput train`: what it counts is what runs, and its table has every figure."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moalign import config
from moalign.errors import Problem
from moalign.stages import throughput
from moalign.stages.align import collate
from moalign.train.loop import Reader

PARAMS = Path(__file__).parents[1] / "params.yaml"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_recomputation_at_the_papers_size():
    """Ten blocks of CogVideoX-2B at 49 x 480 x 720, one clip: what full checkpointing costs, and by hand."""
    params = config.load(PARAMS, scale="paper")
    pin = config.pin(params, "align", run="cog-moalign", seed=0)
    width, short = params.teacher.channels[1], {"backbone": pin.backbone.model_copy(update={"blocks": 10})}
    pin = pin.model_copy(update=short | {"align": pin.align.model_copy(update={"layer": (6,)})})
    none, model = throughput.count(pin, width, 1, "none")
    attention, _ = throughput.count(pin, width, 1, "keep_attention")
    full, _ = throughput.count(pin, width, 1, "full")
    assert none < attention < full
    assert none / full <= 0.78
    tokens, D = 13 * 30 * 45 + 226, 1920
    layer = tokens * 12 * D**2 + 2 * tokens**2 * D  # multiply-adds of a block: q, k, v, out and 4 D wide MLP; scores
    assert model == pytest.approx(3 * 10 * 2 * layer, rel=0.01)
    assert none - model == pytest.approx(10 * 2 * tokens**2 * D, rel=0.02), "the scores again, on the way back"


@pytest.mark.parametrize("checkpointing", throughput.CHECKPOINTING)
def test_what_is_counted_is_what_runs(tmp_path, checkpointing):
    params = config.load(PARAMS, scale="smoke")
    pin = config.pin(params, "align", run="cog-moalign", seed=0)
    width = params.teacher.channels[1]
    clips = throughput.cached(tmp_path, pin, width)["aligned"]
    backbone = throughput.hollow(pin.backbone, config.make_grid(pin.backbone, pin.encoder), CPU)
    backbone.checkpoint(checkpointing)
    student = throughput.student(backbone, pin, width, CPU)
    batch = Reader(collate, CPU)(clips, [3, 1], 0, 0)
    assert batch.keys == ["03", "01"] and batch.target.shape[-1] == width
    with FlopCounterMode(display=False, custom_mapping=throughput.ON_CPU) as counter:
        student(batch)["loss"].backward()
    assert throughput.count(pin, width, 2, checkpointing)[0] == counter.get_total_flops()


def test_the_table(tmp_path, capsys):
    out = tmp_path / "figures.json"
    throughput.train(
        params=str(PARAMS), scale="smoke", steps=1, micro=[1, 2], checkpointing=["none", "full"], out=str(out)
    )
    found = json.loads(out.read_text())
    assert [(row["micro"], row["checkpointing"]) for row in found["rows"]] == [
        (1, "none"),
        (2, "none"),
        (1, "full"),
        (2, "full"),
    ]
    for row in found["rows"]:
        assert 0 < row["waiting"] < 1 and -1 < row["alignment"] < 1
        assert row["flops"] / row["seconds"] < 2 * found["peak"]
    shown = capsys.readouterr().err
    assert shown.count("\n    1  none") == 2, "as it is measured, and in the table"
    assert "measured, products of" in shown


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"run": "cog-base"}, r"--run: 'cog-base'; allowed: cog-repa"),
        ({"run": "cog-videojam"}, r"--run: 'cog-videojam'; allowed"),
        ({"checkpointing": ["half"]}, r"--checkpointing: 'half'; allowed: none, keep_attention, full"),
        ({"steps": 0}, r"--steps: 0; a number of at least 1"),
        ({"micro": [1, 0]}, r"--micro: 0; a number of at least 1"),
    ],
)
def test_wrong_options_are_named(given, says):
    with pytest.raises(Problem, match=says):
        throughput.train(params=str(PARAMS), scale="smoke", **given)
