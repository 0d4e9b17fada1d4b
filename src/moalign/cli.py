"""`moalign STAGE --config PIN --... --out PATH`: what the workflow does, by hand. Values are in the pin, paths here."""

import argparse
import importlib
import sys
from dataclasses import dataclass

from moalign import __version__
from moalign.errors import Problem
from moalign.manifest import disk


@dataclass(frozen=True)
class Flag:
    """One option; `many` takes several values, `pairs` takes NAME=PATH values as a dictionary, `switch` no value."""

    name: str
    help: str
    many: bool = False
    pairs: bool = False
    number: bool = False
    switch: bool = False
    optional: bool = False
    first: bool = False  # named by its place, not by --


@dataclass(frozen=True)
class Command:
    """A subcommand: the function that it calls, and its options."""

    call: str  # module:function
    help: str
    flags: tuple[Flag, ...]


CONFIG = Flag("config", "this job's pin, written by the workflow under results/SCALE/pins")
CLIPS = Flag("clips", "manifest of Clip rows")
DRAWN = Flag("drawn", "keys of the clips to take, one a line, from `draw`; without it all", optional=True)
MANY_CLIPS = Flag("clips", "manifests of Clip rows", many=True)
SELECTION = Flag("selection", "manifest of Choice rows, from `select`")
SHARD = Flag("shard", "which shard, from 0", number=True)
WORK = Flag("work", "folder for checkpoints; a killed training goes on from there")
PARAMS = Flag("params", "params.yaml, the default", optional=True)
SCALE = Flag("scale", "in place of the one that it names", optional=True)
PAPER = Flag("scale", "paper, the default", optional=True)
VBENCH = Flag("bench", "of params.yaml: vbench, vbench2")
STUDY = Flag("study", "the study's folder")
IQ_VIDEOS = Flag("videos", "folder of a model's 198 videos of 5 s")
IQ_REAL = Flag("real", "folder of Physics-IQ's real footage at their frame rate, split-videos/testing/8FPS")
IQ_MASKS = Flag("masks", "folder of its masks, video-masks/real/8FPS; without it they are computed", optional=True)
CLIP_COUNT = Flag("clips", "how many clips to draw", number=True)
OUT = Flag("out", "where the manifest goes; its data files are written beside it")

COMMANDS = {
    "collect": Command(
        "moalign.stages.collect:run",
        "make a collection of videos: the physics world, or real footage",
        (CONFIG, Flag("out", "the collection's annotations.json; the videos go beside it")),
    ),
    "annotate": Command(
        "moalign.stages.annotate:run",
        "write the annotations of a folder of your own videos (captions: clip.txt beside clip.mp4)",
        (Flag("root", "folder of videos"), Flag("out", "the annotations.json to write")),
    ),
    "select": Command(
        "moalign.stages.subset:select",
        "choose the clips, from the annotations alone (Sec. 4.1)",
        (CONFIG, Flag("source", "NAME=annotations.json of each source", many=True, pairs=True), OUT),
    ),
    "ingest": Command(
        "moalign.stages.subset:ingest",
        "decode one shard of chosen clips into a tar of small proxies",
        (CONFIG, SELECTION, Flag("source", "NAME=root folder of each source", many=True, pairs=True), SHARD, OUT),
    ),
    "synth": Command(
        "moalign.stages.synth:run",
        "write one shard of synthetic clips with Wan (Sec. 4.1)",
        (CONFIG, SELECTION, SHARD, OUT),
    ),
    "flow": Command("moalign.stages.flow:run", "RAFT's optical flow O of one shard (Sec. 3.2)", (CONFIG, CLIPS, OUT)),
    "draw": Command(
        "moalign.stages.draw:run", "list the clips that stage 2 will draw, shard by shard", (CONFIG, MANY_CLIPS, OUT)
    ),
    "encode": Command(
        "moalign.stages.encode:run", "latents z0 and prompt states of one shard (Sec. 3.1)", (CONFIG, CLIPS, DRAWN, OUT)
    ),
    "teacher": Command(
        "moalign.stages.teacher:run",
        "stage 1: train the motion subspace M_psi on flow (Eq. 3-4)",
        (CONFIG, MANY_CLIPS, Flag("flow", "manifests of Flow rows", many=True), WORK, OUT),
    ),
    "targets": Command(
        "moalign.stages.targets:run",
        "what the student learns beside video, for one shard: M (Eq. 3), the encoder's raw tokens, or flow as a video",
        (
            CONFIG,
            CLIPS,
            DRAWN,
            Flag("teacher", "stage 1's manifest; only the target `motion` needs it", optional=True),
            OUT,
        ),
    ),
    "align": Command(
        "moalign.stages.align:run",
        "stage 2: fine-tune one run (Eq. 5-9)",
        (
            CONFIG,
            MANY_CLIPS,
            Flag("latents", "manifests of Latent rows", many=True),
            Flag("targets", "manifests of Target rows, where the method has a target", many=True, optional=True),
            WORK,
            OUT,
        ),
    ),
    "sample": Command(
        "moalign.stages.sample:run",
        "sample a shard of a bench's videos from one run",
        (
            CONFIG,
            SHARD,
            Flag("run", "stage 2's manifest; without it the stock weights are sampled", optional=True),
            Flag("still", "manifest of Sample rows whose first frames are repeated: the static control", optional=True),
            Flag("work", "folder for wandb's mirror"),
            OUT,
        ),
    ),
    "bench": Command(
        "moalign.stages.bench:run",
        "rate the videos of one run",
        (
            CONFIG,
            Flag("samples", "manifests of Sample rows, one for each shard", many=True),
            Flag("work", "folder for what a benchmark's own rater leaves; a killed rating goes on from there"),
            OUT,
        ),
    ),
    "report": Command(
        "moalign.stages.report:run",
        "tables, curves, metrics.json and the page of one scale",
        (CONFIG, Flag("results", "results/SCALE"), Flag("out", "the page")),
    ),
    "world": Command(
        "moalign.stages.world:run",
        "one clip of the physics world, with its flow picture and its state plot",
        (
            Flag("scene", "fall, throw, collide, ramp, pendulum or slide"),
            Flag("seed", "the clip is a pure function of scene and seed", number=True),
            Flag("out", "the mp4; the pictures go beside it"),
        ),
    ),
    "miniature": Command(
        "moalign.stages.miniature:run",
        "train one of the small models of resources/miniature",
        (
            CONFIG,
            WORK,
            Flag("out", "folder, in the hub's layout"),
            Flag("start", "a video model made before, whose VAE's decoder learns on", optional=True),
        ),
    ),
    "card": Command(
        "moalign.stages.card:run",
        "measure one of these models on clips that it has not seen, and write its card: README.md and pictures",
        (CONFIG, Flag("model", "its folder"), Flag("rules", "the judge's, resources/judge.json", optional=True)),
    ),
    "doctor": Command(
        "moalign.stages.doctor:run",
        "say what a run would lack here: scheduler, GPUs, disk, weights, remotes; each with its cure",
        (
            Flag("profile", "local, the default, or slurm", optional=True),
            PARAMS,
            SCALE,
            Flag("raters", "only the benchmarks' own raters: import what each needs in its environment", switch=True),
        ),
    ),
    "data verify": Command(
        "moalign.stages.verify:verify",
        "hash every artifact of a scale, compare with its manifest, and say what to make again",
        (
            Flag("results", "results/SCALE"),
            Flag("jobs", "files at a time, one per core by default", number=True, optional=True),
        ),
    ),
    "prompts": Command(
        "moalign.stages.prompts:run",
        "count what the benches ask: prompts, videos, dimensions",
        (
            PARAMS,
            SCALE,
            Flag("help-fetch", "say which files are needed, where they come from and where they go", switch=True),
        ),
    ),
    "vbench videos": Command(
        "moalign.stages.vbench:videos",
        "give a run's videos the names that VBench's evaluator looks for, and look at them before it does",
        (
            VBENCH,
            Flag("samples", "manifests of Sample rows, one for each shard", many=True),
            Flag("out", "folder for the links"),
            Flag("mode", "the evaluator: standard, the default, or long", optional=True),
            PARAMS,
            PAPER,
        ),
    ),
    "vbench totals": Command(
        "moalign.stages.vbench:totals",
        "read what VBench's evaluator left, strictly, and compute its groups and total",
        (
            VBENCH,
            Flag("results", "folder with its *_eval_results.json"),
            PARAMS,
            PAPER,
        ),
    ),
    "physics-iq check": Command(
        "moalign.stages.physics_iq:check",
        "look at a model's videos for Physics-IQ: missing, extra, misnamed, unreadable, of another length or rate",
        (IQ_VIDEOS, IQ_REAL, IQ_MASKS),
    ),
    "physics-iq score": Command(
        "moalign.stages.physics_iq:score",
        "score them against the real footage: four metrics a video, the Verified score and the original one",
        (IQ_VIDEOS, IQ_REAL, IQ_MASKS, Flag("out", "JSON file for metrics and scores")),
    ),
    "plan": Command(
        "moalign.stages.plan:run",
        "say what a run will cost before it starts: jobs, hours, memory, disk, per stage and per table",
        (
            PARAMS,
            SCALE,
            Flag("nodes", "how many there are, 1 by default", number=True, optional=True),
            Flag("gpus", "of each node, 4 by default", number=True, optional=True),
            Flag("card", "H100, the default, H200 or A100", optional=True),
            Flag("results", "of a run whose jobs tell what a job costs; results/SCALE by default", optional=True),
            Flag("out", "JSON file with the figures", optional=True),
        ),
    ),
    "probe": Command(
        "moalign.stages.probe:run",
        "read velocity and appearance from S, M and a transformer's block by a linear map: is M disentangled?",
        (
            Flag("config", "pin of the stage `teacher`"),
            MANY_CLIPS,
            Flag("flow", "manifests of Flow rows", many=True),
            Flag("teacher", "stage 1's manifest"),
            Flag("out", "JSON file"),
            Flag("align", "pin of a run, to look at the block that it aligns too", optional=True),
            Flag("latents", "manifests of Latent rows of its backbone", many=True, optional=True),
            Flag("runs", "RUN=MANIFEST of trained runs", many=True, pairs=True, optional=True),
        ),
    ),
    "diagnose": Command(
        "moalign.stages.diagnose:run",
        "say how a run's videos move as a set, beside real held-out clips: diagnostics, no benchmark's scores",
        (
            Flag("samples", "manifests of Sample rows, one for each shard", many=True),
            MANY_CLIPS,
            Flag("out", "JSON file"),
            Flag("fvmd", "interpreter of an environment with the package fvmd, for its distance too", optional=True),
            Flag("work", "folder for the pictures that fvmd reads", optional=True),
        ),
    ),
    "weights check": Command(
        "moalign.stages.weights:check",
        "say offline which pretrained weights are here, whether they are the right ones, and how to fetch the rest",
        (
            PARAMS,
            SCALE,
            Flag("record", "write hashes and commits of what is right into resources/weights.lock.yaml", switch=True),
        ),
    ),
    "throughput train": Command(
        "moalign.stages.throughput:train",
        "measure steps of stage 2 at a run's true sizes with random weights: clips/s, memory, utilisation",
        (
            Flag("run", "row of params.yaml's runs, cog-moalign by default", optional=True),
            PARAMS,
            SCALE,
            Flag("steps", "steps to time, 5 by default", number=True, optional=True),
            Flag(
                "micro",
                "clips of a micro-batch, several to compare; 1 by default",
                many=True,
                number=True,
                optional=True,
            ),
            Flag("checkpointing", "none, keep_attention, full; all by default", many=True, optional=True),
            Flag("out", "JSON file for the figures", optional=True),
        ),
    ),
    "freeze": Command(
        "moalign.stages.freeze:freeze",
        "keep the scores of all rated rows in small files for git, with the tables that they make",
        (Flag("results", "results/SCALE"), Flag("out", "folder for scores, report.yaml and tables")),
    ),
    "tables": Command(
        "moalign.stages.freeze:tables",
        "make the tables again from frozen scores",
        (Flag("frozen", "folder that `freeze` wrote"), Flag("out", "folder for the tables")),
    ),
    "trace": Command(
        "moalign.stages.trace:run",
        "walk from a number in a table back to everything that made it, and hash it all again",
        (
            Flag("cell", "table1:cog-moalign:Joint; a row, table1:cog-moalign; or a whole table, table1", first=True),
            Flag("results", "results/SCALE"),
            Flag("bundle", "a new folder for all that is behind the table, to attach to a paper", optional=True),
            Flag("videos", "the bundle's videos too", switch=True),
        ),
    ),
    "study plan": Command(
        "moalign.stages.study:plan",
        "plan a blind user study: who sees what, where; hashed, and kept to",
        (
            Flag("samples", "RUN=MANIFEST of every shard; the first run is compared with each other", many=True),
            STUDY,
            Flag(
                "prompts",
                "how many, evenly spaced over those that all runs have; 50 by default",
                number=True,
                optional=True,
            ),
            Flag("votes", "on each pair; 7 by default", number=True, optional=True),
            Flag("raters", "people; by default so many that each sees about forty pairs", number=True, optional=True),
            Flag("seed", "of the plan, 0 by default", number=True, optional=True),
        ),
    ),
    "study prepare": Command(
        "moalign.stages.study:prepare",
        "make the clips that raters see, alike in all but what they show, and a token for each rater",
        (STUDY, Flag("samples", "as `study plan` had them", many=True)),
    ),
    "study serve": Command(
        "moalign.stages.study:serve",
        "serve the study's page; every vote is on the disk before it is acknowledged",
        (
            STUDY,
            Flag("host", "127.0.0.1 by default: this machine alone", optional=True),
            Flag("port", "8000 by default", number=True, optional=True),
        ),
    ),
    "study simulate": Command(
        "moalign.stages.study:simulate",
        "let simulated raters vote; the report says so",
        (
            STUDY,
            Flag("win", "chance that the first run is preferred, 0.6 by default", optional=True),
            Flag("clickers", "share of raters who click at random, 0 by default", optional=True),
            Flag("seed", "0 by default", number=True, optional=True),
        ),
    ),
    "study report": Command(
        "moalign.stages.study:report",
        "Table 6 from the votes so far; status 1 while votes are missing",
        (
            STUDY,
            Flag("out", "Markdown file; the numbers go beside it as JSON"),
            Flag("export", "csv of all votes", optional=True),
        ),
    ),
    "judge rules": Command(
        "moalign.stages.judge:rules",
        "measure what true clips of the miniature world look like: the judge's colours, bins and thresholds",
        (
            CLIP_COUNT,
            Flag("seed", "collection that they are drawn from; one that no scale uses", number=True),
            Flag("out", "JSON file for the rules"),
        ),
    ),
    "judge check": Command(
        "moalign.stages.judge:check",
        "judge the judge: true clips against wrong twins, repeated first frames and shuffled frames",
        (
            Flag("rules", "what `judge rules` wrote"),
            CLIP_COUNT,
            Flag("out", "Markdown page; its picture goes beside it"),
        ),
    ),
    "schema": Command(
        "moalign.stages.schema:run",
        "write the JSON schema of params.yaml, for editors",
        (Flag("out", "the schema's file"),),
    ),
}


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def parser() -> argparse.ArgumentParser:
    """The command line, built without importing a stage."""
    top = argparse.ArgumentParser(prog="moalign", description=__doc__)
    top.add_argument("--version", action="version", version=f"moalign {__version__}")
    commands = top.add_subparsers(required=True, metavar="STAGE")
    groups: dict[str, argparse._SubParsersAction] = {}
    for name, command in COMMANDS.items():
        stage, _, what = name.partition(" ")
        if what and stage not in groups:  # two words, `weights check`
            group = commands.add_parser(stage, help=command.help)
            groups[stage] = group.add_subparsers(required=True, metavar="WHAT")
        place = groups[stage] if what else commands
        sub = place.add_parser(what or stage, help=command.help, description=command.help)
        sub.set_defaults(command=name)
        for flag in command.flags:
            if flag.first:
                sub.add_argument(flag.name, help=flag.help)
                continue
            if flag.switch:
                sub.add_argument(f"--{flag.name}", action="store_true", help=flag.help)
                continue
            kind = _pair if flag.pairs else int if flag.number else str
            options = {"nargs": "+"} if flag.many else {}
            sub.add_argument(f"--{flag.name}", required=not flag.optional, type=kind, help=flag.help, **options)
    return top


FULL = (
    "for a training set align.micro_batch: 1, align.checkpointing: keep_attention or align.sharding: full, or take a"
    " larger card; `moalign plan` says what a rank needs"
)


def main(argv: list[str] | None = None) -> int:
    """Run one stage. A Problem is one message and status 2; a stopped training that can go on is status 75.

    A check is its own status: 0 where all is right, else 1.
    """
    values = vars(parser().parse_args(argv))
    name = values.pop("command")
    command = COMMANDS[name]
    pairs = {flag.name for flag in command.flags if flag.pairs}
    values = {key: dict(value) if key in pairs else value for key, value in values.items() if value is not None}
    module, function = command.call.split(":")
    try:
        with disk(values.get("out", ".")):
            status = getattr(importlib.import_module(module), function)(**values)
    except Problem as problem:
        print(f"moalign {name}: {problem}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is imported by stages alone
            raise
        what = str(error).split(". ")[0]
        print(f"moalign {name}: {what}; {FULL}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"moalign {name}: interrupted", file=sys.stderr)
        return 130
    return status or 0
