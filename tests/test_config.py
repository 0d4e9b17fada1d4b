"""params.yaml: every scale resolves, every run and table too, and each kind of mistake is refused with its key."""

import copy
import json
import math
from pathlib import Path

import pytest
import yaml

from moalign import config
from moalign.errors import Problem

TOP = Path(__file__).parents[1]
SCALES = ["smoke", "miniature", "paper"]


@pytest.fixture
def raw():
    """The paper's parameters, to be broken."""
    return copy.deepcopy(config.read_yaml(TOP / "params.yaml"))


def broken(raw: dict, path: str, value) -> str:
    """The message that one changed value earns."""
    *parents, last = path.split(".")
    for part in parents:
        raw = raw[part] if isinstance(raw, dict) else raw[int(part)]
    raw[last] = value
    return path


def refused(raw: dict) -> str:
    with pytest.raises(Problem) as caught:
        config.parse(raw)
    return str(caught.value)


@pytest.mark.parametrize("scale", [*SCALES, "mine"])
def test_every_row_of_every_table_has_its_pins(scale):
    params = config.load(TOP / "params.yaml", scale=scale)
    assert params.rows()
    for run, bench, seed in params.rows():
        for stage in ("sample", "bench"):
            made = config.pin(params, stage, run=run, seed=seed, bench=bench)
            assert made.revision == config.REVISIONS[stage]
        if params.runs[run].method:
            assert config.pin(params, "align", run=run, seed=seed).align.layer == params.layers(run)


def test_a_pin_survives_its_file(tmp_path):
    params = config.load(TOP / "params.yaml", scale="paper")
    made = config.pin(params, "align", run="cog-videorepa", seed=0)
    (tmp_path / "pin.yaml").write_text(config.dump(made))
    read = config.AlignPin.load(tmp_path / "pin.yaml")
    assert read == made
    assert math.isinf(read.method.tau)


def test_the_first_line_names_the_scale():
    assert (TOP / "params.yaml").read_text().startswith("scale: smoke")


def test_an_edit_reaches_only_the_pins_that_use_it():
    before = config.load(TOP / "params.yaml", scale="paper")
    methods = {**before.methods, "moalign": before.methods["moalign"].model_copy(update={"tau": 5.0})}
    after = before.model_copy(update={"methods": methods})
    for run, bench, seed in before.rows():
        if before.runs[run].method:
            same = config.pin(before, "align", run=run, seed=seed) == config.pin(after, "align", run=run, seed=seed)
            assert same == (before.runs[run].method != "moalign")
        names = {"run": run, "seed": seed, "bench": bench}
        assert config.pin(before, "sample", **names) == config.pin(after, "sample", **names)
    for stage in ("subset", "synth", "flow", "teacher"):
        assert config.pin(before, stage) == config.pin(after, stage)


def test_the_number_of_ranks_reruns_nothing():
    before = config.load(TOP / "params.yaml", scale="paper")
    after = before.model_copy(update={"machine": before.machine.model_copy(update={"processes": 8})})
    for stage in ("synth", "flow", "teacher"):
        assert config.pin(before, stage) == config.pin(after, stage)
    for run, bench, seed in before.rows():
        for stage in ("align", "sample", "bench") if before.runs[run].method else ("sample", "bench"):
            names = {"run": run, "seed": seed, "bench": bench}
            assert config.pin(before, stage, **names) == config.pin(after, stage, **names)


def test_the_primary_contrast_reaches_the_report_alone():
    for scale in SCALES:
        before = config.load(TOP / "params.yaml", scale=scale)
        assert before.table_of_primary() == "table1"
        after = before.model_copy(update={"primary": before.primary.model_copy(update={"base": "cog-ft"})})
        for run, bench, seed in before.rows():
            for stage in ("align", "sample", "bench") if before.runs[run].method else ("sample", "bench"):
                names = {"run": run, "seed": seed, "bench": bench}
                assert config.pin(before, stage, **names) == config.pin(after, stage, **names)
        for stage in ("subset", "synth", "flow", "draw", "teacher"):
            assert config.pin(before, stage) == config.pin(after, stage)
        assert config.pin(before, "report") != config.pin(after, "report")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("methods.moalign.tau", 0.0, ["methods.moalign.tau", "greater than 0", "0.0"]),
        ("methods.moalign.tau", None, ["methods.moalign.tau", "missing", "soft_trd"]),
        ("methods.repa.tau", 3.0, ["methods.repa.tau", "remove it"]),
        ("methods.moalign.loss", "soft", ["methods.moalign.loss", "soft_trd"]),
        ("methods.moalign.target", "none", ["methods.moalign", "none"]),
        ("subset.sed", 3, ["subset.sed", "unknown key", "did you mean 'seed'"]),
        ("subset.clips", "many", ["subset.clips", "integer", "many"]),
        ("align.lr", "2e-6", ["align.lr", "valid number", "write 1.0e-4"]),
        ("align.layer", 31, ["align.layer", "31", "allowed: 1-30"]),
        ("runs.cog-moalign-l10.layer", 40, ["runs.cog-moalign-l10.layer", "40", "allowed: 1-30"]),
        ("runs.cog-moalign.method", "moalgn", ["runs.cog-moalign.method", "did you mean 'moalign'"]),
        ("runs.cog-moalign.backbone", "cog", ["runs.cog-moalign.backbone", "allowed: cogvideox"]),
        ("runs.cog-static.still_of", "cog-ft", ["runs.cog-static.still_of", "not trained"]),
        ("tables.table1.rows", ["cog-bse"], ["tables.table1.rows.0", "did you mean 'cog-base'"]),
        ("tables.table1.bench", "videofy2", ["tables.table1.bench", "did you mean 'videophy2'"]),
        ("backbones.cogvideox.frames", 48, ["backbones.cogvideox.frames", "48", "8n+1", "try 41"]),
        ("backbones.wan.frames", 50, ["backbones.wan.frames", "50", "4n+1", "try 49"]),
        ("backbones.cogvideox.size", [480, 725], ["backbones.cogvideox.size", "width 725", "multiple of 16"]),
        ("backbones.cogvideox.size", [320, 720], ["backbones.cogvideox.size", "20 x 45", "neither 1 x nor 3 x"]),
        ("backbones.cogvideox.fps", 4, ["backbones.cogvideox.frames", "longer than the stored proxies"]),
        ("encoder.size", [160, 256], ["encoder.size", "256", "allowed: 240"]),
        ("flow.size", [120, 192], ["flow.size", "120", "at least 128"]),
        ("sources.open-sora-plan.make", "world", ["sources.open-sora-plan", "either"]),
        ("align.prompt_dropout", 1.5, ["align.prompt_dropout", "less than or equal to 1"]),
        ("teacher.betas", [0.9], ["teacher.betas"]),
        ("wandb.mode", "of", ["wandb.mode", "offline"]),
        ("align.train_on", [], ["align.train_on", "at least 1"]),
        ("tables", {}, ["tables", "nothing would be run"]),
        ("backbones.wan.sampling.scheduler", "dpm", ["backbones.wan.sampling.scheduler", "allowed: unipc, euler"]),
        ("backbones.cogvideox.sampling.shift", 3.0, ["backbones.cogvideox.sampling.shift", "set it to null"]),
        ("backbones.wan.sampling.dynamic_guidance", True, ["dynamic_guidance", "set it to false"]),
        ("align.batch", 30, ["align.batch", "30", "machine.processes, 4"]),
        ("align.micro_batch", 3, ["align.micro_batch", "3", "8 clips", "or null"]),
        ("align.ema", 1.0, ["align.ema", "less than 1"]),
        ("align.betas", [0.9, 1.0], ["align.betas", "below 1"]),
        ("align.lr", float("inf"), ["align.lr", "finite"]),
        ("encoder.native", [15, 224, 224], ["encoder.native", "tubelet"]),
        ("subset.min_aspect", 3.0, ["subset.min_aspect", "above subset.max_aspect"]),
        ("seeds", [0, 0], ["seeds", "twice"]),
        ("runs.a/b", {"backbone": "wan"}, ["runs.a/b", "folder"]),
        ("runs.cog-static.backbone", "wan", ["runs.cog-static.backbone", "cog-base"]),
        ("synth.backbone", "cogvideox", ["synth.backbone", "no wan backbone"]),
        ("primary.bench", "videofy2", ["primary.bench", "did you mean 'videophy2'"]),
        ("primary.ours", "cog-moalgn", ["primary.ours", "did you mean 'cog-moalign'"]),
        ("primary.base", "cog-moalign", ["primary.base", "`ours` too"]),
        ("primary.base", "wan-base", ["primary: no table", "'wan-base'", "add the missing run"]),
        ("primary.metric", "joint", ["primary.metric", "'Joint'"]),
    ],
)
def test_a_mistake_is_refused_with_its_key(raw, path, value, says):
    broken(raw, path, value)
    message = refused(raw)
    for words in says:
        assert words in message, message


def test_every_mistake_is_listed_at_once(raw):
    broken(raw, "align.stepz", 3)
    broken(raw, "teacher.batch", -1)
    message = refused(raw)
    assert "align.stepz" in message
    assert "teacher.batch" in message


def test_a_missing_section_is_named(raw):
    del raw["flow"]
    assert "flow: missing" in refused(raw)


def test_an_unknown_scale_lists_the_known(tmp_path):
    with pytest.raises(Problem, match="allowed: paper, mine, miniature, smoke"):
        config.load(TOP / "params.yaml", scale="papr")


def test_broken_yaml_names_the_line(tmp_path):
    (tmp_path / "params.yaml").write_text("scale: smoke\nsubset: {seed: 1\nflow: 2\n")
    with pytest.raises(Problem, match=r"params.yaml: not valid YAML.*line"):
        config.load(tmp_path / "params.yaml")


def test_merging_goes_key_by_key_and_null_removes_a_row():
    under = {"a": {"x": 1, "y": {"z": 2}}, "b": {"r": {"k": 1}}, "c": [1, 2]}
    over = {"a": {"y": {"z": 3}}, "b": {"r": None}, "c": [3]}
    assert config.merge(under, over) == {"a": {"x": 1, "y": {"z": 3}}, "b": {}, "c": [3]}


@pytest.mark.parametrize("scale", ["smoke", "miniature", "mine"])
def test_a_scale_says_only_what_changes(scale):
    """A value that repeats what lies below it would be a second place for one fact."""

    def repeats(under, over, path=""):
        for key, value in over.items():
            if isinstance(value, dict) and isinstance(under.get(key), dict):
                yield from repeats(under[key], value, f"{path}{key}.")
            elif key in under and under[key] == value:
                yield path + key

    overlay = config.read_yaml(TOP / "scales" / f"{scale}.yaml")
    under = config.read_yaml(TOP / "params.yaml")
    if base := overlay.pop("base", None):
        under = config.merge(under, config.read_yaml(TOP / "scales" / f"{base}.yaml"))
    assert list(repeats(under, overlay)) == []


def test_the_schema_is_current_and_editors_are_pointed_to_it():
    stored = json.loads((TOP / "resources/params.schema.json").read_text())
    assert stored == json.loads(json.dumps(config.schema())), "run `make schema`"
    assert "resources/params.schema.json" in (TOP / "params.yaml").read_text()


def test_yaml_comments_point_to_decisions_that_exist():
    method = (TOP / "docs/method.md").read_text()
    for line in (TOP / "params.yaml").read_text().splitlines():
        comment = line.partition("#")[2]
        for word in comment.replace("(", " ").replace(")", " ").replace(",", " ").split():
            if word[0] == "A" and word[1:].isdigit():
                assert f"| {word} " in method, f"{word} of params.yaml has no row in docs/method.md"


def test_params_yaml_is_plain_yaml():
    assert yaml.safe_load((TOP / "params.yaml").read_text())["scale"] == "smoke"
