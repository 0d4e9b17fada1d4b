"""A study under load: 50 raters, 5,000 votes on loopback, a kill in the middle: `python tests/bench_study.py`.

Prints votes acknowledged, stored, lost and doubled, and how long a vote took.
"""

import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import test_study as tests

from moalign.stages import study
from moalign.study import plan as planning
from moalign.study import server
from moalign.study.prepare import prepare

RATERS, PAUSE = 50, 0.55  # seconds between a rater's votes: the server takes 20 requests in 10 seconds


def main() -> int:
    """0 where nothing is lost or doubled."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "study"
        texts = dict.fromkeys(tests.TEXTS, "a ball falls")
        pairs = [(ours, base) for ours in ("cog-moalign",) for base in ("cog-base", "cog-videorepa")]
        texts |= {1000 + number: "a ball falls" for number in range(38)}
        made = planning.make(texts, pairs, RATERS, RATERS, repeat=0.0, catch=0.0)
        folder.mkdir(parents=True)
        (folder / study.PLAN).write_text(made.dump())
        clip = tests.video.encode(np.zeros((8, 64, 64, 3), np.uint8), 8)
        (Path(name) / "clip.mp4").write_bytes(clip)
        videos = {run: dict.fromkeys(texts, Path(name) / "clip.mp4") for run in tests.RUNS}
        tokens = prepare(made, folder, videos)
        return asyncio.run(load(folder, tokens))


async def load(folder: Path, tokens: list[str]) -> int:
    """Vote, kill, start again, vote on; count."""
    process, address = tests.listening(folder)
    where, acknowledged, seconds = {"address": address}, [], []
    killed = asyncio.Event()

    async def rate(token: str) -> None:
        async with httpx.AsyncClient(headers=tests.bearer(token), timeout=30) as http:
            told, started = None, time.monotonic()
            while told is None or told.get("trial"):
                try:
                    if told is None:
                        told = (await http.get(f"{where['address']}/next")).json()
                        continue
                    body = {"trial": told["trial"], "choice": "left", "seconds": 1.0}
                    started = time.perf_counter()
                    answer = await http.post(f"{where['address']}/vote", json=body)
                    if answer.status_code == 200:
                        seconds.append(time.perf_counter() - started)
                        acknowledged.append(told["trial"])
                        told = answer.json()
                except (httpx.TransportError, json.JSONDecodeError):
                    told = None  # the server is down; the same trial comes again
                await asyncio.sleep(PAUSE)

    async def kill() -> None:
        nonlocal process
        while len(acknowledged) < 2000:
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        process, where["address"] = await asyncio.to_thread(tests.listening, folder)

    began = time.monotonic()
    await asyncio.gather(kill(), *(rate(token) for token in tokens))
    process.terminate()
    opened = server.Study(folder)
    stored = Counter(opened.opaque[trial] for _, trial, *_ in opened.store.votes())
    lost, doubled = set(acknowledged) - set(stored), [trial for trial, count in stored.items() if count > 1]
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    print(f"{len(acknowledged)} votes acknowledged, {len(stored)} stored, {len(lost)} lost, {len(doubled)} doubled;")
    print(f"a vote took {p50:.0f} ms, 99 % at most {p99:.0f} ms; {time.monotonic() - began:.0f} s, one kill -9")
    return int(bool(lost or doubled or len(stored) < len(opened.plan.trials)))


if __name__ == "__main__":
    sys.exit(main())
