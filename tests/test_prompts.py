"""Prompt files of the benchmarks, as they come from their repositories: what is asked for, and what is refused."""

import json

import pytest

from moalign.bench import prompts
from moalign.config import Asked
from moalign.errors import Problem

VIDEOPHY = """video_url,caption,states_of_matter,source,complexity,majority_sa,majority_pc
u1,"Honey, poured on a plate",solid_fluid,lavie,1,1,0
u2,"Honey, poured on a plate",solid_fluid,pika,1,0,0
u3,A ball hits a wall,solid_solid,lavie,0,1,1
"""
VIDEOPHY2 = (
    'caption,upsampled_caption\n"A jetski, fast ",A jetski cuts the water\r\nA leaf falls,"A leaf, ""red"", falls"\n'
)
REGISTRY = [
    {"prompt_en": "a bird", "dimension": ["object_class", "color"], "auxiliary_info": {}},
    {"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a bird", "dimension": ["scene"]},
]


@pytest.fixture
def asked(tmp_path):
    """An Asked of a file with this text."""

    def make(suite, text, name="prompts.csv", **rest):
        (tmp_path / name).write_text(text)
        return Asked(suite=suite, prompts=str(tmp_path / name), **({"videos": 1} | rest))

    return make


def test_lines(asked):
    found = prompts.load(asked("lines", "a ball\n  a box \n"))
    assert [(prompt.name, prompt.text, prompt.videos) for prompt in found] == [
        ("a ball", "a ball", 1),
        ("a box",) * 2 + (1,),
    ]


def test_videophys_rows_are_videos_and_its_captions_prompts(asked, tmp_path):
    found = prompts.load(asked("videophy", VIDEOPHY))
    assert [(prompt.name, prompt.state) for prompt in found] == [
        ("Honey, poured on a plate", "solid_fluid"),
        ("A ball hits a wall", "solid_solid"),
    ]
    with pytest.raises(Problem, match="csv:4: 'Honey, poured on a plate' is 'fluid_fluid' here"):
        prompts.load(
            asked(
                "videophy",
                VIDEOPHY.replace("u3,A ball hits a wall,solid", 'u3,"Honey, poured on a plate",fluid').replace(
                    "fluid_solid", "fluid_fluid"
                ),
            )
        )
    (tmp_path / "long.txt").write_text("Honey runs\nA red ball\n")
    long = prompts.load(
        asked("lines", "Honey\nA ball\n", "p.txt", variant="extended", extended=str(tmp_path / "long.txt"))
    )
    assert [(prompt.name, prompt.text) for prompt in long] == [("Honey", "Honey runs"), ("A ball", "A red ball")]


def test_videophy2_gives_the_model_the_longer_text_and_the_rater_the_short_one(asked):
    [first, second] = prompts.load(asked("videophy2", VIDEOPHY2, variant="extended"))
    assert (first.name, first.text) == ("A jetski, fast", "A jetski cuts the water")
    assert second.text == 'A leaf, "red", falls'
    assert prompts.load(asked("videophy2", VIDEOPHY2))[0].text == "A jetski, fast"


def test_vbench_counts_a_prompt_once_on_all_its_dimensions(asked):
    row = asked("vbench", json.dumps(REGISTRY), videos=5, more={"temporal_flickering": 25})
    bird, lake = prompts.load(row)
    assert bird.dimensions == ("object_class", "color", "scene") and bird.videos == 5
    assert lake.videos == 25
    plan = prompts.plan([bird, lake])
    assert len(plan) == len(set(plan)) == 30
    parts = [prompts.plan([bird, lake], shard, 7) for shard in range(7)]
    assert [cell for part in parts for cell in part] == plan and {len(part) for part in parts} == {4, 5}


@pytest.mark.parametrize(
    ("suite", "text", "rest", "says"),
    [
        ("lines", "", {}, ":1: an empty prompt"),
        ("lines", "a ball\n\na box\n", {}, ":2: an empty prompt"),
        ("lines", "a ball\na ball\n", {}, ":2: 'a ball' is there twice"),
        ("videophy", "caption,source\nx,y\n", {}, "no column states_of_matter; it has caption, source"),
        ("videophy2", "caption,upsampled_caption\nx\n", {}, ":2: fewer cells"),
        ("videophy2", "caption,upsampled_caption\n", {}, "no prompt in it"),
        ("vbench", "{", {}, "no JSON"),
        ("vbench", "{}", {}, "expected a list"),
        ("vbench", '[{"prompt": "x"}]', {}, "entry 0: no `prompt_en`"),
        ("vbench", json.dumps(REGISTRY), {"more": {"flicker": 25}}, "benches.more: flicker: no prompt"),
        ("vbench", json.dumps(REGISTRY), {"variant": "extended"}, "benches.extended: missing"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_place(asked, suite, text, rest, says):
    with pytest.raises(Problem, match=says):
        prompts.load(asked(suite, text, **rest))


def test_a_longer_list_of_another_version_is_refused(asked, tmp_path):
    (tmp_path / "long.txt").write_text("one\n")
    row = asked("vbench", json.dumps(REGISTRY), variant="extended", extended=str(tmp_path / "long.txt"))
    with pytest.raises(Problem, match="1 lines for the 3 prompts"):
        prompts.load(row)


def test_a_missing_file_names_the_cure(tmp_path):
    with pytest.raises(Problem, match="--help-fetch"):
        prompts.load(Asked(suite="vbench", prompts=str(tmp_path / "none.json"), videos=5))
