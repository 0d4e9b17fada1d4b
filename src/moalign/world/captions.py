"""The miniature world's words: captions from a small grammar, and back from a prompt to the attributes it names.

    caption(attributes("throw", 7), seed=7)     # "a little violet ball is thrown fast in zero gravity"
    named("a little violet ball is thrown fast in zero gravity")

Every caption names the event, each object's size, colour and shape, and gravity or speed where the scene varies them.
The bench's prompts come from the same grammar, from seeds that no clip has:

    python -m moalign.world.captions --prompts 6 --seed 0 > resources/prompts/world.txt
"""

import argparse
import re

import numpy as np

from moalign.world.physics import SCENES, Attributes, Look, attributes, choose, stream

LONGEST = 95  # bytes of a caption; a longer wording is drawn again

SHAPE_WORDS = {"ball": ("ball", "sphere"), "box": ("box", "block", "cube")}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "mid-sized", "medium-sized"),
    "large": ("large", "big", "huge"),
}
COLOUR_WORDS = {
    "red": ("red", "scarlet", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
}
GRAVITY_WORDS = {
    "strong": ("under strong gravity", "in strong gravity", "in high gravity", "where gravity is strong"),
    "weak": ("under weak gravity", "in weak gravity", "in low gravity", "where gravity is weak"),
    "none": ("without gravity", "with no gravity", "in zero gravity", "where there is no gravity"),
}
SPEED_WORDS = {
    "slow": ("slowly", "gently", "at low speed", "at a slow pace"),
    "fast": ("fast", "quickly", "rapidly", "at high speed"),
}
EVENT_WORDS = {  # {who} all objects, {a} {b} {c} each of them, {s} the verb's ending for one
    "fall": (
        "{who} fall{s} and bounce{s} {gravity}",
        "{who} drop{s} and bounce{s} {gravity}",
        "{gravity}, {who} fall{s} and bounce{s}",
        "{who} fall{s} to the floor {gravity}",
        "{who} drop{s} to the floor {gravity}",
    ),
    "throw": (
        "{who} is thrown {speed} {gravity}",
        "{who} is tossed {speed} {gravity}",
        "{gravity}, {who} is thrown {speed}",
        "someone throws {who} {speed} {gravity}",
        "{who} is thrown up {speed} {gravity}",
    ),
    "collide": (
        "{a} hits {b} {speed}",
        "{a} runs into {b} {speed}",
        "{a} bumps into {b} {speed}",
        "{a} and {b} collide {speed}",
        "{speed}, {a} hits {b}",
    ),
    "ramp": (
        "{who} rolls down a ramp {gravity}",
        "{who} rolls down a slope {gravity}",
        "{gravity}, {who} rolls down a ramp",
        "down a ramp rolls {who} {gravity}",
        "{who} is let go on a ramp and rolls down {gravity}",
    ),
    "pendulum": (
        "{who} swings on a rod {gravity}",
        "{who} swings like a pendulum {gravity}",
        "{gravity}, {who} swings on a rod",
        "{who} hangs on a rod and swings {gravity}",
        "a pendulum with {who} swings {gravity}",
    ),
    "slide": (
        "{who} slides {speed} and stops",
        "{who} slides {speed} over the floor and stops",
        "pushed {speed}, {who} slides and stops",
        "{who} slides {speed} until it comes to rest",
        "on the floor {who} slides {speed} and stops",
    ),
}
BYSTANDER_WORDS = ("beside {c}", "near {c}", "while {c} rests")
EVENT_SIGNS = {  # how an event is known again
    "fall": r"falls?|drops?",
    "throw": r"thrown|tossed|throws",
    "collide": r"hits|into|collide",
    "ramp": r"rolls",
    "pendulum": r"swings",
    "slide": r"slides",
}


def caption(what: Attributes, seed: int) -> str:
    """One wording of the attributes, a pure function of both."""
    rng = stream(what.scene, seed, 3)
    while True:
        text = word(what, rng)
        if len(text.encode()) <= LONGEST:
            return text


def word(what: Attributes, rng: np.random.Generator) -> str:
    """A random wording, of any length."""

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    looks = [f"a {pick(SIZE_WORDS[look.size])} {pick(COLOUR_WORDS[look.colour])}" for look in what.objects]
    nouns = [pick(SHAPE_WORDS[look.shape]) for look in what.objects]
    objects = [f"{look} {noun}" for look, noun in zip(looks, nouns, strict=True)]
    event = pick(EVENT_WORDS[what.scene])
    if what.scene == "collide" and len(objects) == 3:
        event += " " + pick(BYSTANDER_WORDS)
    return event.format(
        who=objects[0] if len(objects) == 1 else f"{', '.join(looks[:-1])} and {objects[-1]}",
        s="s" if len(objects) == 1 else "",
        gravity=pick(GRAVITY_WORDS[what.gravity]) if what.gravity else "",
        speed=pick(SPEED_WORDS[what.speed]) if what.speed else "",
        **dict(zip("abc", objects, strict=False)),
    )


def named(prompt: str) -> Attributes:
    """The attributes that a prompt names. For a caption of this grammar they are its clip's, exactly.

    The scene is "" and gravity and speed are None where the prompt does not say; objects come in the prompt's order,
    a shape that is not said is that of the next object.
    """
    text = prompt.lower()
    scenes = [scene for scene, sign in EVENT_SIGNS.items() if re.search(rf"\b(?:{sign})\b", text)]
    return Attributes(
        scene=scenes[0] if scenes else "",
        objects=find_objects(text),
        gravity=find(GRAVITY_WORDS, text),
        speed=find(SPEED_WORDS, text),
    )


def find(words: dict[str, tuple[str, ...]], text: str) -> str | None:
    """The value one of whose wordings stands in a text."""
    return next((value for value, ways in words.items() if re.search(pattern(ways), text)), None)


def find_objects(text: str) -> tuple[Look, ...]:
    """Objects as (shape, colour, size), in the text's order."""
    ways = [pattern(sum(words.values(), ())) for words in (SIZE_WORDS, COLOUR_WORDS, SHAPE_WORDS)]
    found: list[Look] = []
    shape = "ball"
    for match in reversed(list(re.finditer(rf"({ways[0]}) ({ways[1]})(?: ({ways[2]}))?", text))):
        size, colour, noun = match.groups()
        shape = find(SHAPE_WORDS, noun) if noun else shape
        found.append(Look(shape, find(COLOUR_WORDS, colour), find(SIZE_WORDS, size)))
    return tuple(reversed(found))


def pattern(words: tuple[str, ...]) -> str:
    """A regular expression of any of these words, the longest first."""
    return rf"\b(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b"


def prompts(count: int, seed: int) -> list[str]:
    """Different prompts, the scenes in turn."""
    made: dict[str, None] = {}
    index = 0
    while len(made) < count:
        scene, clip = choose(seed, index, prompt=True)
        text = caption(attributes(scene, clip), clip)
        if text in made:
            index += len(SCENES)  # the same scene again
            continue
        made[text] = None
        index = index + 1
    return list(made)


def main() -> None:
    """Print prompts, one per line."""
    parser = argparse.ArgumentParser(description="Prompts of the miniature world, one per line.")
    parser.add_argument("--prompts", type=int, default=len(SCENES), help="how many (default: one per scene)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print("\n".join(prompts(asked.prompts, asked.seed)))


if __name__ == "__main__":
    main()
