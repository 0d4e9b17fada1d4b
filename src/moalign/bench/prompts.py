"""What a bench asks for: each prompt, how many videos of it, and what they are rated on.

A benchmark's own files are read as they come from its repository; none is shipped, and none fetched unasked:
`moalign prompts --help-fetch` says what to get and where it goes, `moalign prompts` counts what is there.
A model may be given a longer text than the benchmark's prompt; file names and raters keep the short one.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moalign.config import Asked
from moalign.errors import Problem


@dataclass(frozen=True)
class Prompt:
    """One prompt of a bench; its place in the list is the `prompt_id` of manifests."""

    name: str  # the benchmark's own, short: what raters see and files are named by
    text: str  # what the model is given
    videos: int
    dimensions: tuple[str, ...] = ()  # VBench's, VBench-2.0's
    state: str = ""  # VideoPhy's state of matter


def load(bench: Asked) -> list[Prompt]:
    """Prompts of a bench, each once, in the order of its file; Problem where a row is wrong, with its place.

    A prompt that the file names again (VBench has two such) is one prompt on all its dimensions.
    """
    rows = list(READERS[bench.suite](Path(bench.prompts)))
    if not rows:
        raise Problem(f"{bench.prompts}: no prompt in it")
    texts = longer(bench, rows)
    found: dict[str, Prompt] = {}
    for (place, name, dimensions, state, _), text in zip(rows, texts, strict=True):
        if not (name and text.strip()):
            raise Problem(f"{place}: an empty prompt; remove the line")
        before = found.get(name)
        if before and bench.suite in ("lines", "videophy2"):
            raise Problem(f"{place}: {name!r} is there twice; remove one")
        if before and (before.text, before.state) != (text, state):
            raise Problem(f"{place}: {name!r} is there twice, with another text or state; remove one")
        dimensions = tuple(dict.fromkeys([*(before.dimensions if before else ()), *dimensions]))
        videos = max([bench.videos, *(bench.more[name] for name in dimensions if name in bench.more)])
        found[name] = Prompt(name, text, videos, dimensions, state)
    unknown = bench.more.keys() - {name for prompt in found.values() for name in prompt.dimensions}
    if unknown:
        raise Problem(f"benches.more: {', '.join(sorted(unknown))}: no prompt of {bench.prompts} is rated on that")
    return list(found.values())


def plan(asked: list[Prompt], shard: int = 0, shards: int = 1) -> list[tuple[int, int]]:
    """(prompt_id, index) of the videos of one shard: a stretch of all of them, in order."""
    cells = [(number, index) for number, prompt in enumerate(asked) for index in range(prompt.videos)]
    return cells[len(cells) * shard // shards : len(cells) * (shard + 1) // shards]


def by_state(asked: list[Prompt]) -> dict[str, list[int]]:
    """State of matter -> prompt_id of its prompts; empty where prompts have none."""
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(asked):
        if prompt.state:
            found.setdefault(prompt.state, []).append(number)
    return found


def longer(bench: Asked, rows: list["Row"]) -> list[str]:
    """What the model is given for each row: its prompt, or the longer text that the bench has for it."""
    if bench.variant == "short":
        return [name for _, name, *_ in rows]
    if bench.extended is None:
        texts = [text for *_, text in rows]
        if not all(texts):
            raise Problem(f"benches.extended: missing; {bench.prompts} holds no longer texts, name a file that does")
        return texts
    lines = [text for _, text, *_ in read_lines(Path(bench.extended))]
    if len(lines) != len(rows):
        raise Problem(
            f"{bench.extended}: {len(lines)} lines for the {len(rows)} prompts of {bench.prompts};"
            " they must be of one version"
        )
    return lines


# --- the benchmarks' files ------------------------------------------------------------------------------------------

Row = tuple[str, str, tuple[str, ...], str, str]  # where it stands, prompt, dimensions, state of matter, longer text


def read_lines(path: Path) -> Iterable[Row]:
    """One prompt to a line."""
    for number, line in enumerate(read(path).removesuffix("\n").split("\n"), 1):
        yield f"{path}:{number}", line.strip(), (), "", ""


def read_videophy(path: Path) -> Iterable[Row]:
    """VideoPhy's test set: a row for each video that its authors rated, so ten of each caption; or a plain list."""
    if path.suffix == ".txt":
        yield from read_lines(path)
        return
    seen = {}
    for place, row in read_csv(path, "caption", "states_of_matter"):
        name, state = row["caption"].strip(), row["states_of_matter"].strip()
        if seen.setdefault(name, state) != state:
            raise Problem(f"{place}: {name!r} is {state!r} here and {seen[name]!r} above")
        yield place, name, (), state, ""


def read_videophy2(path: Path) -> Iterable[Row]:
    """VideoPhy2's list of captions with their longer texts."""
    for place, row in read_csv(path, "caption", "upsampled_caption"):
        yield place, row["caption"].strip(), (), "", row["upsampled_caption"].strip()


def read_registry(path: Path) -> Iterable[Row]:
    """VBench's and VBench-2.0's full_info.json: prompts with the dimensions that they are rated on."""
    try:
        entries = json.loads(read(path))
    except json.JSONDecodeError as error:
        raise Problem(f"{path}: no JSON: {error}") from None
    if not isinstance(entries, list):
        raise Problem(f"{path}: expected a list of prompts, found {type(entries).__name__}")
    for number, entry in enumerate(entries):
        place = f"{path}: entry {number}"
        name, dimensions = (entry.get("prompt_en"), entry.get("dimension")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(dimensions, list) or not dimensions:
            raise Problem(
                f"{place}: no `prompt_en` with a list of `dimension`; is this the benchmark's full_info.json?"
            )
        yield place, name, tuple(map(str, dimensions)), "", ""


READERS = {
    "lines": read_lines,
    "videophy": read_videophy,
    "videophy2": read_videophy2,
    "vbench": read_registry,
    "vbench2": read_registry,
}


def read(path: Path) -> str:
    """A prompt file's text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise Problem(f"{path}: no such prompt file; `moalign prompts --help-fetch` says where it comes from") from None
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: not UTF-8: {error}") from None


def read_csv(path: Path, *columns: str) -> Iterable[tuple[str, dict[str, str]]]:
    """Rows of a csv with these columns, each with its place."""
    table = csv.DictReader(read(path).splitlines(keepends=True))
    missing = [name for name in columns if name not in (table.fieldnames or ())]
    if missing:
        raise Problem(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.fieldnames or ('none',))}")
    for row in table:
        if any(row[name] is None for name in columns):
            raise Problem(f"{path}:{table.line_num}: fewer cells than the header has")
        yield f"{path}:{table.line_num}", row
