"""VideoPhy and VideoPhy2: what their raters are given, and what they leave, read strictly.

VideoPhy answers with p(Yes) in [0, 1] for semantic adherence (SA) and physical commonsense (PC), appended to a csv
without a header. VideoPhy2 answers with 1 to 5 in a csv; its script writes 0 where it could not read its own model's
answer, which is no score here. Rows are paired by the video's path, never by their order.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from moalign.bench.external import Task
from moalign.bench.scores import PASS, Key
from moalign.config import Rater
from moalign.errors import Problem

QUESTIONS = {"SA": "sa", "PC": "pc"}
RULE = "rule"  # VideoPhy2's third question, of each rule of a video: 0 broken, 1 followed, 2 it cannot be told
SHOWN = 8  # faults that a message lists one by one
HALF = 0.5  # VideoREPA's threshold on VideoPhy; its authors say: average the scores, or choose one
RULES = {
    "SA": "VideoPhy2 auto-rater, semantic adherence, 1-5",
    "PC": "VideoPhy2 auto-rater, physical commonsense, 1-5",
    "SA_raw": "VideoCon-Physics, p(Yes) for semantic adherence; the mean of these is the authors' reading",
    "rules_broken": "share of a video's rules that the VideoPhy2 auto-rater calls broken; its script writes the same 0"
    " where it could not read the answer",
    "PC_raw": "VideoCon-Physics, p(Yes) for physical commonsense; the mean of these is the authors' reading",
}


def tasks(
    name: str, rater: Rater, videos: dict[Path, str], folder: Path, laws: dict[str, list[str]] | None = None
) -> list[Task]:
    """What is run for `videos`, path -> the benchmark's own short caption. `folder` is where `ask` will run it.

    laws: caption -> rules that VideoPhy2's rater is asked about.
    """
    code, weights, python = (str(Path(path).absolute()) for path in (rater.code, rater.weights, rater.python))
    given = {"input.csv": table(["videopath", "caption"], [[str(path), text] for path, text in videos.items()])}

    def task(name: str, makes: str, *command: str | Path, given: dict[str, str] = given) -> Task:
        return Task(name, [python, *map(str, command)], makes, Path(code), given)

    here = folder.absolute()
    if name == "videophy2":
        inputs = dict.fromkeys(QUESTIONS.values(), given)
        if laws:
            pairs = [[str(path), law] for path, text in videos.items() for law in laws.get(text, ())]
            inputs[RULE] = {"input.csv": table(["videopath", "rule"], pairs)}
        return [
            task(
                question,
                "scores.csv",
                *("inference.py", "--input_csv", here / question / "input.csv", "--checkpoint", weights),
                *("--output_csv", here / question / "scores.csv", "--task", question),
                given=of_question,
            )
            for question, of_question in inputs.items()
        ]
    prepare = ("utils/prepare_data.py", "--input_csv", here / "prepare/input.csv", "--output_folder", here / "prepare")
    script = "videocon/training/pipeline_video/entailment_inference.py"
    prepared = {"sa": "sa_testing.csv", "pc": "physics_testing.csv"}
    return [task("prepare", "sa_testing.csv", *prepare)] + [
        task(
            question,
            "scores.csv",
            *(script, "--input_csv", here / "prepare" / prepared[question], "--checkpoint", weights),
            *("--output_csv", here / question / "scores.csv"),
        )
        for question in QUESTIONS.values()
    ]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A csv's text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def read(name: str, path: Path, asked: dict[Path, Key]) -> tuple[dict[Key, float], Counter]:
    """A question's scores by key, and what was odd, counted. asked: the videos' paths, as they were given.

    A video whose score is no score has none. Two scores of a video that differ, and a video that nobody asked for, are
    a Problem: then it is not known what the file is.
    """
    rows = (
        rows_of(path, ["videopath", "score"]) if name == "videophy2" else ((row[0], row[-1]) for row in cells(path, 3))
    )
    keys = {str(video): key for video, key in asked.items()}
    found: dict[Key, str] = {}
    odd, faults = Counter(), []
    for video, text in rows:
        if (key := keys.get(video)) is None:
            faults.append(f"{video}: nobody asked for it")
        elif key in found:
            odd["listed twice"] += 1
            if found[key] != text:
                faults.append(f"{video}: {found[key]} and {text}")
        else:
            found[key] = text
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        listed = "\n  ".join([*faults[:SHOWN], *more])
        raise Problem(f"{path}: not the answers to what was asked; remove its folder and rate again:\n  {listed}")
    values = {}
    for key, text in found.items():
        value = number(text)
        if value is None:
            odd["not a number"] += 1
        elif name == "videophy2" and value == 0:
            odd["answer not understood by the rater"] += 1
        elif value not in range(1, 6) if name == "videophy2" else not 0 <= value <= 1:
            odd["out of range"] += 1
        else:
            values[key] = value
    odd["without a row"] += len(keys) - len(found)
    return values, +odd


def read_laws(path: Path, captions: Iterable[str]) -> dict[str, list[str]]:
    """Caption -> its rules, from a csv of `caption` and `rule`; Problem where a caption has none."""
    found: dict[str, list[str]] = {caption: [] for caption in captions}
    for caption, law in rows_of(path, ["caption", "rule"]):
        if caption.strip() in found and law.strip() not in ("", *found[caption.strip()]):
            found[caption.strip()].append(law.strip())
    if without := [caption for caption, laws in found.items() if not laws]:
        raise Problem(
            f"{path}: no rule for {len(without)} of {len(found)} captions, such as {without[0]!r}; add one to each, or"
            " leave `rules` out"
        )
    return found


def read_broken(path: Path, asked: dict[Path, Key], laws: dict[Path, list[str]]) -> tuple[dict[Key, float], Counter]:
    """Share of each video's rules that are broken, by key, and what was odd. A video without an answer has no share."""
    answers: dict[tuple[str, str], str] = {}
    odd = Counter()
    for video, law, text in rows_of(path, ["videopath", "rule", "score"]):
        if answers.setdefault((video, law), text) != text:
            raise Problem(f"{path}: {video}: {law!r}: {answers[video, law]} and {text}; remove its folder, rate again")
    if strange := answers.keys() - {(str(video), law) for video, of_video in laws.items() for law in of_video}:
        raise Problem(
            f"{path}: {min(strange)[0]}: nobody asked about {min(strange)[1]!r}; remove its folder, rate again"
        )
    values = {}
    for video, key in asked.items():
        found = [number(answers.get((str(video), law), "")) for law in laws[video]]
        if all(answer in (0, 1, 2) for answer in found):
            values[key] = found.count(0) / len(found)
        else:
            odd["without an answer to each rule"] += 1
    return values, +odd


def metrics(name: str, values: dict[str, dict[Key, float]]) -> dict[str, tuple[str, dict[Key, float]]]:
    """Metric -> its rule and values by key, of a rater's answers to both questions ("SA", "PC")."""
    found = {}
    for question, of_key in values.items():
        raw = question if name == "videophy2" else f"{question}_raw"
        least = PASS if name == "videophy2" else HALF
        found[raw] = RULES[raw], of_key
        passes = {key: float(value >= least) for key, value in of_key.items()}
        found[f"{question}_pass"] = f"1 where {RULES[raw].partition(';')[0]} is at least {least}", passes
    return found


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def cells(path: Path, width: int) -> Iterable[list[str]]:
    """Rows of a csv without a header, each of `width` cells."""
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            if len(row) != width:
                raise Problem(f"{path}: a row of {len(row)} cells where {width} are due: {','.join(row)[:200]}")
            yield row


def rows_of(path: Path, columns: list[str]) -> Iterable[tuple[str, ...]]:
    """Some columns of a csv with a header."""
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if missing := [name for name in columns if name not in (table.fieldnames or ())]:
            raise Problem(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.fieldnames or ('none',))}")
        for row in table:
            yield tuple(row[name] or "" for name in columns)
