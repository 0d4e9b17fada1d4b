"""Finding a checkpoint's parts, in the hub's layout, and checking that they are what params.yaml describes.

{weights}/transformer  vae  text_encoder  tokenizer  scheduler         each with its own config file
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from moalign.errors import Problem

PARTS = ("transformer", "vae", "text")
FOLDERS = {"transformer": "transformer", "vae": "vae", "text": "text_encoder", "tokenizer": "tokenizer"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
disable_progress_bar()  # transformers' bar per weight file says nothing in a log
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)  # what a damaged part makes loaders raise


@dataclass
class Parts:
    """A checkpoint's modules, None where not asked for, and the configs that are needed without their weights."""

    transformer: nn.Module | None
    vae: nn.Module | None
    text_encoder: nn.Module | None
    tokenizer: PreTrainedTokenizerBase | None
    vae_config: dict[str, Any]
    scheduler_config: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint's parts are, and what their configs say."""

    folders: dict[str, Path]  # transformer, vae, text, tokenizer, scheduler
    configs: dict[str, dict[str, Any]]  # transformer, vae, scheduler

    def agree(self, part: str, theirs: str, found: Any, ours: str, wanted: Any) -> None:
        """Problem unless a value of a part's config equals its key in params.yaml."""
        if found != wanted:
            raise Problem(
                f"{self.folders[part]}: {theirs} is {found}, but the backbone's `{ours}` in params.yaml is {wanted};"
                f" set {ours}: {found}, or name other `weights`"
            )

    def check_class(self, part: str, cls: type, family: str) -> None:
        """Problem unless a part is of the class that its family needs."""
        found = self.configs[part].get("_class_name")
        if found != cls.__name__:
            raise Problem(
                f"{self.folders[part]}: holds a {found}, but the backbone's `family` in params.yaml is {family}, which"
                f" needs a {cls.__name__}; correct `family` or `weights`"
            )


def look(
    weights: str, transformer: str | Path | None, parts: tuple[str, ...], revision: str | None = None
) -> Checkpoint:
    """The checkpoint that `weights` names, with the folder of a tuned transformer in place of its own where given."""
    folder = find(weights, parts, revision)
    folders = {part: folder / name for part, name in FOLDERS.items()} | {"scheduler": folder / "scheduler"}
    if transformer is not None:
        folders["transformer"] = Path(transformer)
    configs = {part: read_config(folders[part] / "config.json") for part in ("transformer", "vae")}
    configs["scheduler"] = read_config(folders["scheduler"] / "scheduler_config.json")
    return Checkpoint(folders, configs)


def find(weights: str, parts: tuple[str, ...], revision: str | None = None) -> Path:
    """The local folder of a checkpoint; a hub name is fetched, or found in the hub's cache, the named parts only."""
    folder = Path(weights)
    if folder.is_dir():
        return folder
    if not HUB_NAME.fullmatch(weights):
        raise Problem(f"{weights}: no such folder; set the backbone's `weights` to a folder in the hub's layout")
    wanted = ["*/*config.json", "scheduler/*"]
    wanted += [f"{FOLDERS[part]}/*" for part in parts] + (["tokenizer/*"] if "text" in parts else [])
    try:
        return Path(snapshot_download(weights, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise Problem(
            f"{weights}: neither a folder here nor a model that the hub gave ({first_line(error)}); correct the"
            f" backbone's `weights`, or fetch it: `moalign weights check` says how"
        ) from None


def read_config(path: Path) -> dict[str, Any]:
    """A part's JSON config; Problem where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: no such file; this is not a model folder in the hub's layout") from None
    except (OSError, ValueError) as error:
        raise Problem(f"{path}: cannot be read ({first_line(error)}); fetch or make it again") from None


def load_part(cls: type, folder: Path, name: str, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """One module with its weights, in eval mode. A weight that the files lack is a Problem, not a random start.

    `name` replaces the folder in the saved config, so that what is saved later does not carry a path of this machine.
    """
    # the two libraries spell the precision differently
    precision = {"torch_dtype": dtype} if hasattr(cls, "register_to_config") else {"dtype": dtype}
    try:
        module, info = cls.from_pretrained(str(folder), **precision, output_loading_info=True)
    except UNREADABLE as error:
        raise Problem(f"{folder}: cannot be loaded ({first_line(error)}); fetch or make it again") from None
    if info["missing_keys"]:
        raise Problem(
            f"{folder}: {len(info['missing_keys'])} weights are missing, {sorted(info['missing_keys'])[0]} among them;"
            " fetch or make it again"
        )
    if hasattr(module, "register_to_config"):
        module.register_to_config(_name_or_path=name)
    return module.to(device).eval()


def load_tokenizer(folder: Path, text_tokens: int) -> PreTrainedTokenizerBase:
    """The tokenizer, checked to allow prompts of `text_tokens`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except UNREADABLE as error:
        raise Problem(f"{folder}: cannot be loaded ({first_line(error)}); fetch or make it again") from None
    if tokenizer.model_max_length < text_tokens:
        raise Problem(
            f"{folder}: model_max_length is {tokenizer.model_max_length}, but the backbone's `text_tokens` in"
            f" params.yaml is {text_tokens}; set text_tokens: {tokenizer.model_max_length}, or name other `weights`"
        )
    return tokenizer


def first_line(error: Exception) -> str:
    """An error as one short line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
