"""Table 6 in words: the comparisons of a study, and what tells how far to trust them."""

from typing import Any

HEADS = ("comparison", "n", "win share (%)", "Wilson", "binomial p, Holm", "prompts won : lost", "sign p", "paper")


def markdown(found: dict[str, Any]) -> str:
    """All of it, with and without the raters that the plan's rule leaves out."""
    lines = ["# User study", ""]
    for notice in notices(found):
        lines += [f"**{notice}**", ""]
    lines += [
        f"{found['votes']} votes of {found['raters']} raters; {found['did not play']} videos did not play;"
        f" raters left out by the plan's rule for catch trials: {len(found['excluded'])}.",
        "",
    ]
    for name, title in (("kept", "Without those raters"), ("all", "With all raters")):
        cells = [HEADS, ["---"] * len(HEADS), *rows(found[name])]
        lines += [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
        lines += [*(f"- {line}" for line in remarks(found[name])), ""]
    lines += [
        "Win share: votes for the first. Interval: bootstrap over prompts and raters at once. Wilson's interval and",
        "the binomial p suppose that all votes are independent, which votes on one prompt are not. Sign p: over the",
        "majorities of the prompts.",
    ]
    return "\n".join(lines) + "\n"


def notices(found: dict[str, Any]) -> list[str]:
    """What a reader must know first."""
    told = ["Simulated raters: no person voted, the numbers mean nothing."] if found["simulated"] else []
    if found["have"] < found["wanted"]:
        told.append(f"Waiting for votes: {found['have']} of {found['wanted']}.")
    return told


def rows(part: dict[str, Any]) -> list[list[str]]:
    """A line of cells to each comparison that has votes."""
    return [
        [
            f"`{row['ours']}` over `{row['base']}`",
            str(row["n"]),
            f"{100 * row['share']:.1f} {ends(row['interval'])}",
            ends(row["wilson"]),
            f"{row['binomial p, Holm']:.3g}",
            f"{row['prompts won']} : {row['prompts lost']}",
            f"{row['sign p']:.3g}",
            "{:g} : {:g}".format(*row["paper"]) if row["paper"] else "",
        ]
        for row in part["comparisons"]
        if row["n"]
    ]


def remarks(part: dict[str, Any]) -> list[str]:
    """Sides, catch trials, repeats, agreement, strengths."""
    lines = []
    if left := part["left"]:
        biased = "; **sides are not alike to these raters**" if left["p"] < 0.05 else ""
        lines.append(f"Left was chosen in {100 * left['share']:.1f} % of {left['n']}, p = {left['p']:.3g}{biased}.")
    if catch := part["catch"]:
        lines.append(f"Catch trials passed: {100 * catch['passed']:.1f} % of {catch['n']}.")
    if again := part["repeats"]:
        lines.append(f"Repeats with swapped sides, same video chosen: {100 * again['same']:.1f} % of {again['n']}.")
    if part["alpha"] is not None:
        lines.append(f"Krippendorff's alpha: {part['alpha']:.2f}.")
    if part["strength"]:
        told = ", ".join(f"`{run}` {value:.2f}" for run, value in sorted(part["strength"].items(), key=lambda x: -x[1]))
        lines.append(f"Bradley-Terry: {told}.")
    return lines


def ends(interval: tuple[float, float]) -> str:
    """[low, high] in per cent."""
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
