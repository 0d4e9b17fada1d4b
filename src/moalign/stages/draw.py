"""Draw first, then cache: which clips stage 2 will see, so that `encode` and `targets` make nothing else (Sec. 4.1).

`moalign draw --config PIN --clips FILES --out MANIFEST`. A training draws by counter, so what it will see is known
before it starts: at the paper's scale 128,000 clips of 366,000. Listed is the union over all seeds, and the held-out
clips that validation looks at. One list serves every backbone, since their runs have steps, batch and seeds in common.
"""

from itertools import chain
from pathlib import Path

from moalign import manifest
from moalign.clips import Clips, drawn
from moalign.config import DrawPin
from moalign.train import loop


def run(config: str, clips: list[str], out: str) -> None:
    """Write one list of keys per shard, {kind}/{shard}.txt beside the manifest; rows of manifest.Drawn.

    The lists say nothing but the keys, in their shard's order: one that is the same as before has the same bytes, and
    what was made from it stays.
    """
    pin = DrawPin.load(config)
    with manifest.making(out, manifest.Drawn, pin=config, inputs=clips) as made:
        train, heldout = (Clips(clips, split) for split in ("train", "heldout"))
        looked_at = chain.from_iterable(loop.validation_groups(len(heldout), 1))
        wanted = {train.keys[i] for i in every(pin, len(train))} | {heldout.keys[i] for i in looked_at}
        for path in map(Path, clips):
            rows = manifest.read(path, manifest.Clip).rows
            keys = [row.key for row in rows if row.key in wanted]
            name = f"{path.parent.name}/{path.stem}.txt"
            manifest.write_text(made.path.parent / name, "".join(f"{key}\n" for key in keys))
            made.file(name)
            made.rows.append(manifest.Drawn(name, len(keys), len(rows)))
        made.count("drawn", len(wanted))
        made.count("clips", len(train) + len(heldout))


def every(pin: DrawPin, n: int) -> set[int]:
    """Indices of the training clips, `n` in all, that any training draws."""
    if not pin.seeds:
        return set(range(n))
    return set(chain.from_iterable(drawn(seed, pin.steps, pin.batch, n) for seed in pin.seeds))
