"""params.yaml as types: loading, merging a scale over it, checking, and cutting each job's share, its *pin*.

The Snakefile loads everything here before it queues a job, so a mistake stops in a second with the key, the value and
what is allowed. A pin is what a job reads instead of params.yaml: its own share, resolved, and its stage's `revision`.
Needs PyYAML and pydantic, nothing heavier.
"""

import difflib
import json
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from moalign.errors import Problem
from moalign.grid import Grid

# Bump a stage's number when a change of code changes its results: it is part of the pin, so what depends on it reruns.
REVISIONS = {
    "collect": 1,
    "subset": 1,
    "synth": 3,
    "flow": 1,
    "draw": 1,
    "encode": 3,
    "teacher": 2,
    "targets": 2,
    "align": 3,
    "sample": 3,
    "bench": 4,
    "report": 8,
    "miniature": 2,
}

SUITES = ("videophy", "videophy2", "vbench", "vbench2")  # benchmarks whose own rater `moalign bench` asks

FROZEN = "MOALIGN_PARAMS"  # environment variable: path of a submission's parameters

Count = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tau = Annotated[float, Field(gt=0)]  # may be .inf
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[tuple[Count, Count], Strict(False)]  # height, width in pixels
Counts = Annotated[tuple[Count, ...], Strict(False), Field(min_length=1)]
Names = Annotated[tuple[str, ...], Strict(False)]
Betas = Annotated[tuple[Share, Share], Strict(False)]
Layers = Count | Counts
Precision = Literal["fp32", "bf16"]
TargetName = Literal["none", "tokens", "motion", "flow_video"]
LossName = Literal["zero", "cosine", "crepa", "soft_trd", "trd", "joint"]


class Section(BaseModel):
    """One section of params.yaml: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Source(Section):
    """A collection of videos in Open-Sora-Plan's layout, or the recipe of one that this repo makes."""

    make: Literal["world", "footage"] | None = None
    """made here: `world` simulates and renders, `footage` cuts the clips that a Python package ships"""
    root: str | None = None
    """folder that the annotations' paths start from"""
    annotations: str | None = None
    """JSON list of rows: path, cap, and where known resolution, fps, num_frames, duration, aesthetic, cut"""
    clips: Count | None = None
    """world: clips to render"""
    seed: Natural = 0
    """world: seed"""


class Subset(Section):
    """Which clips of the sources are used (Sec. 4.1)."""

    seed: Natural
    clips: Count
    reserve: Annotated[float, Field(ge=0)]
    """spare clips per shard, as a share of it"""
    shard: Count
    """clips per shard"""
    heldout: Annotated[float, Field(ge=0, lt=1)]
    """share held out, by source video"""
    frames: Count
    """frames of the stored proxy"""
    fps: Positive
    short_side: Annotated[int, Field(gt=0, multiple_of=16)]  # H.264's macroblocks
    """pixels of the proxy's shorter side"""
    max_aspect: Positive
    min_aspect: Positive
    min_seconds: Annotated[float, Field(ge=0)]
    max_seconds: Positive
    min_short_side: Count
    min_fps: Positive
    min_aesthetic: float

    @property
    def shards(self) -> int:
        return math.ceil(self.clips / self.shard)


class Synth(Section):
    """Synthetic clips from a Wan model, prompts from the real subset's captions (Sec. 4.1)."""

    backbone: str
    seed: Natural
    clips: Count
    shard: Count

    @property
    def shards(self) -> int:
        return math.ceil(self.clips / self.shard)


class Flow(Section):
    """RAFT's optical flow O, the target of stage 1 (Sec. 3.2, A.3)."""

    weights: str
    model: Literal["raft_large", "raft_small"]
    size: Size
    updates: Count
    reading: Literal["stride2", "adjacent", "sum"]


class Encoder(Section):
    """The frozen video encoder V (VideoMAEv2)."""

    weights: str
    depth: Count
    width: Count
    """D_v"""
    heads: Count
    patch: Count
    tubelet: Count
    native: Annotated[tuple[Count, Count, Count], Strict(False)]
    """frames, height, width that its position table was made for"""
    size: Size
    """of the frames that it sees"""


class Optimiser(Section):
    """AdamW and the length of a training."""

    steps: Count
    batch: Count
    """clips per step over all processes"""
    lr: Positive
    betas: Betas
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Natural
    """steps of linear warm-up"""
    schedule: Literal["constant", "linear"]
    """after the warm-up: constant, or falling in a line to 0 at the last step"""
    clip: Positive
    """largest norm of the gradient"""
    precision: Precision
    validate_every: Count
    save_every: Count
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """decay of a running mean of the weights, which is then validated and exported in their place; null: none"""
    micro_batch: Count | None = None
    """clips of one forward pass; null: as many as the device has use for"""
    sharding: Literal["none", "full"] = "none"
    """what each of several processes keeps: all weights (DDP), or its part of weights and moments (FSDP2)"""


class Teacher(Optimiser):
    """Stage 1: the motion subspace M_psi and its flow decoder F_omega (Eq. 3-4, A.3)."""

    backbone: str
    """whose clips it learns on"""
    channels: Annotated[tuple[Count, Count], Strict(False)]
    """M_psi: hidden width, D_m"""
    decoder: Annotated[tuple[Count, Count, Count], Strict(False)]
    """F_omega's widths"""
    seed: Natural
    foreground: Positive
    """weight of moving pixels in Eq. 4"""


class Align(Optimiser):
    """Stage 2: fine-tuning with the alignment loss (Eq. 5-9, A.4)."""

    layer: Layers
    """block whose output is aligned, counted from 1; a list aligns several, each with a projector of its own"""
    checkpointing: Literal["none", "keep_attention", "full"]
    """what is computed again on the way back to save memory: nothing, all but attention, every block"""
    prompt_dropout: Share
    projector: Literal["conv", "mlp"]
    hidden: Count
    train_on: Annotated[tuple[Literal["real", "synth"], ...], Strict(False), Field(min_length=1)]


class Sample(Section):
    """Sampling for the benchmarks (Sec. 5.1)."""

    seed: Natural


class Sampling(Section):
    """How a backbone draws a video."""

    steps: Count
    guidance: Positive
    dynamic_guidance: bool
    """CogVideoX's cosine schedule of the guidance"""
    scheduler: Literal["ddim", "dpm", "unipc", "euler"]
    shift: Positive | None
    """flow shift; null keeps the checkpoint's"""
    negative_prompt: str


class Backbone(Section):
    """A text-to-video diffusion transformer with its VAE and text encoder."""

    family: Literal["cogvideox", "wan"]
    weights: str
    """hub name, or a folder in the hub's layout"""
    revision: str | None = None
    """commit of the hub name; null takes the newest"""
    blocks: Count
    width: Count
    """channels of a block"""
    stride: Annotated[tuple[Count, Count], Strict(False)]
    """of the VAE: time, space"""
    patch: Count
    frames: Count
    size: Size
    fps: Positive
    text_tokens: Count
    shift: Positive | None = None
    """wan: shift of the training noise level"""
    sampling: Sampling | None = None


class Method(Section):
    """What Eq. 9 adds to the denoising loss."""

    target: TargetName
    loss: LossName
    lam: Annotated[float, Field(ge=0)] = 0.0
    """lambda"""
    tau: Tau | None = None
    """of Eq. 7, in motion frames; .inf is the unweighted loss. Of crepa: of the weight of neighbouring frames"""
    margin: Annotated[float, Field(ge=0)] | None = None
    """of VideoREPA's released loss"""
    denominator: Literal["all", "off_diagonal"] = "all"
    """soft_trd: what Eq. 8's temporal mean is taken over, all token pairs or those between frames"""
    flow_dropout: Share | None = None
    """joint: share of clips whose flow half is hidden from the model, so that guidance works"""
    inner_guidance: Annotated[float, Field(ge=0)] | None = None
    """joint: weight of the guidance away from a hidden flow half, over the first half of the sampling steps"""


class Run(Section):
    """One row of a table: a backbone, and what is done to it."""

    backbone: str
    method: str | None = None
    layer: Layers | None = None
    """in place of align.layer"""
    still_of: str | None = None
    """static control: the first frames of this run's videos, repeated"""


class Asked(Section):
    """The videos that a bench asks for."""

    suite: Literal["lines", "videophy", "videophy2", "vbench", "vbench2"] = "lines"
    """whose prompt file `prompts` is; lines: one prompt to a line"""
    prompts: str
    variant: Literal["short", "extended"] = "short"
    """what the model is given; raters see the short prompt"""
    extended: str | None = None
    """file of the longer texts, a line to each prompt; VideoPhy2's own file has them beside its prompts"""
    videos: Count
    """of each prompt"""
    more: dict[str, Count] = {}
    """of a prompt that is rated on this dimension"""
    shards: Count = 1
    """jobs that share a run's videos"""


class Bench(Asked):
    """Prompts, videos of each, and who rates them."""

    raters: Annotated[
        tuple[Literal["motion", "physics", "videophy", "videophy2", "vbench", "vbench2", "codec"], ...],
        Strict(False),
        Field(min_length=1),
    ]
    rules: str | None = None
    """for the rater `physics`, which needs it: what `moalign judge rules` measured; for `videophy2`: a csv of `caption`
    and `rule`, laws of physics that its rater is asked about one by one"""


class Rater(Section):
    """A benchmark's own rater, in an environment of its own: files cross the border, nothing is imported."""

    python: str
    """interpreter of its environment (envs/), or of one that you have"""
    code: str | None = None
    """checkout of its repository"""
    weights: str | None = None
    """folder of its checkpoint"""
    dimensions: Annotated[tuple[str, ...] | None, Strict(False)] = None
    """of VBench, VBench-2.0: the only ones that are rated, and then without a total; null: all"""


class Table(Section):
    """A table of the paper: its runs, in order."""

    title: str
    bench: str
    rows: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]


class Primary(Section):
    """The one comparison that is planned before any run, so that its p needs no adjustment: `ours` minus `base`."""

    bench: str
    metric: Literal["SA", "PC", "Joint"]
    ours: str
    base: str


class Report(Section):
    """The page of results."""

    prompts: Count
    """rows of the video grid"""


class Wandb(Section):
    """Where the training curves are mirrored; the JSON-lines log is always written."""

    mode: Literal["offline", "online", "disabled"]
    project: str


class Processor(Section):
    """What one process computes with."""

    device: Literal["cpu", "cuda"]
    threads: Count
    """CPU threads of one process"""


class Machine(Processor):
    """What a job may use."""

    processes: Count
    """ranks of one training, one per GPU; no pin has them, so that editing them reruns nothing"""


class Fit(Section):
    """Length and pace of one pretraining."""

    steps: Count
    batch: Count
    lr: Positive


class Autoencode(Fit):
    """Pretraining of a VAE."""

    crop: Annotated[tuple[Count, Count, Count], Strict(False)]
    """frames, height, width of the pieces that it learns on"""


class Pretraining(Section):
    """How the small models in resources/miniature were made: `snakemake --profile local miniature_models`."""

    seed: Natural
    collection: Natural
    """seed of the world that they learn from; no source of a scale uses it"""
    clips: Count
    wrong: Share
    """share of wrong-physics twins among the clips that the video models learn from"""
    prompt_dropout: Share
    """share of empty prompts, so that guidance works"""
    mask: Share
    """share of the encoder's tokens that it must fill in"""
    cogvideox_vae: Autoencode
    cogvideox: Fit
    cogvideox_decoder: Autoencode
    """goes on after the transformer, so that its latents stay"""
    wan_vae: Autoencode
    wan: Fit
    videomae: Fit
    raft: Fit


class Params(Section):
    """params.yaml with its scale merged over it."""

    scale: str
    sources: dict[str, Source]
    subset: Subset
    synth: Synth
    flow: Flow
    encoder: Encoder
    teacher: Teacher
    seeds: Annotated[tuple[Natural, ...], Strict(False), Field(min_length=1)]
    align: Align
    sample: Sample
    backbones: dict[str, Backbone]
    methods: dict[str, Method]
    runs: dict[str, Run]
    benches: dict[str, Bench]
    raters: dict[Literal["videophy", "videophy2", "vbench", "vbench2"], Rater] = {}
    tables: dict[str, Table]
    primary: Primary | None = None
    report: Report
    wandb: Wandb
    machine: Machine
    pretraining: Pretraining | None = None

    def grid(self, backbone: str) -> Grid:
        """The frame and token arithmetic of a backbone beside the teacher."""
        return make_grid(self.backbones[backbone], self.encoder)

    def layers(self, run: str) -> tuple[int, ...]:
        """The blocks that a run aligns, counted from 1."""
        layer = self.runs[run].layer or self.align.layer
        return (layer,) if isinstance(layer, int) else layer

    def seeds_of(self, run: str) -> tuple[int, ...]:
        """Training seeds of a run; one without a training has seed 0 alone."""
        return self.seeds if self.runs[run].method else (0,)

    def trainings(self) -> list[tuple[str, int]]:
        """(run, seed) of every training behind a table, once each."""
        return list(dict.fromkeys((run, seed) for run, _, seed in self.rows() if self.runs[run].method))

    def targets(self) -> list[tuple[str, str]]:
        """(backbone, target) that the trainings are aligned to, once each."""
        rows = [self.runs[run] for run, _ in self.trainings()]
        pairs = [(row.backbone, self.methods[row.method].target) for row in rows]
        return list(dict.fromkeys(pair for pair in pairs if pair[1] != "none"))

    def samples(self, run: str, bench: str, seed: int | str) -> list[str]:
        """Manifests of a run's videos for a bench, one for each shard, below results/SCALE."""
        return [f"samples/{run}/s{seed}/{bench}/{shard:04d}.jsonl" for shard in range(self.benches[bench].shards)]

    def table_of_primary(self) -> str | None:
        """The first table that holds both runs of the primary contrast."""
        for name, table in self.tables.items() if self.primary else ():
            if table.bench == self.primary.bench and {self.primary.ours, self.primary.base} <= set(table.rows):
                return name
        return None

    def rows(self) -> list[tuple[str, str, int]]:
        """(run, bench, seed) of every row of every table, once each, in the tables' order."""
        found = {}
        for table in self.tables.values():
            for run in table.rows:
                for seed in self.seeds_of(run):
                    found[run, table.bench, seed] = None
        return list(found)


def make_grid(backbone: Backbone, encoder: Encoder) -> Grid:
    """Grid of a backbone beside the teacher."""
    return Grid(
        frames=backbone.frames,
        height=backbone.size[0],
        width=backbone.size[1],
        stride=backbone.stride,
        patch=backbone.patch,
        teacher_height=encoder.size[0],
        teacher_patch=encoder.patch,
        teacher_tubelet=encoder.tubelet,
    )


def read_yaml(path: Path) -> dict:
    """A YAML file whose top is a mapping; Problem names the line where it is not."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise Problem(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise Problem(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    return data


def merge(under: dict, over: dict) -> dict:
    """`over` laid upon `under`, mapping by mapping; null removes a key that is there."""
    merged = dict(under)
    for key, value in over.items():
        if value is None and isinstance(merged.get(key), dict):
            del merged[key]
        elif isinstance(value, dict):
            merged[key] = merge(merged[key] if isinstance(merged.get(key), dict) else {}, value)
        else:
            merged[key] = value
    return merged


def load(path: str | Path = "params.yaml", **changes: Any) -> Params:
    """params.yaml with the scale that it names merged over it, checked. `changes` replace top-level keys."""
    path = Path(path)
    raw = {**read_yaml(path), **changes}
    scale = raw.get("scale")
    folder = path.parent / "scales"
    known = ["paper", *sorted(file.stem for file in folder.glob("*.yaml"))]
    if scale not in known:
        raise Problem(f"{path}: scale: {scale!r} is not a scale; allowed: {', '.join(known)}")
    overlays: list[dict] = []
    name = scale
    while name and name != "paper":
        overlay = read_yaml(folder / f"{name}.yaml")
        name = overlay.pop("base", None)
        overlays.insert(0, overlay)
    for overlay in overlays:
        raw = merge(raw, overlay)
    return parse(raw, str(path))


def freeze(path: str) -> None:
    """Tell this process's jobs, on whatever node, which file holds the parameters that they were submitted with."""
    os.environ[FROZEN] = path


def frozen() -> Params | None:
    """The parameters that this job was submitted with; None where nobody froze any."""
    path = os.environ.get(FROZEN)
    return parse(read_yaml(Path(path)), path) if path else None


def parse(raw: dict, path: str = "params.yaml") -> Params:
    """Typed and checked parameters, or a Problem that lists every mistake."""
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise Problem(explain(error, Params, path)) from None
    checks = (_check_sources, _check_backbones, _check_numbers, _check_methods, _check_runs)
    for check in (*checks, _check_benches, _check_tables, _check_primary):
        check(params, path)
    return params


def explain(error: ValidationError, model: type[BaseModel], path: str) -> str:
    """pydantic's findings, one line each: key, what is wrong, the value, the nearest allowed key."""
    lines = []
    for item in error.errors(include_url=False):
        *parents, last = item["loc"]
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            allowed = _keys(model, parents)
            near = difflib.get_close_matches(str(last), allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
            lines.append(f"{path}: {key}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{path}: {key}: missing; a value is needed")
        else:
            shown = json.dumps(item["input"], ensure_ascii=False, default=str)
            lines.append(f"{path}: {key}: {item['msg']}, found {shown}")
            if isinstance(item["input"], str) and "number" in item["msg"]:
                lines[-1] += " (a text; write 1.0e-4 for 1e-4)"
    return "\n".join(lines)


def _keys(model: type[BaseModel], parents: list) -> list[str]:
    """Keys allowed under a path of params.yaml."""
    for part in parents:
        if part in model.model_fields:
            kinds = [model.model_fields[part].annotation]
            while not any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
                kinds = [inner for kind in kinds for inner in get_args(kind)]
                if not kinds:
                    return []
            model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


def _known(name: str, table: dict, key: str, path: str) -> None:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise Problem(f"{path}: {key}: no such row, {name!r}; {hint}allowed: {', '.join(table)}")


def _check_sources(params: Params, path: str) -> None:
    if not params.sources:
        raise Problem(f"{path}: sources: none; name at least one collection of videos")
    for name, source in params.sources.items():
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII) or name == "synth":
            raise Problem(
                f"{path}: sources.{name}: a name is made of letters, digits, '_', '-' and '.', and is not 'synth'"
                " (the synthetic clips' own); rename it"
            )
        given = source.root is not None and source.annotations is not None
        if given == (source.make is not None):
            raise Problem(f"{path}: sources.{name}: give either `root` and `annotations`, or `make`")
        if source.make == "world" and source.clips is None:
            raise Problem(f"{path}: sources.{name}.clips: missing; say how many clips the world renders")


def _check_backbones(params: Params, path: str) -> None:
    for key in ("synth", "teacher"):
        _known(getattr(params, key).backbone, params.backbones, f"{key}.backbone", path)
    writer = params.backbones[params.synth.backbone]
    for name, row in params.backbones.items():
        key = f"{path}: backbones.{name}"
        if row.sampling is None:
            raise Problem(f"{key}.sampling: missing; a value is needed")
        if row.family == "wan" and row.shift is None:
            raise Problem(f"{key}.shift: missing; a wan backbone needs the shift of its training noise")
        params.grid(name).check(row.family, key)
        _check_sampling(row, key)
        used = name == params.teacher.backbone or any(run.backbone == name for run in params.runs.values())
        seconds = (row.frames - 1) / row.fps
        if used and seconds > (params.subset.frames - 1) / params.subset.fps:
            raise Problem(
                f"{key}.frames: {row.frames} at {row.fps} fps last longer than the stored proxies"
                f" (subset.frames {params.subset.frames} at {params.subset.fps} fps); lengthen those"
            )
        if used and row.frames > writer.frames:
            raise Problem(f"{key}.frames: {row.frames} are more than synth.backbone writes ({writer.frames})")
    for side in params.flow.size:
        if side % 8 or side < 128:
            raise Problem(f"{path}: flow.size: {side} does not suit RAFT; sides are multiples of 8, at least 128")
    encoder, learns_on = params.encoder, params.teacher.backbone
    if encoder.width % encoder.heads:
        raise Problem(f"{path}: encoder.width: {encoder.width} is not a multiple of encoder.heads, {encoder.heads}")
    if encoder.size[1] != params.grid(learns_on).view[1]:
        raise Problem(
            f"{path}: encoder.size: width {encoder.size[1]} does not fit the clips of {learns_on};"
            f" allowed: {params.grid(learns_on).view[1]}"
        )


def _check_sampling(row: Backbone, key: str) -> None:
    """What would otherwise be found out after stage 2."""
    allowed = {"cogvideox": ("ddim", "dpm"), "wan": ("unipc", "euler")}[row.family]
    if row.sampling.scheduler not in allowed:
        raise Problem(
            f"{key}.sampling.scheduler: {row.sampling.scheduler!r} does not go with {row.family};"
            f" allowed: {', '.join(allowed)}"
        )
    if row.family == "cogvideox" and row.sampling.shift is not None:
        raise Problem(f"{key}.sampling.shift: {row.sampling.shift} has no meaning for cogvideox; set it to null")
    if row.family == "wan" and row.sampling.dynamic_guidance:
        raise Problem(f"{key}.sampling.dynamic_guidance: only cogvideox has it; set it to false")


def _check_numbers(params: Params, path: str) -> None:
    """Numbers that have to suit one another."""
    subset, ranks = params.subset, params.machine.processes
    for low, high in (("min_aspect", "max_aspect"), ("min_seconds", "max_seconds")):
        if getattr(subset, low) > getattr(subset, high):
            raise Problem(
                f"{path}: subset.{low}: {getattr(subset, low)} is above subset.{high}, {getattr(subset, high)}"
            )
    for name in ("teacher", "align"):
        section = getattr(params, name)
        if section.batch % ranks:
            raise Problem(f"{path}: {name}.batch: {section.batch} is no multiple of machine.processes, {ranks}")
        if section.micro_batch and section.batch // ranks % section.micro_batch:
            raise Problem(
                f"{path}: {name}.micro_batch: {section.micro_batch} does not divide the {section.batch // ranks} clips"
                f" that each of machine.processes, {ranks}, has of a step; choose one that does, or null"
            )
        if max(section.betas) >= 1:
            raise Problem(f"{path}: {name}.betas: {list(section.betas)}; AdamW needs both below 1")
    encoder = params.encoder
    cube = (encoder.tubelet, encoder.patch, encoder.patch)
    if any(length % side for length, side in zip(encoder.native, cube, strict=True)):
        raise Problem(f"{path}: encoder.native: {list(encoder.native)} are no multiples of tubelet and patch, {cube}")
    if len(set(params.seeds)) < len(params.seeds):
        raise Problem(f"{path}: seeds: {list(params.seeds)} names one twice; a repeated training tells nothing new")
    if params.backbones[params.synth.backbone].family != "wan":
        raise Problem(f"{path}: synth.backbone: {params.synth.backbone!r} is no wan backbone; Wan writes the clips")


def _check_methods(params: Params, path: str) -> None:
    needs = {
        "soft_trd": ("tau",),
        "crepa": ("tau",),
        "trd": ("margin",),
        "joint": ("flow_dropout", "inner_guidance"),
    }
    for name, row in params.methods.items():
        key = f"{path}: methods.{name}"
        if (row.target == "none") != (row.loss == "zero"):
            raise Problem(
                f"{key}: target {row.target!r} with loss {row.loss!r}; `none` goes with `zero`, and only there"
            )
        if (row.target == "flow_video") != (row.loss == "joint"):
            raise Problem(
                f"{key}: target {row.target!r} with loss {row.loss!r}; `flow_video` goes with `joint`, and only there"
            )
        for option in ("tau", "margin", "flow_dropout", "inner_guidance"):
            needed = option in needs.get(row.loss, ())
            if needed and getattr(row, option) is None:
                raise Problem(f"{key}.{option}: missing; the loss {row.loss!r} needs it")
            if not needed and getattr(row, option) is not None:
                raise Problem(f"{key}.{option}: the loss {row.loss!r} has no {option}; remove it")
        if row.denominator != "all" and row.loss != "soft_trd":
            raise Problem(f"{key}.denominator: the loss {row.loss!r} has no denominator; remove it")


def _check_runs(params: Params, path: str) -> None:
    for name, row in params.runs.items():
        key = f"{path}: runs.{name}"
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise Problem(f"{key}: a name is made of letters, digits, '_', '-' and '.'; it becomes a folder")
        _known(row.backbone, params.backbones, f"runs.{name}.backbone", path)
        blocks = params.backbones[row.backbone].blocks
        if row.method is not None:
            _known(row.method, params.methods, f"runs.{name}.method", path)
        if row.still_of is not None:
            _known(row.still_of, params.runs, f"runs.{name}.still_of", path)
            if row.method is not None or params.runs[row.still_of].method or params.runs[row.still_of].still_of:
                raise Problem(f"{key}.still_of: the static control repeats frames of a run that is not trained")
            if row.backbone != params.runs[row.still_of].backbone:
                raise Problem(f"{key}.backbone: {row.backbone} is not that of {row.still_of}, whose frames it repeats")
        layers = params.layers(name)
        where = f"{key}.layer" if row.layer else f"{path}: align.layer"
        if row.method is not None and max(layers) > blocks:
            raise Problem(f"{where}: {max(layers)} is beyond {row.backbone}'s {blocks} blocks; allowed: 1-{blocks}")
        if len(set(layers)) < len(layers):
            raise Problem(f"{where}: {list(layers)} names a block twice; remove one")
        joint = row.method is not None and params.methods[row.method].loss == "joint"
        if joint and params.backbones[row.backbone].family != "cogvideox":
            raise Problem(f"{key}.method: {row.method!r} widens a cogvideox transformer; {row.backbone} is none")
        if row.layer is not None and row.method is None:
            raise Problem(f"{key}.layer: a run without a method aligns no layer; remove it")


def _check_benches(params: Params, path: str) -> None:
    for name, row in params.benches.items():
        if "physics" in row.raters and row.rules is None:
            raise Problem(f"{path}: benches.{name}.rules: missing; the rater 'physics' needs the file of its rules")
        if not {"physics", "videophy2"} & set(row.raters) and row.rules is not None:
            raise Problem(
                f"{path}: benches.{name}.rules: only the raters 'physics' and 'videophy2' read them; remove it"
            )
        if row.extended is not None and row.variant == "short":
            raise Problem(f"{path}: benches.{name}.extended: nobody reads it where `variant` is short; remove one")
        for rater in row.raters:
            if rater in SUITES and rater not in params.raters:
                raise Problem(f"{path}: raters.{rater}: missing; benches.{name} asks it, so say how it is started")
            if rater in SUITES and rater != row.suite:
                raise Problem(
                    f"{path}: benches.{name}.raters: {rater} rates the prompts of its own suite, not {row.suite}"
                )
    for name, row in params.raters.items():
        if name.startswith("videophy") and (row.code is None or row.weights is None):
            raise Problem(f"{path}: raters.{name}: `code` and `weights` are needed, its checkout and its checkpoint")
        if name == "vbench2" and row.code is None:
            raise Problem(f"{path}: raters.{name}: `code` is needed, the folder of its evaluate.py")


def _check_tables(params: Params, path: str) -> None:
    if not params.tables:
        raise Problem(f"{path}: tables: none; nothing would be run")
    for name, table in params.tables.items():
        _known(table.bench, params.benches, f"tables.{name}.bench", path)
        for index, run in enumerate(table.rows):
            _known(run, params.runs, f"tables.{name}.rows.{index}", path)


def _check_primary(params: Params, path: str) -> None:
    if params.primary is None:
        return
    primary = params.primary
    _known(primary.bench, params.benches, "primary.bench", path)
    for key in ("ours", "base"):
        _known(getattr(primary, key), params.runs, f"primary.{key}", path)
    if primary.ours == primary.base:
        raise Problem(f"{path}: primary.base: {primary.base!r} is `ours` too; name the run that it is compared with")
    if params.table_of_primary() is None:
        raise Problem(
            f"{path}: primary: no table of the bench {primary.bench!r} has both {primary.ours!r} and {primary.base!r};"
            " add the missing run to one"
        )


def schema() -> dict:
    """JSON schema of params.yaml, for editors: resources/params.schema.json is this, written by `make schema`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}


# --- pins: what each job reads -------------------------------------------------------------------------------------


class Pin(Section):
    """What every job's share has."""

    stage: str
    revision: int

    @classmethod
    def load(cls, path: str | Path):
        """The typed pin at `path`; Problem where it is not one of this stage."""
        try:
            return cls.model_validate(read_yaml(Path(path)))
        except ValidationError as error:
            raise Problem(explain(error, cls, str(path))) from None


class ComputePin(Pin):
    """A share of a job that computes with torch: device and threads decide the last bits of what it makes."""

    machine: Processor


class CollectPin(Pin):
    source: Source
    clip: Annotated[tuple[int, float, int], Strict(False)]
    """frames, fps, short side of the clips wanted"""


class SubsetPin(Pin):
    sources: dict[str, Source]
    subset: Subset


class SynthPin(ComputePin):
    synth: Synth
    backbone: Backbone


class FlowPin(ComputePin):
    flow: Flow
    backbone: Backbone
    encoder: Encoder


class DrawPin(Pin):
    seeds: Annotated[tuple[Natural, ...], Strict(False)]
    """of the trainings; none where each sees every clip, whatever its seed"""
    steps: Count | None
    batch: Count | None


class EncodePin(ComputePin):
    backbone: Backbone


class TeacherPin(ComputePin):
    teacher: Teacher
    backbone: Backbone
    encoder: Encoder
    flow: Flow


class TargetsPin(ComputePin):
    target: TargetName
    backbone: Backbone
    encoder: Encoder
    flow: Flow | None
    """of the target `flow_video`"""


class AlignPin(ComputePin):
    run: str
    seed: Natural
    backbone: Backbone
    method: Method
    encoder: Encoder
    align: Align


class SamplePin(ComputePin):
    run: str
    seed: Natural
    trained: bool
    inner_guidance: float | None
    """of a run that paints flow beside the video"""
    still_of: str | None
    backbone: Backbone
    asked: Asked
    noise_seed: Natural


class BenchPin(ComputePin):
    run: str
    seed: Natural
    bench: Bench
    raters: dict[str, Rater]
    """of those that the bench asks, the benchmarks' own"""
    flow: Flow


class ReportPin(Pin):
    params: Params


class MiniaturePin(ComputePin):
    model: Literal["cogvideox", "wan", "videomae", "raft"]
    pretraining: Pretraining
    backbones: dict[str, Backbone]
    encoder: Encoder
    flow: Flow


def pin(params: Params, stage: str, **names: Any) -> Pin:
    """The share of the parameters that one job of `stage` reads.

    names: source (collect); backbone (encode, targets); target (targets); run, seed (align, sample, bench); bench;
    model (miniature). What a stage does not use is left out, so that editing it reruns nothing.
    """
    made = {"stage": stage, "revision": REVISIONS[stage]}
    bare = {name: row.model_copy(update={"sampling": None}) for name, row in params.backbones.items()}
    learns_on = sizes(bare[params.teacher.backbone])
    if stage == "collect":
        clip = (params.subset.frames, params.subset.fps, params.subset.short_side)
        return CollectPin(**made, source=params.sources[names["source"]], clip=clip)
    if stage == "subset":
        return SubsetPin(**made, sources=params.sources, subset=params.subset)
    if stage == "draw":
        return DrawPin(**made, **_draws(params))
    if stage == "report":
        return ReportPin(**made, params=params.model_copy(update={"pretraining": None}))
    made |= {"machine": Processor(device=params.machine.device, threads=params.machine.threads)}
    if stage == "synth":
        return SynthPin(**made, synth=params.synth, backbone=params.backbones[params.synth.backbone])
    if stage == "flow":
        return FlowPin(**made, flow=params.flow, backbone=learns_on, encoder=sizes(params.encoder))
    if stage == "encode":
        return EncodePin(**made, backbone=bare[names["backbone"]])
    if stage == "teacher":
        return TeacherPin(**made, teacher=params.teacher, backbone=learns_on, encoder=params.encoder, flow=params.flow)
    if stage == "targets":
        backbone = bare[names["backbone"]]
        if names["target"] == "flow_video":  # the backbone's own VAE and RAFT make it, no teacher
            own = {"backbone": backbone, "encoder": sizes(params.encoder), "flow": params.flow}
        else:
            own = {"backbone": sizes(backbone), "encoder": params.encoder, "flow": None}
        return TargetsPin(**made, target=names["target"], **own)
    if stage == "miniature":
        own = {"pretraining": params.pretraining, "encoder": params.encoder, "flow": params.flow}
        return MiniaturePin(**made, model=names["model"], backbones=params.backbones, **own)
    run = params.runs[names["run"]]
    made |= {"run": names["run"], "seed": int(names["seed"])}
    if stage == "align":
        return AlignPin(
            **made,
            backbone=bare[run.backbone],
            method=params.methods[run.method],
            encoder=sizes(params.encoder),
            align=params.align.model_copy(update={"layer": params.layers(names["run"])}),
        )
    bench = params.benches[names["bench"]]
    if stage == "sample":
        made |= {"trained": run.method is not None, "still_of": run.still_of, "noise_seed": params.sample.seed}
        inner = params.methods[run.method].inner_guidance if run.method else None
        asked = Asked(**bench.model_dump(include=set(Asked.model_fields)))
        return SamplePin(**made, inner_guidance=inner, backbone=params.backbones[run.backbone], asked=asked)
    raters = {name: row for name, row in params.raters.items() if name in bench.raters}
    return BenchPin(**made, bench=bench, raters=raters, flow=params.flow)


def _draws(params: Params) -> dict[str, Any]:
    """What decides which clips stage 2 draws.

    One answer for every backbone, since their runs have steps, batch and seeds in common. A training that is longer
    than any epoch sees all clips, and then none of the three matters.
    """
    seeds = tuple(sorted({seed for _, seed in params.trainings()}))
    clips = sum(getattr(params, {"real": "subset"}.get(kind, kind)).clips for kind in params.align.train_on)
    if not seeds or params.align.steps * params.align.batch >= clips:
        return {"seeds": (), "steps": None, "batch": None}
    return {"seeds": seeds, "steps": params.align.steps, "batch": params.align.batch}


def sizes(row: Any) -> Any:
    """A backbone or encoder of which a stage reads the sizes and not the weights: other weights rerun nothing."""
    unread = {"weights": "(not read)", "revision": None}
    return row.model_copy(update={name: value for name, value in unread.items() if name in type(row).model_fields})


def dump(section: Section) -> str:
    """A pin, or all parameters, as the YAML text of a file; equal ones give equal text."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=1000)
