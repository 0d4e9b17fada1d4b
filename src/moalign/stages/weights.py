"""Which pretrained weights the parameters need, and whether what lies here is they: `moalign weights check`, offline.

    moalign weights check --scale paper            exit status 0: all present and right; 1: something is not
    moalign weights check --scale paper --record   writes hashes and commits of what is right into weights.lock.yaml

resources/weights.yaml says what is known of each checkpoint before it is fetched, resources/weights.lock.yaml what this
site fetched, a SHA256SUMS beside weights what their maker wrote. What lies here is compared with all of them, and then
opened by the code that the jobs open it with.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import yaml
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError
from pydantic import Field, ValidationError
from safetensors import safe_open

from moalign import config, manifest
from moalign.backbones import FAMILIES, PARTS, loading
from moalign.config import Count, Names, Natural, Params, Section
from moalign.errors import Problem
from moalign.progress import say, track
from moalign.teacher import raft, videomae

REGISTRY = "resources/weights.yaml"  # beside params.yaml, as the lock
LOCK = "resources/weights.lock.yaml"
FOLDERS = (*loading.FOLDERS.values(), "scheduler")  # of a backbone in the hub's layout
DIGITS = re.compile(r"-([0-9a-f]{8,64})\.pth$")  # of the sha256, in the names of torch.hub's files
SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")  # a line of `sha256sum`
PIECE = 1 << 26  # bytes hashed between two steps of the progress bar


class File(Section):
    """What is known of one file."""

    bytes: Natural | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None = None
    """hex digest, or its first digits"""


class Checkpoint(Section):
    """A row of resources/weights.yaml, whose head explains the keys."""

    role: str
    keys: Names
    hub: str | None
    revision: str | None
    include: Names = ()
    bytes: Count
    files: dict[str, File]
    licence: str
    fetch: str


class Locked(Section):
    """A row of resources/weights.lock.yaml: the files of a checkpoint as they were recorded."""

    revision: str | None
    files: dict[str, File]


@dataclass(frozen=True)
class Use:
    """A value of params.yaml that names weights."""

    key: str
    weights: str
    hub: bool  # may be a hub name
    revision: str | None
    open: Callable[[Path], object]  # raises the Problem that a job would

    @property
    def name(self) -> str:
        """Of its row in the registry."""
        return Path(self.weights).name


def check(params: str = "params.yaml", scale: str | None = None, record: bool = False) -> int:
    """Report on every checkpoint that the parameters use; 0 where all are present and right, else 1."""
    top = Path(params).parent
    known, locked = _rows(top / REGISTRY, Checkpoint), _rows(top / LOCK, Locked)
    counts, total, lacking = dict.fromkeys(("present", "different", "missing"), 0), 0, 0
    for use in uses(config.load(params, **({"scale": scale} if scale else {}))):
        row, place = known.get(use.name), locate(use)
        wrong, files = compare(use, place, row, locked.get(use.weights), record) if place else ([], {})
        status = "missing" if place is None else "different" if wrong else "present"
        counts[status] += 1
        size = row.bytes if row else sum(file.bytes for file in files.values())
        total, lacking = total + size, lacking + size * (status != "present")
        print(f"{status:9}  {use.weights}  ({use.key}{f': {row.role}' if row else ''})")
        print(f"{'':9}  {'at' if place else 'looked at'} {place or _nowhere(use)}")
        for line in wrong:
            print(f"{'':9}  - {line}")
        if status != "present":
            print(f"{'':9}  {_cure(use, row, wrong, params)}")
        elif record:
            locked[use.weights] = Locked(revision=_commit(place), files=files)
    print(
        f"{', '.join(f'{number} {status}' for status, number in counts.items())};"
        f" {_size(total)} are needed on disk, {_size(lacking)} of them to fetch"
    )
    if record:
        head = f"# What was fetched here, by `moalign weights check --record`. {REGISTRY} says what was known before.\n"
        rows = {name: row.model_dump(mode="json") for name, row in sorted(locked.items())}
        manifest.write_text(top / LOCK, head + yaml.safe_dump(rows, sort_keys=False, width=1000))
        say(f"{top / LOCK}: {counts['present']} recorded")
    return int(counts["present"] < sum(counts.values()))


def uses(params: Params) -> list[Use]:
    """What the jobs of these parameters load: the backbones of the tables' runs, the synthesiser, V, RAFT."""
    names = dict.fromkeys([*(params.runs[run].backbone for run, _, _ in params.rows()), params.synth.backbone])
    found = []
    for name in names:
        row = params.backbones[name]
        found.append(Use(f"backbones.{name}.weights", row.weights, True, row.revision, partial(_open_backbone, row)))
    found.append(Use("encoder.weights", params.encoder.weights, False, None, lambda _: videomae.load(params.encoder)))
    found.append(Use("flow.weights", params.flow.weights, False, None, lambda _: raft.load(params.flow)))
    return found


def locate(use: Use) -> Path | None:
    """The file or folder that a job would read, or None; a hub name is looked up in the hub's cache alone."""
    place = Path(use.weights)
    if place.is_dir() or not use.hub:
        return place if place.exists() else None
    try:
        return Path(snapshot_download(use.weights, revision=use.revision, local_files_only=True))
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def compare(
    use: Use, place: Path, row: Checkpoint | None, lock: Locked | None, every: bool
) -> tuple[list[str], dict[str, File]]:
    """What is wrong at a place, one line each, and its files: with hashes where one is known, or all with `every`.

    The registry's files are left aside where params.yaml asks for another commit than theirs.
    """
    root = place if place.is_dir() else place.parent
    told = []
    if row and (use.revision or row.revision) == row.revision:
        told += [(REGISTRY, name, file) for name, file in row.files.items()]
    if lock:
        told += [(LOCK, name, file) for name, file in lock.files.items()]
    told += [
        ("SHA256SUMS", name, File(sha256=digest)) for name, digest in _sums(root) if root == place or name == use.name
    ]
    if place.is_file() and (digits := DIGITS.search(place.name)):
        told.append(("its name", place.name, File(sha256=digits[1])))

    present = {path.relative_to(root).as_posix(): path for path in _read_files(use, place)}
    present |= {name: root / name for _, name, _ in told if (root / name).is_file()}
    wrong = [f"{name}: missing" for _, name, _ in told if name not in present]
    if lock and lock.revision != _commit(place):
        wrong.append(f"commit {_commit(place)}, and {LOCK} says {lock.revision}")
    hashed = list(present) if every else [name for _, name, file in told if file.sha256 and name in present]
    digests = _hash({name: present[name] for name in dict.fromkeys(hashed)}, use.weights)
    files = {name: File(bytes=path.stat().st_size, sha256=digests.get(name)) for name, path in present.items()}
    for who, name, file in told:
        found = files.get(name, file)
        if file.bytes and found.bytes != file.bytes:
            wrong.append(f"{name}: {found.bytes} bytes, and {who} says {file.bytes}")
        elif file.sha256 and not found.sha256.startswith(file.sha256):
            wrong.append(f"{name}: sha256 {found.sha256[: max(12, len(file.sha256))]}, and {who} says {file.sha256}")
    wrong += _damage(place, present)
    if not wrong:  # what is not what it should be is not opened
        try:
            use.open(place)
        except Problem as problem:
            wrong.append(str(problem))
    return list(dict.fromkeys(wrong)), files


def _open_backbone(row: config.Backbone, folder: Path) -> None:
    """The checks of `backbones.load`, on configs and tokenizer, without the weights."""
    family, found = FAMILIES[row.family], loading.look(str(folder), None, PARTS)
    for part, cls in (("transformer", family.transformer_class), ("vae", family.vae_class)):
        found.check_class(part, cls, row.family)
    family.check(row, found)
    loading.load_tokenizer(found.folders["tokenizer"], row.text_tokens)


def _read_files(use: Use, place: Path) -> list[Path]:
    """The files that the loaders read at a place."""
    if place.is_file():
        return [place]
    patterns = [f"{folder}/*" for folder in FOLDERS] if use.hub else ["*"]
    return sorted(path for pattern in patterns for path in place.glob(pattern) if path.is_file())


def _damage(place: Path, present: dict[str, Path]) -> list[str]:
    """Damage that shows without a hash: shards that an index names, parts without weights, cut and torn files."""
    wrong = []
    for name, path in present.items():
        try:
            if name.endswith(".safetensors.index.json"):
                shards = sorted(set(loading.read_config(path)["weight_map"].values()))
                lacking = [f"{path.parent.name}/{shard}" for shard in shards if not (path.parent / shard).is_file()]
                wrong += [f"{shard}: missing" for shard in lacking]
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):  # reads the header, and compares it with the file's size
                    pass
            elif zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as file:
                    if torn := file.testzip():
                        wrong.append(f"{name}: damaged at {torn}")
        except (Problem, *loading.UNREADABLE, zipfile.BadZipFile) as error:
            wrong.append(f"{name}: cut or damaged ({loading.first_line(error)})")
    weights = {name.split("/")[0] for name in present if name.endswith((".safetensors", ".bin"))}
    parts = [loading.FOLDERS[part] for part in PARTS] if (place / "transformer").is_dir() else []
    return wrong + [f"{part}: no weights" for part in parts if part not in weights]


def _sums(root: Path) -> Iterator[tuple[str, str]]:
    """(file, sha256) of a SHA256SUMS."""
    path = root / "SHA256SUMS"
    for line in path.read_text().splitlines() if path.is_file() else ():
        entry = SUM.fullmatch(line)
        if entry is None:
            raise Problem(f"{path}: {line!r} is not a sha256 and a file; write it with `sha256sum`")
        yield entry[2], entry[1]


def _hash(paths: dict[str, Path], what: str) -> dict[str, str]:
    """sha256 of each file, all under one progress bar."""
    digests = {name: hashlib.sha256() for name in paths}

    def pieces() -> Iterator[None]:
        for name, path in paths.items():
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    digests[name].update(piece)
                    yield

    steps = sum(-(-path.stat().st_size // PIECE) for path in paths.values())
    for _ in track(pieces(), f"hashing {what}, {PIECE >> 20} MiB at a time", total=steps):
        pass
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _rows(path: Path, kind: type[Section]) -> dict:
    """Rows of a registry or a lock; a lock need not be there."""
    if kind is Locked and not path.exists():
        return {}
    rows = config.read_yaml(path)
    try:
        return {name: kind.model_validate(row) for name, row in rows.items()}
    except ValidationError as error:
        raise Problem(config.explain(error, kind, str(path))) from None


def _commit(place: Path) -> str | None:
    """The commit of a snapshot in the hub's cache."""
    return place.name if place.parent.name == "snapshots" else None


def _nowhere(use: Use) -> str:
    return f"{use.weights} and the hub's cache, {constants.HF_HUB_CACHE}" if use.hub else use.weights


def _cure(use: Use, row: Checkpoint | None, wrong: list[str], params: str) -> str:
    """Licence and command to fetch it."""
    if row is None:
        return f"{REGISTRY} has no row {use.name!r}, so neither its licence nor how to fetch it is known"
    command = row.fetch.format(revision=use.revision or row.revision, to=use.weights)
    if row.hub and use.weights != row.hub:
        command += f" --local-dir {use.weights}"
    if row.hub and not all(line.endswith(": missing") for line in wrong):
        command += " --force-download"  # else the hub's client keeps what it has
    if use.weights == row.hub and use.revision is None:  # a snapshot that was fetched by its commit is found by it only
        command += f"  # and set {use.key.replace('.weights', '.revision')}: {row.revision} in {params}"
    return f"fetch ({row.licence}): {command}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
