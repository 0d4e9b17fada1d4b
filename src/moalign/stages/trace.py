"""From a number in a table back to everything that made it: `moalign trace table1:cog-moalign:Joint`.

    moalign trace TABLE[:RUN[:METRIC]] --results results/S [--bundle FOLDER [--videos]]
    moalign trace table6 --results results/S    # the user study

Walks from the cell's score rows over videos and seeds, the run, its checkpoint, latents, targets, flow and clips to the
weights that all began with. Every manifest names its inputs and files with their hashes; each is hashed again here, and
so are the pins and the weights; the table's first row, which differences are from, is walked along, and the table on
the disk is compared with its score rows. One line to a manifest; what is wrong stands below, the exit status is then 1.
A bundle holds all of it but data and checkpoints, for others to check: same results, same bytes.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moalign import config, manifest
from moalign.bench import latex, published, tables
from moalign.config import Params, ReportPin
from moalign.errors import Problem
from moalign.manifest import Header
from moalign.progress import say, track
from moalign.study import table as table6
from moalign.study.analyse import analyse
from moalign.study.plan import Plan
from moalign.study.server import Study

STAGES = ("bench", "sample", "align", "targets", "teacher", "encode", "draw", "flow", "synth", "subset", "collect")
OF_RUN = re.compile(r"/(?:runs|samples|scores)/([^/]+)/(s\d+)/")  # in the path of a manifest that belongs to a run
STUDY = "table6"
HUB_NAME = re.compile(r"[^/]+/[^/]+(?<!\.pth)(?<!\.pt)(?<!\.safetensors)")  # owner/model
UNREAD = "(not read)"  # weights of which a stage reads the sizes alone
ALWAYS = ("report.yaml",)  # pins that belong to every bundle


@dataclass
class Step:
    """A manifest on the way, and what is wrong with it or with its files."""

    path: Path
    header: Header
    pin: Path | None = None  # whose text has the hash that the header names
    wrong: list[str] = field(default_factory=list)


@dataclass
class Trail:
    """All that a cell rests on."""

    steps: dict[Path, Step] = field(default_factory=dict)
    others: dict[Path, str] = field(default_factory=dict)  # inputs that are no manifests -> hash that a step names
    wrong: list[str] = field(default_factory=list)  # what belongs to no step


def run(cell: str, results: str, bundle: str | None = None, videos: bool = False) -> int:
    """Print the trail of a cell, of a row or of a whole table; 0 where every hash agrees."""
    top = Path(results)
    if not (top / "pins/report.yaml").exists():
        raise Problem(f"{results}: no pins/report.yaml; --results takes results/SCALE of a run that made its tables")
    params = ReportPin.load(top / "pins/report.yaml").params
    if cell == STUDY:
        if bundle:
            raise Problem(f"--bundle packs a table of score rows; of {STUDY} attach {top}/study without secret.json")
        trail = study_trail(top)
        check_files(trail)
        show(trail, params, check_weights(trail))
        return tell(trail)
    name, run_name, metric = parse(cell, params)
    table = next(table for table in published.make_tables(top, params) if table.name == name)
    metrics = [metric] if metric else list(table.rules)
    if metric and metric not in table.rules:
        raise Problem(f"{cell}: {name} has no metric {metric!r}; it has {', '.join(table.rules)}")
    runs = [run_name] if run_name else list(table.rows)
    for one in runs:
        for each in metrics if metric or run_name else ():
            say_cell(table, one, each)
    walked = dict.fromkeys([*runs, next(iter(table.rows))])
    scores = [top / f"scores/{one}/s{seed}/{table.bench}.jsonl" for one in walked for seed in params.seeds_of(one)]
    trail = walk(top, dict.fromkeys(scores))
    check_files(trail)
    check_table(top, table, params, trail)
    weights = check_weights(trail)
    show(trail, params, weights)
    if bundle:
        write_bundle(Path(bundle), top, table, trail, videos)
    return tell(trail)


def tell(trail: Trail) -> int:
    """What is wrong, and how much was looked at; 0 where nothing is."""
    wrong = trail.wrong + [line for step in trail.steps.values() for line in step.wrong]
    for line in wrong:
        print(f"wrong  {line}")
    files = sum(len(step.header.files) for step in trail.steps.values())
    print(f"{len(trail.steps)} manifests, {files} files: {len(wrong)} wrong")
    return int(bool(wrong))


def parse(cell: str, params: Params) -> tuple[str, str | None, str | None]:
    """Table, run and metric of a cell's name; a run without its backbone will do, and a metric in any letters."""
    name, _, rest = cell.partition(":")
    wanted, _, metric = rest.partition(":")
    if name not in params.tables:
        raise Problem(f"{cell}: no table {name!r} at this scale; it has {', '.join(params.tables)}")
    rows = params.tables[name].rows
    found = [run for run in rows if wanted in (run, run.partition("-")[2])]
    if wanted and not found:
        raise Problem(f"{cell}: {name} has no row {wanted!r}; it has {', '.join(rows)}")
    known = {known.lower(): known for known in tables.METRICS}
    return name, found[0] if wanted else None, known.get(metric.lower(), metric) if metric else None


def say_cell(table: tables.Table, run: str, metric: str) -> None:
    """The cell as the table prints it."""
    shown, cell = tables.metric_of(metric), table.rows[run][metric]
    print(
        f"{table.name}:{run}:{metric}  {tables.mean_text(shown, cell.summary)}{shown.unit and ' '}{shown.unit}", end=""
    )
    print(
        f", n = {cell.summary.n}"
        + (f"; from the first row {tables.difference_text(shown, cell)}" if cell.difference else "")
    )
    print(f"    {table.rules[metric]}")


# --- the walk ---------------------------------------------------------------------------------------------------------


def study_trail(top: Path) -> Trail:
    """What the study's table rests on: its plan, the videos that the plan names, and the votes, counted again."""
    folder = top / "study"
    plan = Plan.load(folder / "plan.jsonl")
    trail = walk(top, {root_of(top) / path: digest for path, digest in plan.samples.items()})
    path = folder / "table6.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        printed = (folder / "table6.md").read_text(encoding="utf-8") == table6.markdown(told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"{path}: no table of the study ({error}); make it with `moalign study report`") from None
    counted = json.loads(json.dumps(analyse(plan, [vote[:3] for vote in Study(folder).store.votes()])))
    for part in ("all", "kept"):
        for row, again in zip(told[part].pop("comparisons"), counted[part].pop("comparisons"), strict=True):
            printed &= again.items() <= row.items()
    if not printed or not counted.items() <= told.items():
        trail.wrong.append(f"{path}, or table6.md: not what the votes say; run `moalign study report` again")
    print(
        f"{STUDY}  {counted['votes']} votes of {counted['raters']} raters"
        + ("; simulated" if told["simulated"] else "")
    )
    return trail


def walk(top: Path, first: Mapping[Path, str | None]) -> Trail:
    """Every manifest behind the first ones (-> the hash that is wanted, if any is).

    A manifest whose bytes are not those that its reader saw is wrong.
    """
    pins: dict[str, list[Path]] = {}
    for path in sorted((top / "pins").rglob("*.yaml")):
        pins.setdefault(manifest.sha256(path), []).append(path)
    root, trail = root_of(top), Trail()
    todo = [(path, digest, top / "study/plan.jsonl") for path, digest in first.items()]
    while todo:
        path, wanted, reader = todo.pop()
        if path in trail.steps:
            step = trail.steps[path]
        elif path.suffix != ".jsonl":
            trail.others.setdefault(path, wanted)
            continue
        else:
            step = open_step(path, pins, trail)
            if step is None:
                continue
            trail.steps[path] = step
            todo += [(root / given, digest, path) for given, digest in step.header.inputs.items()]
        if wanted and manifest.sha256(path) != wanted:
            step.wrong.append(f"{path}: other bytes than {reader} was made from; make the latter again")
    return trail


def root_of(top: Path) -> Path:
    """The folder that inputs are named from: above `results/S`."""
    return top.parent.parent


def open_step(path: Path, pins: dict[str, list[Path]], trail: Trail) -> Step | None:
    """A manifest's header; None where there is none to read."""
    try:
        with open(path, encoding="utf-8") as file:
            header = Header(**json.loads(file.readline()))
            rows = sum(1 for _ in file)
    except (OSError, ValueError, TypeError) as error:
        trail.wrong.append(f"{path}: no manifest that can be read ({error}); run its stage again")
        return None
    found = pins.get(header.pin, [])
    named = [pin for pin in found if belongs(path, pin)]
    step = Step(path, header, next(iter(named or found), None))
    if rows != header.rows:
        step.wrong.append(f"{path}: promises {header.rows} rows and holds {rows}")
    if step.pin is None:
        step.wrong.append(f"{path}: made with the pin {header.pin[:10]}, which is no longer there")
    elif not named:
        step.wrong.append(f"{path}: made with {step.pin}, another run's pin; make it again, or put it where it was")
    return step


def belongs(path: Path, pin: Path) -> bool:
    """Whether a manifest lies in the folder of the run and seed that its pin's name says."""
    place = OF_RUN.search(path.as_posix())
    return place is None or f"{pin.stem}-".startswith(f"{place[1]}-{place[2]}-")


def check_table(top: Path, table: tables.Table, params: Params, trail: Trail) -> None:
    """The table as files and in metrics.json, against what its score rows say now."""
    texts = {"md": tables.markdown(table, params), "tex": latex.latex(table, params)}
    for ending, text in texts.items():
        path = top / "tables" / f"{table.name}.{ending}"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            trail.wrong.append(f"{path}: not what the score rows say; run `moalign report` again")
    path = top / "metrics.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["tables"][table.name]
    except (OSError, ValueError, KeyError, TypeError):
        told = None
    if told != tables.numbers(table):
        trail.wrong.append(f"{path}: not what the score rows of {table.name} say; run `moalign report` again")


def check_files(trail: Trail) -> None:
    """Hash every data file and every input that is no manifest."""
    todo = [
        (step, step.path.parent / name, entry["sha256"])
        for step in trail.steps.values()
        for name, entry in step.header.files.items()
    ]
    todo += [(None, path, digest) for path, digest in trail.others.items()]

    def fault(item: tuple[Step | None, Path, str]) -> str | None:
        _, path, wanted = item
        if not path.exists():
            return f"{path}: missing"
        return None if manifest.sha256(path) == wanted else f"{path}: other bytes than were written"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (step, *_), wrong in zip(todo, track(pool.map(fault, todo), "files", total=len(todo)), strict=True):
            if wrong:
                (step.wrong if step else trail.wrong).append(wrong)


def check_weights(trail: Trail) -> dict[str, str]:
    """Model that a pin names -> the hash of its SHA256SUMS, all of whose files are hashed, or that the hub has it."""
    found: dict[str, str] = {}
    pins = {step.pin for step in trail.steps.values() if step.pin}
    for name, revision in sorted({pair for pin in pins for pair in models_in(config.read_yaml(pin))}):
        place = Path(name)
        folder = place if place.is_dir() else place.parent
        sums = folder / "SHA256SUMS"
        if not place.exists() and not HUB_NAME.fullmatch(name):
            trail.wrong.append(f"{name}: missing, and a pin names it as its model")
        elif not place.exists():
            found[name] = f"by its hub name, revision {revision or 'not fixed'}"
        elif sums.exists():
            found[name] = f"SHA256SUMS {manifest.sha256(sums)[:12]}"
            for line in sums.read_text(encoding="utf-8").splitlines():
                digest, file = line.split(maxsplit=1)
                path = folder / file.lstrip("*")
                if not path.exists() or manifest.sha256(path) != digest:
                    trail.wrong.append(f"{path}: {'other bytes than' if path.exists() else 'missing, and'} {sums} says")
        else:
            found[name] = f"sha256 {manifest.sha256(place)[:12]}" if place.is_file() else "without SHA256SUMS"
    return found


def models_in(section: Any) -> Iterator[tuple[str, str]]:
    """(weights, revision) wherever a pin names a model that its stage reads."""
    if isinstance(section, dict):
        if isinstance(name := section.get("weights"), str) and name != UNREAD:
            yield name, section.get("revision") or ""
        for value in section.values():
            yield from models_in(value)


# --- what is shown ----------------------------------------------------------------------------------------------------


def show(trail: Trail, params: Params, weights: dict[str, str]) -> None:
    """A line to a manifest, stage by stage; then the models, and where the pins leave the paper's parameters."""
    for stage in STAGES:
        steps = sorted(
            (step for step in trail.steps.values() if step.header.stage == stage), key=lambda step: step.path
        )
        if not steps:
            continue
        print(f"\n{stage}")
        for step in steps:
            head, digest = step.header, manifest.sha256(step.path)[:12]
            size = f"{head.rows} rows, {len(head.files)} files, {head.seconds:.1f} s, job {head.job}"
            print(f"  {step.path}  {digest}  {size}")
            print(f"      pin {head.pin[:10]} {step.pin or '(gone)'}, revision {head.revision}, {made_by(head)}")
            for line in own_words(step):
                print(f"      {line}")
    if weights:
        print("\nmodels")
        for name, what in weights.items():
            print(f"  {name}  {what}")
    if lines := from_paper(trail):
        print("\nOther than params.yaml has it for the paper's scale:")
        for line in lines:
            print(f"  {line}")
    print()


def made_by(head: Header) -> str:
    """Code, and the environment's lock where the manifest names it."""
    return f"code {head.code}{f', environment {head.lock[:12]}' if head.lock else ''}"


def own_words(step: Step) -> Iterator[str]:
    """Seeds of videos, the checkpoint, the wandb run."""
    head = step.header
    if head.stage == "sample":
        rows = manifest.read(step.path, manifest.Sample).rows
        yield (
            "noise seeds "
            + ", ".join(str(row.seed) for row in rows[:4])
            + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        )
    if head.stage in ("align", "teacher"):
        largest = max(head.files.items(), key=lambda item: item[1]["bytes"], default=None)
        if largest:
            yield f"checkpoint {largest[0]} {largest[1]['sha256'][:12]}"
    if "wandb" in head.notes:
        yield f"wandb run {head.notes['wandb']}"


def from_paper(trail: Trail) -> list[str]:
    """Keys of the pins that differ from those which params.yaml gives at the paper's scale, with their stages."""
    if not Path("params.yaml").exists():
        return []  # away from a checkout
    paper = config.load("params.yaml", scale="paper")
    found: dict[str, dict[str, None]] = {}
    for step in sorted(trail.steps.values(), key=lambda step: STAGES.index(step.header.stage)):
        if step.pin is None:
            continue
        mine = config.read_yaml(step.pin)
        try:
            theirs = config.pin(paper, mine["stage"], **names_of(mine, step.pin)).model_dump(mode="json")
        except KeyError:  # a run, a bench or a source that the paper has not
            found.setdefault(f"{step.pin.stem}: nothing of the paper's scale", {})[mine["stage"]] = None
            continue
        for key, (ours, other) in differences(mine, theirs).items():
            if ours != UNREAD:
                found.setdefault(f"{key}: {ours}, in the paper {other}", {})[mine["stage"]] = None
    return [f"{text}  ({', '.join(stages)})" for text, stages in found.items()]


def names_of(pin: dict, path: Path) -> dict[str, Any]:
    """What `config.pin` needs to cut this pin: what it says itself, and what its file is called."""
    names = {name: pin[name] for name in ("run", "seed", "target") if name in pin}
    stem = path.stem
    if pin["stage"] in ("sample", "bench"):
        names["bench"] = stem.removeprefix(f"{pin['run']}-s{pin['seed']}-")
    elif pin["stage"] == "encode":
        names["backbone"] = stem
    elif pin["stage"] == "targets":
        names["backbone"] = stem.removesuffix(f"-{pin['target']}")
    elif pin["stage"] == "collect":
        names["source"] = stem
    return names


def differences(ours: Any, other: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> both values, where two sections differ."""
    if isinstance(ours, dict) and isinstance(other, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in [*ours, *(name for name in other if name not in ours)]:
            found |= differences(ours.get(name), other.get(name), f"{key}.{name}".lstrip("."))
        return found
    return {} if ours == other else {key: (ours, other)}


# --- the bundle -------------------------------------------------------------------------------------------------------

README = """# What is behind {name}: {title}

Score rows, manifests, pins, prompts and rules of every number in this table, and the table as Markdown and LaTeX.
`sha256sum -c SHA256SUMS` checks this folder. Each manifest's first line names the pin and the inputs that it was made
from, by sha256, so every step can be followed back; pins lie in results/{scale}/pins. Means, intervals and tests can
be computed again from the score rows alone: one line per video and metric, joined by (prompt_id, index).

Made by {code}. Manifests by stage: {stages}.{videos}
"""


def write_bundle(folder: Path, top: Path, table: tables.Table, trail: Trail, videos: bool) -> None:
    """Copy what is small, name what is not."""
    if folder.exists() and any(folder.iterdir()):
        raise Problem(f"{folder}: not empty; --bundle makes a new folder")
    root = root_of(top)
    wanted = {*trail.steps, *trail.others, *(step.pin for step in trail.steps.values() if step.pin)}
    wanted |= {top / "tables" / f"{table.name}.{ending}" for ending in ("md", "tex")} | {top / "metrics.json"}
    wanted |= {top / "pins" / name for name in ALWAYS} | {root / "params.yaml", root / "requirements.lock"}
    if videos:
        of = (step for step in trail.steps.values() if step.header.stage == "sample")
        wanted |= {step.path.parent / name for step in of for name in step.header.files}
    with manifest.disk(folder):
        for path in sorted(path for path in wanted if path.is_file()):
            place = folder / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        stages = Counter(step.header.stage for step in trail.steps.values())
        text = README.format(
            name=table.name,
            title=table.title,
            scale=top.name,
            code=table.code,
            stages=", ".join(f"{stages[stage]} {stage}" for stage in STAGES if stages[stage]),
            videos=""
            if videos
            else "\nVideos are named by their sha256 in the manifests of samples/, and are not in this folder.",
        )
        manifest.write_text(folder / "README.md", text)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        lines = [f"{manifest.sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
        manifest.write_text(folder / "SHA256SUMS", "".join(lines))
    say(f"{folder}: {len(files)} files")
