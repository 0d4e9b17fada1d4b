"""The page, the tables and metrics.json, from a small results folder made here."""

import base64
import csv
import html.parser
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from axe_playwright_python import sync_playwright as axe
from playwright import sync_api

from moalign import config, manifest, shards, video
from moalign.bench import tables
from moalign.errors import Problem
from moalign.manifest import Choice, Clip, Drawn, Flow, Latent, Sample, Score, Target, Weights
from moalign.report import pictures, plots
from moalign.stages import report
from moalign.teacher import raft

TOP = Path(__file__).parents[1]
COLOURS = {"red": (196, 62, 51), "blue": (59, 104, 186), "green": (72, 143, 86), "yellow": (222, 178, 60)}
PROMPTS = [f"a {colour} ball {what}" for what in ("falls and bounces", "is thrown", "rolls") for colour in COLOURS]


def ball(colour, seed, frames=17, still=False, side=64):
    """A ball that falls and bounces over a plain ground: uint8 [F, H, W, 3]."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(190, 235, (5, 5, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    x, y, u, v = rng.uniform(18, 30), rng.uniform(12, 20), rng.uniform(0.2, 1.4), 0.0
    clip = []
    for _ in range(frames):
        frame = ground.copy()
        cv2.circle(frame, (round(x * 16), round(y * 16)), 8 * 16, COLOURS[colour], -1, cv2.LINE_AA, 4)
        clip.append(frame)
        if not still:
            x, y, v = x + u, y + v, v + 0.55
            if y > side - 9:
                y, v = side - 9, -0.8 * v
    return np.stack(clip)


def colour_of(text):
    return next(colour for colour in COLOURS if colour in text)


class Making:
    """A results folder of the smoke scale, made without the models."""

    def __init__(self, root, params):
        self.results, self.params = root / "results", params
        self.rng = np.random.default_rng(0)
        self.root = root
        self.pin("report")
        self.clips()
        self.teacher()
        for run, seed in params.trainings():
            self.training(run, seed)
        for run, bench, seed in params.rows():
            self.samples(run, bench, seed)
            self.scores(run, bench, seed)

    def pin(self, stage, **names):
        """The pin of a job, on disk."""
        path = self.root / "pins" / f"{'-'.join([stage, *map(str, names.values())])}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(config.dump(config.pin(self.params, stage, **names)))
        return path

    def clips(self):
        """Selection, real and synthetic clips, flow, latents."""
        with manifest.making(self.results / "clips/selection.jsonl", Choice, pin=self.pin("subset")) as made:
            made.counts |= {
                "rows": 52,
                "chosen": 8,
                "rejected: too short": 7,
                "rejected: aspect": 3,
                "rejected: static": 2,
            }
        seed = 0
        for kind, count in (("real", self.params.subset.shards), ("synth", self.params.synth.shards)):
            for shard in range(count):
                folder = self.results / "clips" / kind
                with (
                    manifest.making(folder / f"{shard:04d}.jsonl", Clip, pin=self.pin("subset")) as made,
                    shards.TarWriter(folder / f"{shard:04d}.tar") as tar,
                ):
                    for index in range(4):
                        caption, seed = PROMPTS[seed % len(PROMPTS)], seed + 1
                        data = video.encode(ball(colour_of(caption), seed), 8)
                        where = tar.add(f"{seed}.mp4", data)
                        split = "heldout" if index == 3 else "train"
                        source = "world" if kind == "real" else "synth"
                        made.rows.append(
                            Clip(
                                f"clip-{seed}", split, source, "", caption, f"{shard:04d}.tar", *where, 17, 8.0, 64, 64
                            )
                        )
                        made.count("clips")
                self.derived(kind, shard, made.rows)
        with manifest.making(self.results / "drawn/manifest.jsonl", Drawn, pin=self.pin("draw")) as made:
            made.counts |= {"drawn": 7, "clips": 8}

    def derived(self, kind, shard, rows):
        """Flow, latents and targets of one shard."""
        flows = []
        with manifest.making(self.results / f"flow/{kind}/{shard:04d}.jsonl", Flow, pin=self.pin("flow")) as made:
            for index, clip in enumerate(rows):
                flow = torch.zeros(7, 2, 128, 128)
                y, x = np.mgrid[:128, :128]
                for k in range(7):
                    disc = torch.from_numpy((x - 40 - 6 * k) ** 2 + (y - 30 - 9 * k) ** 2 < 20**2)
                    flow[k, 0][disc], flow[k, 1][disc] = 2.0 + index, 1.5 * k
                made.rows.append(
                    Flow(clip.key, f"{shard:04d}.safetensors", index, round(flow.norm(dim=1).mean().item(), 6))
                )
                flows.append(raft.pack(flow))
            shards.write_tensors(made.path.parent / f"{shard:04d}.safetensors", shards.end_to_end("flow", flows))
        with manifest.making(
            self.results / f"latents/cogvideox/{kind}/{shard:04d}.jsonl",
            Latent,
            pin=self.pin("encode", backbone="cogvideox"),
        ) as made:
            made.rows += [Latent(clip.key, "0000.safetensors", index, 6) for index, clip in enumerate(rows)]
        for backbone, target in self.params.targets():
            path = self.results / f"targets/{backbone}/{target}/{kind}/{shard:04d}.jsonl"
            with manifest.making(path, Target, pin=self.pin("targets", backbone=backbone, target=target)) as made:
                made.rows += [Target(clip.key, "0000.safetensors", index) for index, clip in enumerate(rows)]
                M = torch.randn(len(rows), 8, 8, 8, 16, generator=torch.Generator().manual_seed(shard)).half()
                shards.write_tensors(path.parent / "0000.safetensors", {"target": M}, {"target": target})

    def teacher(self):
        """Stage 1's manifest and log."""
        path = self.results / "teacher/manifest.jsonl"
        path.parent.mkdir(parents=True)
        log = [{"step": 0, "val_l1": 0.82, "val_epe": 1.4, "val_epe_moving": 5.1}]
        for step in range(1, 61):
            log.append(
                {
                    "step": step,
                    "loss": 0.3 + 0.6 * np.exp(-step / 15) + self.rng.normal(0, 0.02),
                    "lr": 1e-4,
                    "grad_norm": 1.0,
                }
            )
            if step % 20 == 0:
                error = 0.35 + 0.5 * np.exp(-step / 15)
                log.append({"step": step, "val_l1": error, "val_epe": 1.6 * error, "val_epe_moving": 5 * error})
        (path.parent / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        with manifest.making(path, Weights, pin=self.pin("teacher")) as made:
            made.rows += [Weights("teacher", "teacher.safetensors", 60), Weights("log", "log.jsonl", 60)]
            made.notes["validation"] = {"l1": 0.36, "epe": 0.57, "epe_moving": 1.79}
            made.notes["zero_flow"] = {"l1": 0.62, "epe": 0.98, "epe_moving": 4.02}
            made.notes["mean_flow"] = {"l1": 0.71, "epe": 0.95, "epe_moving": 3.82}

    def training(self, run, seed):
        """Stage 2's manifest and log."""
        path = self.results / f"runs/{run}/s{seed}/manifest.jsonl"
        path.parent.mkdir(parents=True)
        none = self.params.methods[self.params.runs[run].method].target == "none"
        log = []
        for step in range(13):
            denoise, align = 0.11 + 0.02 * np.exp(-step / 4), 0.0 if none else 0.5 + 0.4 * np.exp(-step / 5)
            if step:
                noise = self.rng.normal(0, 0.004)
                log.append(
                    {"step": step, "loss": denoise + align / 2, "denoise": denoise + noise, "align": align, "lr": 1e-4}
                )
            if step % 6 == 0:
                log.append({"step": step, "val_denoise": denoise + 0.01, "val_align": align * 1.1})
        (path.parent / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        with manifest.making(path, Weights, pin=self.pin("align", run=run, seed=seed)) as made:
            made.rows += [Weights("transformer", "transformer", 12), Weights("log", "log.jsonl", 12)]
            if not none:
                tokens = np.random.default_rng(0).normal(size=(3, 40, 3)).astype(np.float32)
                unit = torch.from_numpy(tokens / np.linalg.norm(tokens, axis=2, keepdims=True))
                named = zip(("teacher", "before", "after"), (unit @ unit.mT).half(), strict=True)
                shards.write_tensors(path.parent / "relations.safetensors", dict(named))
                made.rows.append(Weights("relations", "relations.safetensors", 12))

    def samples(self, run, bench, seed):
        """A bench's videos of one run."""
        [path] = self.params.samples(run, bench, seed)
        pin = self.pin("sample", run=run, seed=seed, bench=bench)
        with manifest.making(self.results / path, Sample, pin=pin) as made:
            for number, prompt in enumerate(PROMPTS):
                file = f"{number:05d}-0.mp4"
                video.write(made.path.parent / file, ball(colour_of(prompt), number, still=run == "cog-static"), 8)
                made.rows.append(Sample(number, prompt, prompt, 0, number, file, 8.0, 17))

    def scores(self, run, bench, seed, leave_out=()):
        """One run's scores; those of the videos in `leave_out` are missing."""
        path = self.results / f"scores/{run}/s{seed}/{bench}.jsonl"
        rng = np.random.default_rng(sum(map(ord, run)))
        with manifest.making(path, Score, pin=self.pin("bench", run=run, seed=seed, bench=bench)) as made:
            for number in rng.permutation(len(PROMPTS)).tolist():
                moves = 0.0 if run == "cog-static" else float(rng.random() < 0.5)
                values = {
                    "flicker": 0.96 + 0.03 * rng.random(),
                    "dynamic": moves,
                    "motion": 3 * moves + rng.random(),
                    "still": 1 - moves,
                }
                for metric, value in values.items():
                    if number not in leave_out:
                        made.rows.append(Score(number, 0, number, metric, value, "motion", f"the rule of {metric}"))


@pytest.fixture(scope="module")
def params():
    raw = config.load(TOP / "params.yaml", scale="smoke").model_dump()
    raw["subset"] |= {"clips": 8, "shard": 4}
    raw["report"]["prompts"] = 4
    return config.parse(raw)


@pytest.fixture(scope="module")
def made(params, tmp_path_factory):
    """The folder, and the page built from it."""
    making = Making(tmp_path_factory.mktemp("report"), params)
    read = {"S": [0.03, 0.008, 0.05], "M": [0.118, 0.098, 0.137]}
    probed = {"clips": 9, "R2": {name: {"velocity": of, "appearance": of} for name, of in read.items()}}
    manifest.write_text(making.results / report.PROBE, json.dumps(probed))
    report.run(making.root / "pins/report.yaml", making.results, making.results / "report/index.html")
    return making


@pytest.fixture(scope="module")
def text(made):
    return (made.results / "report/index.html").read_text()


class Page(html.parser.HTMLParser):
    """Elements of the page: tag and attributes; complains about ids that occur twice."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_two_builds_give_the_same_bytes(made, text):
    again = made.root / "again.html"
    before = {path: path.read_bytes() for path in [*made.results.glob("tables/*"), made.results / "metrics.json"]}
    report.run(made.root / "pins/report.yaml", made.results, again)
    assert again.read_text() == text
    assert {path: path.read_bytes() for path in before} == before
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in figures_of(made))
    assert one == two and len(one) > 10


def figures_of(made):
    """Of both builds."""
    return made.results / "report/figures", made.root / "figures"


def test_figures_lie_beside_the_page(made, params, text):
    folder = figures_of(made)[0]
    names = {path.name for path in folder.iterdir()}
    assert {"flow-motion.svg", "teacher-0.svg", "align-cog-moalign.svg"} <= names
    for path in folder.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "var(" not in path.read_text()
    shown = sorted(path.stem for path in folder.glob("videos-*.png"))
    assert len(shown) == params.report.prompts == len(list(folder.glob("videos-*.mp4")))
    runs = {run for table in params.tables.values() for run in table.rows}
    look = video.probe(folder / f"{shown[0]}.mp4")
    assert look.frames == 17 and look.width == 3 * 128 and look.height == -(-len(runs) // 3) * (128 + pictures.BAND)
    assert cv2.imread(str(folder / f"{shown[0]}.png")).shape[1] == 6 * 128
    assert "Motion tokens of these frames" in text and "Cosine similarity of all pairs" in text


def test_layers_are_drawn_where_a_table_varies_nothing_else(made, params, tmp_path):
    raw = params.model_dump()
    raw["runs"] |= {
        f"cog-moalign-l{layer}": {"backbone": "cogvideox", "method": "moalign", "layer": layer} for layer in (2, 3)
    }
    rows = ["cog-moalign-l2", "cog-moalign-l3", "cog-moalign"]
    raw["tables"]["table5"] = {"title": "Layers", "bench": "physics", "rows": rows}
    varied = config.parse(raw)
    making = Making(tmp_path, varied)
    for run, bench, seed in varied.rows():
        path = making.results / f"scores/{run}/s{seed}/{bench}.jsonl"
        given = manifest.read(path, Score).rows
        with manifest.making(path, Score, pin=making.pin("bench", run=run, seed=seed, bench=bench)) as again:
            again.rows += given + [
                Score(n, 0, n, "PC", 1 + (n + len(run)) % 5, "physics", "r") for n in range(len(PROMPTS))
            ]
    filled = [report.tables.make_table(making.results, varied, name) for name in varied.tables]
    drawn = report.compared_view(varied, filled, report.Figures(tmp_path / "figures"))
    assert sum("by aligned layer" in words for _, words in drawn) == 1
    assert sum("against mean motion" in words for _, words in drawn) == len(filled)
    text = (tmp_path / "figures/layers-table5.svg").read_text()
    assert [label in text for label in (">2<", ">3<", ">4<")] == [True] * 3


def test_the_page_carries_all_it_shows(text):
    page = Page(text)
    for tag, attributes in page.found:
        for name in ("src", "href", "poster", "srcset", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, name, value[:60])
    assert not page.all("link") and not page.all("iframe")
    assert "http:" not in text and "https:" not in text and "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert "@import" not in text


def test_ids_are_unique_and_every_reference_is_met(text):
    ids = [attributes["id"] for _, attributes in Page(text).found if attributes.get("id")]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r"url\(#([^)]+)\)", text) + [
        attributes["href"][1:] for _, attributes in Page(text).found if (attributes.get("href") or "").startswith("#")
    ]
    assert set(wanted) <= set(ids)


def test_every_video_plays_quietly_and_decodes(text, params):
    videos = Page(text).all("video")
    runs = {run for table in params.tables.values() for run in table.rows}
    assert len(videos) == len(runs) * params.report.prompts
    for attributes in videos:
        assert {"muted", "loop", "autoplay", "playsinline", "tabindex", "width", "height"} <= attributes.keys()
        run, prompt = attributes["aria-label"].split(": ")
        assert run in runs and prompt in PROMPTS
        data = base64.b64decode(attributes["src"].removeprefix("data:video/mp4;base64,"))
        assert video.read(data, list(range(17))).shape == (17, 64, 64, 3)


def test_pictures_have_words_and_plots_too(text):
    page = Page(text)
    for attributes in page.all("img"):
        data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape[2] == 4
        assert attributes["alt"]
    roles = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(roles) == len(page.all("svg")) - text.count('class="whisker"')
    assert all(attributes["aria-label"] for attributes in roles)


def test_what_a_linear_map_reads_is_drawn_and_told(made, text):
    assert "0.118 [0.098, 0.137]" in text and (figures_of(made)[0] / "probe.svg").exists()


def test_similarities_of_our_run_stand_beside_the_teacher_s(text, params):
    assert text.count("from the teacher’s on average") == 2 and f"tokens of {params.primary.ours}, before" in text


def test_a_smoke_page_says_that_it_means_nothing(made, text, params):
    assert "Its numbers carry no meaning" in text
    assert "Its numbers carry no meaning" in (made.results / "tables/table1.md").read_text()
    assert tables.meaningless(params) in text


def test_the_page_shows_what_each_stage_counted(text):
    flat = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))
    for words in ("too short 7", "of 52 annotated", "zero flow 0.620 0.980 4.020", "alignment 0.", "synth 3 1"):
        assert words in flat, words
    assert "first frame of cog-base, repeated" in flat
    assert "soft TRD to motion M, λ 0.5, τ 10, block 4" in flat
    for stage in ("subset", "synth", "flow", "draw", "encode", "teacher", "align", "sample", "bench"):
        assert f"> {stage} <".replace(" ", "") in text


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_finds_nothing_wrong(made, width):
    """Offline, without a word on the console, every video plays, and axe-core finds no serious fault."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here (Debian: chromium)")
    requests, said = [], []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((made.results / "report/index.html").as_uri())
        played = page.evaluate(
            """async () => {
                const found = [];
                for (const video of document.querySelectorAll("video")) {
                    video.scrollIntoView();
                    await video.play();
                    found.push(video.videoWidth > 0);
                }
                return found;
            }"""
        )
        page.click('a[href^="#trail-"]')
        opened = page.evaluate("document.querySelector('details[id^=trail-]').open")
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        wide = page.evaluate("document.documentElement.scrollWidth")
        found = axe.Axe().run(page).response["violations"]
        browser.close()
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == [] and said == []
    assert played and all(played) and opened and wide <= width
    assert [
        (fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")
    ] == []


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_metrics_hold_only_what_can_be_found_again(made, params):
    text = (made.results / "metrics.json").read_text()
    numbers = json.loads(text)
    assert not re.search(r"seconds|/|[0-9a-f]{12}|\bcode\b|job", text)
    assert numbers["teacher"]["zero_flow"]["epe"] == 0.98
    assert numbers["last"]["cog-moalign s0"]["val_align"] == pytest.approx(0.55 + 0.44 * np.exp(-12 / 5), rel=1e-5)
    assert numbers["clips"] == {"synth heldout": 1, "synth train": 3, "world heldout": 2, "world train": 6}
    for name, table in params.tables.items():
        assert list(numbers["tables"][name]) == sorted(table.rows)
        for run in table.rows:
            rows = manifest.read(made.results / f"scores/{run}/s0/physics.jsonl", Score).rows
            for metric, found in numbers["tables"][name][run].items():
                values = [row.value for row in rows if row.metric == metric]
                assert found["mean"] == pytest.approx(np.mean(values), rel=1e-5)
                assert found["n"] == len(PROMPTS)


def test_tables_are_in_the_order_of_params(made, params, text):
    for name, table in params.tables.items():
        lines = (made.results / f"tables/{name}.md").read_text().splitlines()
        end = next((at for at, line in enumerate(lines) if line.startswith("**Training by training.**")), len(lines))
        rows = [line.split("`")[1] for line in lines[:end] if line.startswith("| `")]
        assert rows == [*table.rows, *table.rows[1:]]
        assert (end < len(lines)) == (params.primary.ours in table.rows)
        widths = {line.count(" | ") for line in lines[:end] if line.startswith("| `")}
        assert len(widths) == 2  # means, differences
        assert f"- Rated by {manifest.code_version()}, with the pins named above." in lines
    shown = re.findall(r'<a class="run"[^>]*>([^<]+)</a><span class="what">', text)
    assert shown[: len(params.tables["table1"].rows)] == list(params.tables["table1"].rows)


def test_curves_hold_every_validation(made, params):
    with open(made.results / "tables/curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    trainings = [f"{run} s{seed}" for run, seed in params.trainings()]
    assert list(dict.fromkeys(row["training"] for row in rows)) == trainings
    ends = json.loads((made.results / "metrics.json").read_text())["last"]
    for training in trainings:
        steps = [row for row in rows if row["training"] == training]
        assert [int(row["step"]) for row in steps] == sorted({0, *range(0, params.align.steps, 6), params.align.steps})
        for term in ("denoise", "align"):
            assert float(steps[-1][term]) == pytest.approx(ends[training][f"val_{term}"], rel=1e-5)


def test_a_missing_number_leaves_no_total(made, params, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(made.results, results)
    other = object.__new__(Making)
    other.results, other.params, other.root = results, params, tmp_path
    other.scores("cog-moalign", "physics", 0, leave_out=(3, 7))
    report.run(made.root / "pins/report.yaml", results, results / "report/index.html")
    numbers = json.loads((results / "metrics.json").read_text())["tables"]["table1"]
    assert numbers["cog-moalign"]["motion"] == {"mean": None, "n": len(PROMPTS) - 2}
    assert numbers["cog-ft"]["motion"]["n"] == len(PROMPTS)
    listed = "cog-moalign is incomplete, without a number: s0 prompt 3 video 0, s0 prompt 7 video 0"
    assert listed in (results / "report/index.html").read_text()
    assert listed in (results / "tables/table1.md").read_text()


def test_missing_manifests_are_all_named(made, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(made.results, results)
    (results / "scores/cog-ft/s0/physics.jsonl").unlink()
    (results / "teacher/manifest.jsonl").unlink()
    with pytest.raises(Problem) as caught:
        report.run(made.root / "pins/report.yaml", results, results / "report/index.html")
    assert "teacher: teacher/manifest.jsonl" in str(caught.value)
    assert "bench: scores/cog-ft/s0/physics.jsonl" in str(caught.value)


def test_what_is_expected_follows_from_the_parameters():
    paper = report.expected(config.load(TOP / "params.yaml", scale="paper"))
    assert len(paper["flow"]) == 350 + 160
    assert ("latents/wan/real/0349.jsonl", Latent) in paper["encode"]
    assert ("runs/cog-moalign-l22/s0/manifest.jsonl", Weights) in paper["align"]
    assert not any("cog-static" in path or "cog-base" in path for path, _ in paper["align"])
    assert ("samples/cog-static/s0/videophy2/0000.jsonl", Sample) in paper["sample"]
    mini = report.expected(config.load(TOP / "params.yaml", scale="miniature"))
    assert ("scores/cog-moalign/s2/physics.jsonl", Score) in mini["bench"]
    assert ("scores/cog-base/s2/physics.jsonl", Score) not in mini["bench"]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_numbers_as_text():
    share = tables.Metric("m", "%", 100, 1)
    assert [share.text(value) for value in (-0.125, -0.0004, -np.inf)] == ["−12.5", "0.0", "−∞"]
    assert [share.text(value, sign=True) for value in (0.5, 0.0004, -0.5)] == ["+50.0", "0.0", "−50.0"]


def test_a_large_video_is_carried_small(tmp_path):
    path = tmp_path / "large.mp4"
    video.write(path, ball("red", 0, frames=9, side=512), 8)
    data = base64.b64decode(pictures.embedded_video(path).removeprefix("data:video/mp4;base64,"))
    assert video.probe(data) == video.Probe(9, 8.0, pictures.LARGEST, pictures.LARGEST)
    assert len(data) < path.stat().st_size


def test_flow_colours_share_one_scale():
    flow = np.zeros((2, 2, 8, 8), np.float32)
    flow[0, 0], flow[1, 0] = 1.0, 4.0
    slow, fast = pictures.flow_pictures(flow)[:, 0, 0].astype(int)
    assert slow.min() > fast.min()  # paler
    assert (pictures.flow_pictures(np.zeros_like(flow)) == 255).all()


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    y = np.random.default_rng(0).random(4000)
    x, thin = plots.thinned(np.arange(4000.0), y)
    assert len(x) == len(thin) == plots.POINTS
    assert thin.mean() == pytest.approx(y.mean())
    assert np.all(np.diff(x) > 0)


def test_names_of_close_curves_do_not_overlap():
    curves = [plots.Curve(name, [0, 1], [value, value]) for name, value in (("a", 1.0), ("b", 1.001), ("c", 5.0))]
    svg = plots.panels("p", [("t", curves)])
    places = {name: float(y) for y, name in re.findall(r'y="([\d.]+)"[^>]*>([abc])</text>', svg)}
    gaps = np.diff(sorted(places.values()))
    assert len(places) == 3 and gaps.min() > 8  # the letters' height
