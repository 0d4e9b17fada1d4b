"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LINE_SECONDS = 15.0  # between lines in a log file


def track(items: Iterable[Item], what: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
    """Yield the items, showing what is counted, the rate and the time left. `done` were finished before (a resume)."""
    if total is None:
        total = done + len(items)  # a sized collection, where no total is given
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, initial=done, dynamic_ncols=True)
        return
    started = shown = time.monotonic()
    count = done
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - shown >= LINE_SECONDS or count == total:
            shown = now
            rate = (count - done) / max(now - started, 1e-9)
            left = (total - count) / rate if rate else 0.0
            say(f"{what}: {count}/{total}, {rate:.2f}/s, {left:.0f} s left")


def say(text: str) -> None:
    """One line on stderr, which is the rule's log."""
    print(text, file=sys.stderr, flush=True)
