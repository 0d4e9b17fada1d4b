"""The study's server: one page, clips under opaque names, votes in SQLite.

A rater's token is the only key; it comes behind the # of a link, which browsers send to nobody, and then in a header.
What the page is told is a trial's number, the prompt and two clips' names: no run, no rater, no side. A vote is
answered once it is on the disk; sent twice, it counts once.
"""

import hashlib
import json
import sqlite3
import time
from collections import Counter, defaultdict, deque
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from moalign.errors import Problem
from moalign.study.plan import Plan, Trial

CHOICES = ("left", "right", "broken")
EXPIRES = 30 * 60.0  # seconds that a trial stays open
BODY = 1024  # bytes of a vote, at most
LOOK = 8  # trials ahead among which the pair with fewest votes comes first, so that the planned order nearly holds
RATE = 20, 10.0  # requests of one token in so many seconds; more is refused
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
SCHEMA = """
create table if not exists opened (rater integer, trial text, at real, primary key (rater, trial));
create table if not exists vote
    (rater integer, trial text, choice text, seconds real, at real, primary key (rater, trial));
create table if not exists refused (at real, what text);
"""


class Store:
    """Votes and open trials. Every change is one immediate transaction, on the disk before it is acknowledged."""

    def __init__(self, path: Path, pairs: dict[str, tuple]):
        """pairs: trial -> its pair, of those trials that count for one."""
        self.path, self.pairs = path, pairs
        with self.begin() as db:
            db.executescript(SCHEMA)

    @contextmanager
    def begin(self):
        """A connection of its own: requests run in threads."""
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = full")
            yield db
        finally:
            db.close()

    @contextmanager
    def write(self):
        """All or nothing."""
        with self.begin() as db:
            db.execute("begin immediate")
            try:
                yield db
                db.execute("commit")
            except BaseException:
                db.execute("rollback")
                raise

    def next(self, rater: int, trials: list[Trial], now: float) -> tuple[int, Trial | None, int]:
        """(votes so far, the rater's next trial, of how many): the open one, or the pair that has fewest votes."""
        by_id = {trial.id: trial for trial in trials}
        with self.write() as db:
            voted = {row[0] for row in db.execute("select trial from vote where rater = ?", (rater,))}
            db.execute("delete from opened where at < ?", (now - EXPIRES,))
            left = [trial for trial in trials if trial.id not in voted]
            if not left:
                return len(voted), None, len(trials)
            if row := db.execute("select trial from opened where rater = ? order by at desc", (rater,)).fetchone():
                return len(voted), by_id[row[0]], len(trials)
            chosen = left[0]
            if chosen.kind == "pair":
                names = (self.pairs.get(name) for (name,) in db.execute("select trial from vote"))
                counts = Counter(filter(None, names))
                ahead = [trial for trial in left[:LOOK] if trial.kind == "pair"]
                chosen = min(ahead, key=lambda trial: counts[trial.pair])  # the planned order where they are equal
            db.execute("insert into opened values (?, ?, ?)", (rater, chosen.id, now))
            return len(voted), chosen, len(trials)

    def vote(self, rater: int, trial: str, choice: str, seconds: float, now: float) -> str:
        """counted; again: the same vote once more; other: a second opinion; closed: the trial is not open."""
        with self.write() as db:
            row = db.execute("select choice from vote where rater = ? and trial = ?", (rater, trial)).fetchone()
            if row:
                return "again" if row[0] == choice else "other"
            found = db.execute("select at from opened where rater = ? and trial = ?", (rater, trial)).fetchone()
            if not found or found[0] < now - EXPIRES:
                return "closed"
            db.execute("insert into vote values (?, ?, ?, ?, ?)", (rater, trial, choice, seconds, now))
            db.execute("delete from opened where rater = ? and trial = ?", (rater, trial))
            return "counted"

    def refuse(self, what: str) -> None:
        """Note a request that was turned away."""
        with self.write() as db:
            db.execute("insert into refused values (?, ?)", (time.time(), what[:200]))

    def votes(self) -> list[tuple[int, str, str, float, float]]:
        """(rater, trial, choice, seconds, at), in the order of their coming."""
        with self.begin() as db:
            return db.execute("select rater, trial, choice, seconds, at from vote order by at, rowid").fetchall()


class Study:
    """What the server knows: the plan, whose token is whose, which name is which clip."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.plan = Plan.load(self.folder / "plan.jsonl")
        try:
            secret = json.loads((self.folder / "secret.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Problem(f"{folder}: no secret.json ({error}); run `moalign study prepare` first") from None
        self.tokens: dict[str, int] = {digest: rater for rater, digest in enumerate(secret["tokens"])}
        self.clips: dict[str, str] = secret["clips"]  # "run/prompt" -> opaque name
        self.salt = secret["salt"]
        self.opaque = {trial.id: self.name(trial.id) for trial in self.plan.trials}
        # each showing has a name of its own: the clip that comes again is the run that all others are compared with
        self.shown = {
            self.name(trial.id, side): self.clips[f"{getattr(trial, side)}/{trial.prompt}"]
            for trial in self.plan.trials
            for side in ("left", "right")
        }
        self.trials: dict[int, list[Trial]] = defaultdict(list)
        for trial in self.plan.trials:
            self.trials[trial.rater].append(trial)
        self.known = {(trial.rater, self.opaque[trial.id]): trial.id for trial in self.plan.trials}
        pairs = {trial.id: trial.pair for trial in self.plan.trials if trial.kind == "pair"}
        self.store = Store(self.folder / "votes.sqlite", pairs)
        self.asked: dict[int, deque] = defaultdict(deque)

    def name(self, *of: str) -> str:
        """What a client sees in place of a trial or of a clip in it."""
        return hashlib.sha256("/".join((self.salt, *of)).encode()).hexdigest()[:24]

    def rater(self, request: Request) -> int | None:
        """Whose request it is."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return self.tokens.get(hashlib.sha256(token.encode()).hexdigest()) if kind == "Bearer" else None

    def too_fast(self, rater: int) -> bool:
        """More requests than a person makes."""
        count, span = RATE
        times, now = self.asked[rater], time.monotonic()
        while times and times[0] < now - span:
            times.popleft()
        times.append(now)
        return len(times) > count


class Headers:
    """Every answer carries HEADERS, and nothing that tells what answered."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def sent(message):
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name not in UNSAID]
                message["headers"] = kept + [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self.app(scope, receive, sent if scope["type"] == "http" else send)


UNSAID = (b"last-modified", b"etag", b"server")  # a clip's date would tell which job made it


def application(folder: str | Path) -> Starlette:
    """The server over a prepared study."""
    study = Study(folder)

    def refuse(request: Request, status: int, text: str) -> Response:
        study.store.refuse(f"{status} {request.method} {request.url.path}: {text}")
        return JSONResponse({"error": text}, status)

    def following(rater: int) -> dict:
        done, trial, total = study.store.next(rater, study.trials[rater], time.time())
        told = {"done": done, "total": total, "question": study.plan.question, "trial": None}
        if trial is None:
            return told
        clip = {side: f"clip/{study.name(trial.id, side)}" for side in ("left", "right")}
        return told | {"trial": study.opaque[trial.id], "prompt": study.plan.prompts[trial.prompt], **clip}

    def next_trial(request: Request) -> Response:
        rater = study.rater(request)
        if rater is None:
            return refuse(request, 403, "This link is not valid. Please use the one that you were sent.")
        if study.too_fast(rater):
            return refuse(request, 429, "Too many requests; please wait a few seconds.")
        return JSONResponse(following(rater))

    async def vote(request: Request) -> Response:
        rater = study.rater(request)
        if rater is None:
            return refuse(request, 403, "This link is not valid. Please use the one that you were sent.")
        if study.too_fast(rater):
            return refuse(request, 429, "Too many requests; please wait a few seconds.")
        body = b""
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > BODY:
                    return refuse(request, 413, "This is too long for a vote.")
            given = json.loads(body)
            trial, choice, seconds = given["trial"], given["choice"], float(given["seconds"])
            known = study.known.get((rater, trial))
        except (ValueError, KeyError, TypeError, ClientDisconnect):
            return refuse(request, 400, "This is not a vote.")
        if choice not in CHOICES or not 0 <= seconds < 1e6:
            return refuse(request, 400, "This is not a vote.")
        if known is None:
            return refuse(request, 404, "No such trial.")
        found = await run_in_threadpool(study.store.vote, rater, known, choice, seconds, time.time())
        if found == "other":
            return refuse(request, 409, "There is a vote on this trial already.")
        if found == "closed":
            return refuse(request, 410, "This trial was open for too long; please load the page again.")
        return JSONResponse(await run_in_threadpool(following, rater))

    def clip(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in study.shown:
            return refuse(request, 404, "No such clip.")
        return FileResponse(study.folder / "clips" / study.shown[name], media_type="video/mp4")

    def asset(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2] or "page.html"
        kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
        return Response(files("moalign.study").joinpath(name).read_text(encoding="utf-8"), media_type=kind)

    routes = [
        Route("/", asset),
        Route("/page.css", asset),
        Route("/page.js", asset),
        Route("/next", next_trial),
        Route("/vote", vote, methods=["POST"]),
        Route("/clip/{name}", clip),
    ]

    def nothing(request: Request, error: Exception) -> Response:
        return refuse(request, 404, "There is nothing here.")

    made = Starlette(routes=routes, middleware=[Middleware(Headers)], exception_handlers={404: nothing, 405: nothing})
    made.state.study = study
    return made
