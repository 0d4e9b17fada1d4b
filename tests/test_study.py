"""The user study: plan, clips, server, page, numbers."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright import sync_api
from scipy.stats import binomtest
from starlette.testclient import TestClient

from moalign import config, manifest, video
from moalign.errors import Problem
from moalign.manifest import Sample
from moalign.stages import report, study
from moalign.study import plan as planning
from moalign.study import server
from moalign.study.analyse import analyse, clustered, counted, excluded, strengths, wins
from moalign.study.plan import SHUFFLED, Plan
from moalign.study.simulate import Raters, simulate

TOP = Path(__file__).parents[1]
RUNS = ("cog-moalign", "cog-base", "cog-videorepa")
TEXTS = {number: f"a ball number {number} falls" for number in range(0, 60, 5)}


def small(votes=3, raters=4, **changes):
    pairs = [("cog-moalign", "cog-base"), ("cog-moalign", "cog-videorepa")]
    return planning.make(TEXTS, pairs, votes, raters, **changes)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """RUN=MANIFEST of three runs that move differently."""
    top, params = tmp_path_factory.mktemp("samples"), config.load(TOP / "params.yaml", scale="smoke")
    pin = top / "pin.yaml"
    pin.write_text(config.dump(config.pin(params, "sample", run="cog-base", seed=0, bench="physics")))
    for speed, run in enumerate(RUNS):
        with manifest.making(top / f"{run}.jsonl", Sample, pin=pin) as made:
            for number, text in TEXTS.items():
                y, x = np.mgrid[:64, :64]
                frames = np.stack([(x - 4 - speed * f) ** 2 + (y - 24) ** 2 < 60 for f in range(8)])
                frames = np.where(frames[..., None], np.uint8(200), np.uint8(number * 3)).repeat(3, -1)
                video.write(top / run / f"{number}.mp4", frames, 8)
                made.rows.append(Sample(number, text, text, 0, number, f"{run}/{number}.mp4", 8.0, 8))
    return [f"{run}={top / run}.jsonl" for run in RUNS]


@pytest.fixture
def folder(samples, tmp_path):
    """A study that is ready to be served."""
    study.plan(samples, str(tmp_path / "study"), prompts=12, votes=3, raters=4)
    study.prepare(str(tmp_path / "study"), samples)
    return tmp_path / "study"


def tokens(folder):
    rows = csv.DictReader((folder / "invites.csv").read_text().splitlines())
    return [row["link"].removeprefix("#") for row in rows]


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("votes", "raters"), [(1, 1), (3, 4), (7, 9), (4, 4), (6, 17)])
def test_sides_are_balanced_and_no_pair_comes_twice(votes, raters):
    made = small(votes, raters)
    pairs = [trial for trial in made.trials if trial.kind == "pair"]
    assert len(pairs) == 2 * len(TEXTS) * votes
    for key in (lambda trial: trial.pair, lambda trial: trial.rater):
        first = defaultdict(list)
        for trial in pairs:
            first[key(trial)].append(trial.left == "cog-moalign")
        assert all(abs(2 * sum(of) - len(of)) <= 1 for of in first.values())
    assert max(Counter((trial.rater, trial.pair) for trial in pairs).values()) == 1
    assert set(Counter(trial.pair for trial in pairs).values()) == {votes}
    loads = Counter(trial.rater for trial in pairs).values()
    assert max(loads) - min(loads) <= 1
    for rater in range(raters):
        mine = [trial for trial in made.trials if trial.rater == rater]
        load = sum(trial.kind == "pair" for trial in mine)
        assert sum(trial.kind == "catch" for trial in mine) >= np.floor(0.1 * load)
        for at, trial in enumerate(mine):
            if trial.kind == "repeat":
                before = next(n for n, other in enumerate(mine) if other.pair == trial.pair and other.kind == "pair")
                assert mine[before].left == trial.right and at - before >= planning.APART


def test_a_plan_is_a_function_of_its_seed_and_cannot_be_edited(tmp_path):
    assert small(seed=3) == small(seed=3) != small(seed=4)
    path = tmp_path / "plan.jsonl"
    path.write_text(small().dump())
    assert Plan.load(path) == small()
    path.write_text(path.read_text().replace('"votes": 3', '"votes": 2'))
    with pytest.raises(Problem, match="edited since"):
        Plan.load(path)


def test_the_number_of_votes_that_a_power_needs():
    assert planning.votes_needed(0.6, 0.8, 1) == 194  # the usual formula's
    found = planning.votes_needed(0.6, 0.8, 6.7)
    assert 400 < found < 430
    rng = np.random.default_rng(0)
    wins = rng.binomial(194, 0.6, 400)
    assert np.mean([binomtest(int(won), 194).pvalue < 0.05 for won in wins]) == pytest.approx(0.8, abs=0.06)


# --- what raters get --------------------------------------------------------------------------------------------------


def test_clips_differ_in_nothing_but_their_pictures(folder):
    made, secret = Plan.load(folder / "plan.jsonl"), json.loads((folder / "secret.json").read_text())
    files = {path.name: path for path in (folder / "clips").iterdir()}
    assert set(secret["clips"].values()) == set(files) and len(files) == len(secret["clips"])
    assert len({path.stat().st_size for path in files.values()}) == 1
    looks = {(look.frames, look.fps, look.height, look.width) for look in map(video.probe, files.values())}
    assert len(looks) == 1
    for path in files.values():
        data = path.read_bytes()
        assert not any(run.encode() in data for run in RUNS) and b"moalign" not in data.lower()
        assert re.fullmatch(r"[0-9a-f]{24}\.mp4", path.name)
    caught = next(trial for trial in made.trials if trial.kind == "catch")
    right, wrong = sorted((caught.left, caught.right), key=len)
    one, two = (
        video.read(files[secret["clips"][f"{run}/{caught.prompt}"]], list(range(8))).astype(int)
        for run in (right, wrong)
    )
    assert wrong == SHUFFLED + right and np.abs(one - two).max() > 60
    assert (folder / "secret.json").stat().st_mode & 0o077 == 0


def test_nothing_that_a_client_sees_tells_the_run(folder):
    """Every answer of every rater, to the end: no run's name, and nothing that predicts the left run."""
    app = server.application(folder)
    opened, seen, names = app.state.study, [], []
    client = TestClient(app)
    for path in ("/", "/page.js", "/page.css"):
        assert not re.search("cog|moalign|repa|base", client.get(path).text.lower().replace("base-uri", ""))
    for rater, token in enumerate(tokens(folder)):
        opened.asked.clear()
        told = client.get("/next", headers=bearer(token)).json()
        while told["trial"]:
            opened.asked.clear()
            text = json.dumps(told)
            assert not any(run in text for run in (*RUNS, "shuffled"))
            trial = next(t for t in opened.plan.trials if t.rater == rater and opened.opaque[t.id] == told["trial"])
            names += [told["left"], told["right"]]
            for side in ("left", "right"):
                answer = client.get(told[side])
                headers = str(answer.headers).lower()
                assert (
                    not any(run in headers for run in RUNS) and "last-modified" not in headers and "etag" not in headers
                )
            numbers = [int(told[side][5:13], 16) / 2**32 for side in ("left", "right")]
            seen.append((*numbers, int(told["trial"][:8], 16) / 2**32, told["done"] / told["total"], trial))
            told = client.post(
                "/vote", json={"trial": told["trial"], "choice": "left", "seconds": 1}, headers=bearer(token)
            ).json()
    assert len(set(names)) == len(names)  # else the run that is in every comparison would be the one that comes again
    rows = [(row[:-1], row[-1].left == "cog-moalign") for row in seen if row[-1].kind == "pair"]
    X, y = np.array([x for x, _ in rows]), np.array([side for _, side in rows])
    guesses = [y[np.argsort(np.linalg.norm(X - x, axis=1))[1:6]].mean() > 0.5 for x in X]  # five nearest neighbours
    assert binomtest(int(np.sum(guesses == y)), len(y)).pvalue > 1e-3


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(folder):
    return TestClient(server.application(folder))


def test_a_vote_counts_once_and_cannot_be_changed(folder, client):
    token = tokens(folder)[0]
    told = client.get("/next", headers=bearer(token)).json()
    assert client.get("/next", headers=bearer(token)).json() == told  # a reload shows the same trial
    vote = {"trial": told["trial"], "choice": "right", "seconds": 3.2}
    after = client.post("/vote", json=vote, headers=bearer(token))
    assert after.status_code == 200 and after.json()["done"] == 1 and after.json()["trial"] != told["trial"]
    assert client.post("/vote", json=vote, headers=bearer(token)).json()["done"] == 1  # sent twice
    assert client.post("/vote", json=vote | {"choice": "left"}, headers=bearer(token)).status_code == 409
    assert [row[2] for row in server.Study(folder).store.votes()] == ["right"]


def test_bad_requests_are_refused_noted_and_change_nothing(folder, client):
    mine, other = tokens(folder)[:2]
    told = client.get("/next", headers=bearer(mine)).json()
    theirs = client.get("/next", headers=bearer(other)).json()
    vote = {"trial": told["trial"], "choice": "left", "seconds": 1.0}
    tries = [
        (403, lambda: client.get("/next")),
        (403, lambda: client.get("/next", headers=bearer("wrong"))),
        (403, lambda: client.post("/vote", json=vote, headers=bearer(mine + "x"))),
        (404, lambda: client.post("/vote", json=vote | {"trial": theirs["trial"]}, headers=bearer(mine))),
        (404, lambda: client.post("/vote", json=vote | {"trial": "0-pair-0-a-b"}, headers=bearer(mine))),
        (400, lambda: client.post("/vote", json=vote | {"choice": "both"}, headers=bearer(mine))),
        (400, lambda: client.post("/vote", json=vote | {"seconds": -1}, headers=bearer(mine))),
        (400, lambda: client.post("/vote", json=vote | {"trial": ["x"]}, headers=bearer(mine))),
        (400, lambda: client.post("/vote", json=[1, 2], headers=bearer(mine))),
        (400, lambda: client.post("/vote", content=b"{", headers=bearer(mine))),
        (413, lambda: client.post("/vote", content=b"x" * 5000, headers=bearer(mine))),
        (404, lambda: client.get("/clip/plan.jsonl")),
        (404, lambda: client.get("/clip/..%2fsecret.json")),
        (404, lambda: client.get("/clip/%2e%2e/secret.json")),
        (404, lambda: client.get("/secret.json")),
    ]
    for status, ask in tries:
        client.app.state.study.asked.clear()
        assert ask().status_code == status
    opened = server.Study(folder)
    assert opened.store.votes() == []
    with opened.store.begin() as db:
        assert db.execute("select count(*) from refused").fetchone()[0] >= len(tries)
    for answer in (client.get("/"), client.get("/next"), client.get(told["left"])):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["cache-control"] == "no-store"
    statuses = [client.get("/next", headers=bearer(mine)).status_code for _ in range(30)]
    assert statuses[0] == 200 and statuses[-1] == 429  # nobody votes so fast


def test_two_at_once_never_have_the_same_trial_open(folder, client):
    """All raters ask at once, each in three tabs: a trial belongs to one of them, and each has one open."""
    asked = [token for token in tokens(folder) for _ in range(3)]
    with ThreadPoolExecutor(len(asked)) as pool:
        told = list(pool.map(lambda token: client.get("/next", headers=bearer(token)).json()["trial"], asked))
    of = defaultdict(set)
    for token, trial in zip(asked, told, strict=True):
        of[trial].add(token)
    assert len(of) == len(set(asked)) and all(len(owners) == 1 for owners in of.values())
    with server.Study(folder).store.begin() as db:
        assert db.execute("select count(*) from opened").fetchone()[0] == len(of)


def test_an_open_trial_expires(folder, client, monkeypatch):
    token = tokens(folder)[0]
    told = client.get("/next", headers=bearer(token)).json()
    now = time.time()
    monkeypatch.setattr(server.time, "time", lambda: now + server.EXPIRES + 1)
    vote = {"trial": told["trial"], "choice": "left", "seconds": 1.0}
    assert client.post("/vote", json=vote, headers=bearer(token)).status_code == 410
    again = client.get("/next", headers=bearer(token)).json()
    assert client.post("/vote", json=vote | {"trial": again["trial"]}, headers=bearer(token)).status_code == 200


def test_pairs_with_fewest_votes_come_first(folder):
    opened = server.Study(folder)
    trials = opened.trials[0]
    ahead = [trial for trial in trials[: server.LOOK] if trial.kind == "pair"]
    with opened.store.write() as db:  # other raters have voted on all of these but one
        for trial in ahead[:-1]:
            db.execute("insert into vote values (9, ?, 'left', 1, 0)", (trial.id,))
    if trials[0].kind == "pair":
        assert opened.store.next(0, trials, time.time())[1] == ahead[-1]


def listening(folder):
    """A real server in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moalign", "study", "serve", "--study", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(TOP / "src")})
    address = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            httpx.get(address, timeout=1)
            return process, address
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_votes_survive_a_kill(samples, tmp_path):
    """Eight raters at once, the server killed in the middle: every acknowledged vote is there, once."""
    folder = tmp_path / "study"
    study.plan(samples, str(folder), prompts=12, votes=8, raters=8)
    study.prepare(str(folder), samples)
    process, address = listening(folder)
    acknowledged, lock, stop = [], threading.Lock(), threading.Event()

    def rate(token):
        with httpx.Client(base_url=address, headers=bearer(token), timeout=5) as http:
            try:
                told = http.get("/next").json()
                while told.get("trial") and not stop.is_set():
                    answer = http.post("/vote", json={"trial": told["trial"], "choice": "left", "seconds": 1.0})
                    if answer.status_code == 429:
                        return
                    with lock:
                        acknowledged.append(told["trial"])
                    told = answer.json()
            except httpx.TransportError:
                return  # the kill

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(rate, token) for token in tokens(folder)]
        while len(acknowledged) < 40 and not all(one.done() for one in done):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stop.set()
    process, _ = listening(folder)
    process.terminate()
    process.wait()
    opened = server.Study(folder)
    rows = opened.store.votes()
    stored = Counter(opened.opaque[trial] for _, trial, *_ in rows)
    assert len(acknowledged) >= 40 and set(acknowledged) <= set(stored) and max(stored.values()) == 1
    assert len(stored) <= len(acknowledged) + 8  # what was under way


# --- the page, in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here (Debian: chromium)")
    with sync_api.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


def awake(page):
    page.wait_for_selector("#trial:not([hidden]) [data-choice=left]:enabled", timeout=10_000)


def test_raters_go_through_the_page(folder, browser):
    """One by mouse, one by keyboard on a phone, one who loads the page again in the middle."""
    process, address = listening(folder)
    said = []
    try:
        pages = []
        for width, height, token in zip((1280, 390, 1280), (800, 844, 800), tokens(folder), strict=False):
            page = browser.new_context(viewport={"width": width, "height": height}).new_page()
            page.on("console", lambda message: said.append(message.text))
            page.goto(f"{address}/#{token}")
            page.click("#start")
            pages.append(page)
        mouse, keys, again = pages
        for number in range(12):
            awake(mouse)
            mouse.click(f"[data-choice={'left' if number % 2 else 'right'}]")
            mouse.wait_for_selector(f"#progress >> text=/^{number + 1} of/")
        for number in range(12):
            if number:  # the first pair has played while the other rater voted
                assert keys.is_disabled("[data-choice=left]")
                keys.keyboard.press("ArrowLeft")  # too early: both must be seen once
            awake(keys)
            assert keys.text_content("#progress").startswith(f"{number} of")
            keys.keyboard.press("r")
            keys.keyboard.press("ArrowLeft")
            keys.wait_for_selector(f"#progress >> text=/^{number + 1} of/")
        assert keys.evaluate("document.documentElement.scrollWidth") <= 390
        awake(again)
        shown = again.get_attribute("#left", "src"), again.text_content("#prompt")
        again.reload()
        again.click("#start")
        awake(again)
        assert (again.get_attribute("#left", "src"), again.text_content("#prompt")) == shown
        again.click("[data-choice=broken]")
        again.wait_for_selector("#progress >> text=/^1 of/")
        stranger = browser.new_page()
        stranger.goto(f"{address}/#nobody")
        stranger.wait_for_selector("#trouble:not([hidden])")
        assert "not valid" in stranger.text_content("#what")
    finally:
        process.terminate()
    votes = Counter(rater for rater, *_ in server.Study(folder).store.votes())
    assert votes == {0: 12, 1: 12, 2: 1}
    assert [text for text in said if "403" not in text] == []


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_intervals_cover_bias_is_flagged_and_clickers_are_left_out():
    """Over simulated studies in which votes of a prompt and of a rater resemble each other."""
    made = planning.make(dict.fromkeys(range(40), "x"), [("a", "b")], 7, 8)
    how = Raters(win=0.65, prompts=0.7, raters=0.4)
    truth = np.mean(
        [np.mean([wins(counted(made, simulate(made, how, seed)), "a", "b")[0].mean()]) for seed in range(400)]
    )
    inside = []
    for seed in range(500):
        low, high = clustered(*wins(counted(made, simulate(made, how, 1000 + seed)), "a", "b"), draws=500)
        inside.append(low <= truth <= high)
    assert 0.93 <= np.mean(inside) <= 1.0
    fair = [analyse(made, simulate(made, Raters(win=0.65), seed))["all"]["left"]["p"] for seed in range(60)]
    biased = [
        analyse(made, simulate(made, Raters(win=0.65, left=0.15), seed))["all"]["left"]["p"] for seed in range(20)
    ]
    assert np.mean(np.array(fair) < 0.05) <= 0.15 and np.mean(np.array(biased) < 0.05) >= 0.95


def test_clickers_are_left_out_by_the_rule():
    made = planning.make(dict.fromkeys(range(50), "x"), [("a", "b"), ("a", "c")], 8, 10, catch=0.3)
    rng = np.random.default_rng(0)
    votes = simulate(made, Raters(win=0.6, prompts=3.0), 0)
    clickers = {1, 6}
    votes = [(r, t, str(rng.choice(["left", "right"])) if r in clickers else choice) for r, t, choice in votes]
    found = analyse(made, votes)
    assert {int(rater) for rater in found["excluded"]} == clickers == set(excluded(made, counted(made, votes)))
    assert found["kept"]["repeats"]["same"] > 0.7 and found["kept"]["alpha"] > found["all"]["alpha"]


def test_strengths_need_votes_that_connect_all_runs():
    made = planning.make(dict.fromkeys(range(60), "x"), [("a", "b"), ("a", "c")], 6, 8)
    votes = counted(made, simulate(made, Raters(win=0.7), 1))
    found = strengths(votes)
    assert sum(found.values()) == pytest.approx(1) and found["a"] > max(found["b"], found["c"])
    won, *_ = wins(votes, "a", "b")
    assert found["a"] / (found["a"] + found["b"]) == pytest.approx(
        won.mean(), abs=1e-6
    )  # a star: each edge is fit exactly
    assert (
        strengths([vote for vote in votes if vote.chosen == "a" or "b" in (vote.trial.left, vote.trial.right)]) is None
    )


def test_table_six_says_what_is_known(folder, tmp_path, capsys):
    out = tmp_path / "table6.md"
    assert study.report(str(folder), str(out)) == 1
    assert "waiting for votes, 0 of 72" in capsys.readouterr().err
    study.simulate(str(folder), win="0.7")
    assert study.report(str(folder), str(out), export=str(tmp_path / "votes.csv")) == 0
    text = out.read_text()
    assert "Simulated raters: no person voted" in text and "| `cog-moalign` over `cog-base` | 36 |" in text
    assert "68 : 32" in text and "78 : 22" in text and "Catch trials passed" in text
    rows = list(csv.DictReader((tmp_path / "votes.csv").read_text().splitlines()))
    assert len(rows) == len(Plan.load(folder / "plan.jsonl").trials)
    assert report.study_view(tmp_path) is None
    (tmp_path / "study/table6.json").write_text(out.with_suffix(".json").read_text())
    shown = report.study_view(tmp_path)
    assert shown["rows"][0][:2] == ["cog-moalign over cog-base", "36"] and shown["rows"][0][-1] == "68 : 32"
    assert len(shown["rows"]) == 2 and all(len(row) == len(shown["heads"]) for row in shown["rows"])
    assert "no person voted" in shown["notices"][0]
    first = hashlib.sha256(out.read_bytes()).digest()
    study.report(str(folder), str(out))
    assert hashlib.sha256(out.read_bytes()).digest() == first


def test_what_is_wrong_is_said(samples, folder, tmp_path):
    with pytest.raises(Problem, match="one run alone"):
        study.plan(samples[:1], str(tmp_path / "one"))
    with pytest.raises(Problem, match="not RUN=MANIFEST"):
        study.plan(["samples.jsonl"], str(tmp_path / "one"))
    with pytest.raises(Problem, match="need as many raters"):
        study.plan(samples, str(tmp_path / "one"), votes=5, raters=2)
    with pytest.raises(Problem, match="no video of"):
        study.prepare(str(folder), samples[:2])
    with pytest.raises(Problem, match="study prepare"):
        study.plan(samples, str(tmp_path / "two"))
        server.Study(tmp_path / "two")
    study.simulate(str(folder))
    with pytest.raises(Problem, match="has votes"):
        study.prepare(str(folder), samples)
