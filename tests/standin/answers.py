"""What the stand-ins have in common: answers that are hashes, and the oddities that ODD plants.

ODD names some of: shuffled, doubled, conflict, unknown, nan, unparsed, high, short (a row too few). DIE is the number
of rows after which the process kills itself. Each start is noted in STARTS.
"""

import hashlib
import os
import signal
from pathlib import Path

ODD = os.environ.get("ODD", "").split()


def share(text: str) -> float:
    """In [0, 1), of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def started(what: str) -> None:
    if path := os.environ.get("STARTS"):
        with open(path, "a") as file:
            file.write(what + "\n")


def spoilt(rows: list[list], score: int, high: float) -> list[list]:
    """Rows [path, ..., score] with what ODD names done to them."""
    if "shuffled" in ODD:
        rows = sorted(rows, key=lambda row: share(str(row)))
    for name, value in (("nan", "nan"), ("unparsed", 0), ("high", high)):
        if name in ODD:
            rows[1][score] = value
    if "doubled" in ODD:
        rows = rows + [list(row) for row in rows]
    if "conflict" in ODD:
        rows = [*rows, [*rows[0][:score], 0.5 if rows[0][score] != 0.5 else 0.25, *rows[0][score + 1 :]]]
    if "unknown" in ODD:
        rows[0][0] = str(Path(rows[0][0]).with_name("other.mp4"))
    return rows[: -1 if "short" in ODD else None]


def tick(done: int) -> None:
    """Die where it is time."""
    if done == int(os.environ.get("DIE", "-1")):
        os.kill(os.getpid(), signal.SIGKILL)
