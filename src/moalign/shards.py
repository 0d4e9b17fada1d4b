"""The two kinds of data file: a tar of clips whose byte ranges are known, and stacked safetensors read row by row.

Both are written under a temporary name and renamed, so a file that exists is whole. `tar xf` opens the first kind.
"""

import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from safetensors import SafetensorError, safe_open

from moalign.errors import Problem
from moalign.manifest import disk, replacing, write_text

if TYPE_CHECKING:
    from torch import Tensor


class TarWriter:
    """A tar in the making, as a context manager; it gets its name on leaving without an error.

    Equal files give equal bytes.
    """

    def __init__(self, path: str | Path):
        self._making = _tar_in_the_making(Path(path))

    def __enter__(self) -> "TarWriter":
        self._file, self._tar = self._making.__enter__()
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._making.__exit__(*error)

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a file; returns (offset, size) of its bytes in the tar."""
        header = tarfile.TarInfo(name)  # no date, no owner
        header.size = len(data)
        self._tar.addfile(header, BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self._file.tell() - padded, len(data)


@contextmanager
def _tar_in_the_making(path: Path) -> Iterator[tuple[BinaryIO, tarfile.TarFile]]:
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed run; a shard is many gigabytes
            left.unlink(missing_ok=True)
        with (
            replacing(path) as temporary,
            open(temporary, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar,
        ):
            yield file, tar


def read_bytes(path: str | Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset`."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except FileNotFoundError:
        raise Problem(f"{path}: no such file, yet a manifest names it; run the stage that makes it again") from None
    if len(data) < size:
        raise Problem(f"{path}: shorter than its manifest says; remove the manifest and run its stage again")
    return data


def end_to_end(name: str, parts: "list[Tensor]") -> "dict[str, Tensor]":
    """Parts of different lengths as one tensor and its offsets [N + 1]: what `TensorShard.ragged` reads."""
    import torch

    lengths = torch.tensor([0, *(len(part) for part in parts)])
    return {name: torch.cat(parts), "offsets": lengths.cumsum(0)}


def write_tensors(path: str | Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Stacked tensors as one safetensors file, by rename."""
    from safetensors.torch import save_file  # late: who only packs clips need not load torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path = Path(path)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            try:
                save_file(tensors, temporary, metadata)
            except SafetensorError as error:  # a full disk comes as this library's own error
                number = re.search(r"os error (\d+)", str(error))
                if number is None:
                    raise
                raise OSError(int(number[1]), str(error)) from None


class TensorShard:
    """A safetensors file held open: `shard[name]` is a tensor that is read row by row, `shard[name][3]` or `[3:5]`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = safe_open(self.path, framework="pt")
        except FileNotFoundError:
            raise Problem(f"{path}: no such file, yet a manifest names it; run the stage that makes it again") from None
        except (SafetensorError, OSError) as error:
            raise Problem(f"{path}: not a whole safetensors file ({error}); remove it, run its stage again") from None

    @property
    def metadata(self) -> dict[str, str]:
        """What its writer noted."""
        return self._file.metadata() or {}

    def __getitem__(self, name: str):
        if name not in self._file.keys():  # noqa: SIM118, it is no dictionary
            raise Problem(f"{self.path}: has no tensor {name!r}, only {', '.join(self._file.keys())}")
        return self._file.get_slice(name)

    def row(self, name: str, index: int) -> "Tensor":
        """A copy of row `index` of a tensor (a bare slice leans on the mapped file); Problem where it has fewer."""
        rows = self[name]
        if not 0 <= index < rows.get_shape()[0]:
            raise Problem(
                f"{self.path}: {name} has {rows.get_shape()[0]} rows and a manifest names row {index};"
                " run the stage that makes it again"
            )
        return rows[index].clone()

    def ragged(self, name: str, index: int) -> "Tensor":
        """A copy of part `index` of what `end_to_end` laid out: rows offsets[index] to offsets[index + 1]."""
        offsets = self["offsets"]
        if not 0 <= index < offsets.get_shape()[0] - 1:
            raise Problem(
                f"{self.path}: {name} has {offsets.get_shape()[0] - 1} parts and a manifest names part {index};"
                " run the stage that makes it again"
            )
        first, last = offsets[index : index + 2].tolist()
        return self[name][first:last].clone()


class TensorShards:
    """Shards by path, each opened once, when first read. Copies in other processes open their own."""

    def __init__(self):
        self._open: dict[Path, TensorShard] = {}

    def __getstate__(self) -> dict:
        return {"_open": {}}

    def __getitem__(self, path: Path) -> TensorShard:
        if path not in self._open:
            self._open[path] = TensorShard(path)
        return self._open[path]


def resumable(folder: str | Path, key: str) -> Path:
    """A folder for finished pieces of one job, emptied unless it was begun under the same `key`.

    A killed job then keeps what it had, and a job with other parameters or inputs starts from nothing.
    """
    folder = Path(folder)
    mark = folder / ".key"
    with disk(folder):
        if not mark.exists() or mark.read_text() != key:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            write_text(mark, key)
    return folder
