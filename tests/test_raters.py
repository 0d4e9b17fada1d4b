"""The benchmarks' own raters, through `moalign bench`: what they are given, how answers are read, kills and oddities.

Stand-ins that speak their file protocols are started (tests/standin), as the raters themselves need weights and a GPU.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from moalign import config, manifest, video
from moalign.bench import external, scores, tables, videophy
from moalign.bench.external import Task
from moalign.errors import Problem
from moalign.manifest import Sample, Score
from moalign.stages import bench

TOP = Path(__file__).parents[1]
STANDIN = Path(__file__).parent / "standin"
CAPTIONS = ['Honey, "thick", is poured', "A ball hits a wall", "Eis schmilzt über Kies", "Rain falls", "A box slides"]

STATES = ("solid_solid", "solid_fluid")


class Home:
    """A folder with a run's videos on one benchmark, and its rater's stand-in."""

    def __init__(self, folder: Path, name: str, monkeypatch):
        self.folder, self.name, self.monkeypatch = folder, name, monkeypatch
        params = config.load(TOP / "params.yaml", scale="paper")
        pin = config.pin(params, "bench", run="cog-base", seed=0, bench=name)
        lines = [["caption", "upsampled_caption", "states_of_matter"]] + [
            [text, f"{text}, at length", STATES[number % 2]] for number, text in enumerate(CAPTIONS)
        ]
        with open(folder / "prompts.csv", "w", newline="") as file:
            csv.writer(file).writerows(lines)
        code = STANDIN / "VIDEOPHY2" if name == "videophy2" else STANDIN
        rater = pin.raters[name].model_copy(
            update={"python": sys.executable, "code": str(code), "weights": str(folder)}
        )
        asked = {"prompts": str(folder / "prompts.csv"), "raters": (name,)}
        pin = pin.model_copy(update={"bench": pin.bench.model_copy(update=asked), "raters": {name: rater}})
        (folder / "pin.yaml").write_text(config.dump(pin))
        long = ", at length" if pin.bench.variant == "extended" else ""
        with manifest.making(folder / "samples/0000.jsonl", Sample, pin=folder / "pin.yaml") as made:
            for number, text in enumerate(CAPTIONS):
                video.write(made.path.parent / f"{number}.mp4", np.full((9, 64, 64, 3), 40 * number, np.uint8), 8)
                made.rows.append(Sample(number, text, text + long, 0, number, f"{number}.mp4", 8.0, 9))
        monkeypatch.setenv("STARTS", str(folder / "starts"))
        monkeypatch.setattr(external, "versions", lambda *given: {"asked": list(given[1:])})

    def rate(self, odd: str = "", die: int = -1) -> manifest.Manifest[Score]:
        self.monkeypatch.setenv("ODD", odd)
        self.monkeypatch.setenv("DIE", str(die))
        bench.run(
            self.folder / "pin.yaml",
            [self.folder / "samples/0000.jsonl"],
            self.folder / "work",
            self.folder / "s.jsonl",
        )
        return manifest.read(self.folder / "s.jsonl", Score)

    def starts(self) -> list[str]:
        return (self.folder / "starts").read_text().split()


@pytest.fixture(params=["videophy", "videophy2"])
def home(request, tmp_path, monkeypatch):
    return Home(tmp_path, request.param, monkeypatch)


def values(made: manifest.Manifest[Score], metric: str) -> dict:
    return scores.by_key(made.rows, metric)


def test_every_video_gets_its_own_answers(home):
    made = home.rate()
    one, other = ("SA", "PC") if home.name == "videophy2" else ("SA_raw", "PC_raw")
    for metric in (one, other, "SA_pass", "PC_pass"):
        assert values(made, metric).keys() == {(number, 0) for number in range(5)}
    assert {row.rater for row in made.rows} == {f"stand-in for {home.name}"}
    least = 4 if home.name == "videophy2" else 0.5
    assert values(made, "SA_pass") == {key: float(value >= least) for key, value in values(made, one).items()}
    joint = values(manifest.Manifest(made.path, made.header, scores.joint(made.rows)), "Joint")
    assert (joint.keys() == values(made, one).keys()) == (home.name == "videophy2")  # p(Yes) is no 1 to 5
    assert all(row.seed == row.prompt_id for row in made.rows)
    assert made.header.notes["raters"][home.name]["commands"][-1][0] == sys.executable
    given = next(home.folder.rglob("input.csv"))
    with open(given, newline="") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == CAPTIONS  # the short ones


def test_the_order_and_doubles_that_agree_change_nothing(home):
    plain = home.rate().rows
    for path in home.folder.rglob(".done"):
        path.unlink()
    again = home.rate("shuffled doubled")
    assert sorted(again.rows, key=repr) == sorted(plain, key=repr)
    assert again.header.counts[f"{home.name} SA: listed twice"] == 5


@pytest.mark.parametrize(
    ("odd", "counted"), [("nan", "not a number"), ("high", "out of range"), ("short", "without a row")]
)
def test_an_answer_that_is_none_is_counted_and_leaves_no_mean(home, odd, counted):
    made = home.rate(odd)
    assert made.header.counts[f"{home.name} PC: {counted}"] == 1
    found = scores.summarise("PC_pass", {0: values(made, "PC_pass")}, [(number, 0) for number in range(5)])
    assert found.mean is None and len(found.missing) == 1


def test_an_answer_that_the_rater_did_not_understand_is_no_fail(tmp_path, monkeypatch):
    made = Home(tmp_path, "videophy2", monkeypatch).rate("unparsed")
    assert made.header.counts["videophy2 SA: answer not understood by the rater"] == 1
    assert (1, 0) not in values(made, "SA") and (1, 0) not in values(made, "SA_pass")


@pytest.mark.parametrize(("odd", "says"), [("conflict", "0.mp4: "), ("unknown", "other.mp4: nobody asked for it")])
def test_answers_to_something_else_are_refused(home, odd, says):
    with pytest.raises(Problem, match="not the answers to what was asked") as caught:
        home.rate(odd)
    assert says in str(caught.value)
    assert not (home.folder / "s.jsonl").exists()


def test_a_killed_rating_repeats_no_question_that_was_answered(home):
    with pytest.raises(Problem, match="ended with status -9 at sa") as caught:
        home.rate(die=3)
    assert "log.txt" in str(caught.value)
    expected = home.rate().rows
    assert home.starts()[0] == home.starts()[1] and len(home.starts()) == 3  # sa, sa again, pc
    home.rate()
    assert len(home.starts()) == 3
    for path in home.folder.rglob("scores.csv"):
        with open(path, newline="") as file:
            assert len(list(csv.reader(file))) == 5 + (home.name == "videophy2")  # with a header; none twice
    assert home.rate().rows == expected


def test_another_pin_asks_again(home):
    home.rate()
    text = (home.folder / "pin.yaml").read_text()
    (home.folder / "pin.yaml").write_text(text.replace("revision: ", "revision: 1"))
    home.rate()
    assert len(home.starts()) == 4


def test_no_table_takes_a_stand_in(home):
    with pytest.raises(Problem, match=f"rated by a stand-in for {home.name}, whose numbers mean nothing"):
        tables.refuse_stand_ins(home.rate())


def test_a_rater_that_is_not_there_says_where_it_is_named(tmp_path):
    with pytest.raises(Problem, match="`raters` in params"):
        external.ask([Task("sa", [str(tmp_path / "python")], "x")], tmp_path)
    with pytest.raises(Problem, match="`raters` in params"):
        external.versions(str(tmp_path / "python"))


def test_an_environment_says_what_it_holds():
    found = external.versions(sys.executable, "numpy")
    assert found == {"python": sys.version.split()[0], "numpy": np.__version__}
    with pytest.raises(Problem, match="moalign doctor --raters"):
        external.versions(sys.executable, "no-such-package")


def test_a_rater_sees_none_of_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    code = "import json, os; json.dump(dict(os.environ), open('out.json', 'w'))"
    task = Task("env", [sys.executable, "-c", code], "out.json", tmp_path / "env")
    left = external.ask([task], tmp_path)
    seen = json.loads(left["env"].read_text())
    assert "PYTHONPATH" not in seen and seen["HF_HUB_OFFLINE"] == "1"
    assert seen["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_a_rater_that_leaves_nothing_is_no_answer(tmp_path):
    with pytest.raises(Problem, match="where the rater was to leave one"):
        external.ask([Task("sa", [sys.executable, "-c", ""], "scores.csv")], tmp_path)


def test_states_of_matter_go_by_the_prompt_and_not_by_the_row(home):
    made = home.rate(odd="shuffled")
    if home.name == "videophy2":  # it has none
        assert made.header.notes["groups"] == {}
        return
    groups = made.header.notes["groups"]
    assert groups == {"solid_solid": [0, 2, 4], "solid_fluid": [1, 3]}
    raw = values(made, "SA_raw")
    of = {"SA_raw": {"cog-base": {0: raw}}}
    found = tables.states_of(of, "cog-base", {0: made.header.notes}, set(raw))
    for state, prompts in groups.items():
        wanted = np.mean([raw[number, 0] for number in prompts])
        assert found[state]["SA_raw"].mean == pytest.approx(wanted, abs=1e-12)
        assert found[state]["SA_raw"].n == len(prompts)
        assert found[state]["PC_raw"].mean is None  # nobody gave it
    del raw[2, 0]
    assert tables.states_of(of, "cog-base", {0: made.header.notes}, {(n, 0) for n in range(5)})["solid_solid"][
        "SA_raw"
    ].missing == ((0, (2, 0)),)


LAWS = ("Matter falls, it does not rise", 'What is "solid" keeps its shape', "Light, heat, mass are kept")


@pytest.fixture
def ruled(tmp_path, monkeypatch):
    home = Home(tmp_path, "videophy2", monkeypatch)
    lines = [["caption", "rule"]] + [[text, law] for text in CAPTIONS for law in LAWS] + [[CAPTIONS[0], LAWS[0]]]
    with open(tmp_path / "rules.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    pin = config.BenchPin.load(tmp_path / "pin.yaml")
    row = pin.bench.model_copy(update={"rules": str(tmp_path / "rules.csv")})
    (tmp_path / "pin.yaml").write_text(config.dump(pin.model_copy(update={"bench": row})))
    return home


def test_each_rule_of_a_video_is_asked_about(ruled):
    made = ruled.rate(odd="shuffled")
    assert ruled.starts() == ["sa", "pc", "rule"]
    with open(next(ruled.folder.rglob("rule/scores.csv")), newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == len(CAPTIONS) * len(LAWS)  # the line that is there twice counts once
    for (number, _), value in values(made, "rules_broken").items():
        mine = [float(row["score"]) for row in answers if row["videopath"].endswith(f"/{number}.mp4")]
        assert value == mine.count(0) / len(LAWS)
    assert len(values(made, "rules_broken")) == len(CAPTIONS)


def test_a_rule_without_an_answer_leaves_its_video_without_a_share(ruled):
    made = ruled.rate(odd="high")
    assert len(values(made, "rules_broken")) == len(CAPTIONS) - 1
    assert made.header.counts["videophy2 rule: without an answer to each rule"] == 1


def test_a_caption_without_a_rule_is_named(ruled):
    lines = (ruled.folder / "rules.csv").read_text().splitlines(keepends=True)
    (ruled.folder / "rules.csv").write_text("".join(line for line in lines if not line.startswith("Rain")))
    with pytest.raises(Problem, match="no rule for 1 of 5 captions, such as 'Rain falls'"):
        ruled.rate()


@pytest.mark.parametrize("name", ["videophy", "videophy2"])
@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("none", "not a number"),
        ("on a scale from 1 to 5 I give 5", "not a number"),
        ("5 (not 1)", "not a number"),
        ("⑤", "not a number"),
        ("", "not a number"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("10", "out of range"),
        ("25", "out of range"),
        ("-3", "out of range"),
    ],
)
def test_words_and_impossible_numbers_are_no_scores(tmp_path, name, text, odd):
    rows = [["a.mp4", "A ball", "1"], ["b.mp4", "A ball", text]]
    with open(tmp_path / "scores.csv", "w", newline="") as file:
        csv.writer(file).writerows([["videopath", "caption", "score"], *rows] if name == "videophy2" else rows)
    found, counted = videophy.read(name, tmp_path / "scores.csv", {Path("a.mp4"): (0, 0), Path("b.mp4"): (1, 0)})
    assert found == {(0, 0): 1.0} and counted == {odd: 1}


@pytest.mark.parametrize(("text", "taken"), [("4", True), ("4.0", True), ("4.5", False), ("7", False)])
def test_videophy2_gives_whole_numbers_from_1_to_5(tmp_path, text, taken):
    (tmp_path / "scores.csv").write_text(f",videopath,caption,score\n0,a.mp4,A ball,{text}\n")
    found, _ = videophy.read("videophy2", tmp_path / "scores.csv", {Path("a.mp4"): (0, 0)})
    assert found == ({(0, 0): 4.0} if taken else {})
