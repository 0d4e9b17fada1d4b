"""Weights of V, from the files that people have: a released VideoMAEv2 checkpoint, or a transformers VideoMAE folder.

Each is turned into one state dict under VideoMAEv2's names. Files that would load and teach something else are refused:
the self-supervised model, another size, a conversion that lost the biases of queries and values.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moalign.config import Encoder
from moalign.errors import Problem

NEEDED = (
    "encoder.weights needs VideoMAEv2's distilled ViT-B, vit_b_k710_dl_from_giant.pth"
    " (Hugging Face hub, repository OpenGVLab/VideoMAE2, folder distill)"
)
PRETRAINING = r"(module\.)?(decoder\.|encoder_to_decoder\.|mask_token|encoder\.mask_token)"
HEADS = r"(head|fc_norm|norm|classifier|layernorm)\."  # behind the last block; its tokens are taken as they are
FROM_TRANSFORMERS = {  # in this order
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^encoder\.layer\.": "blocks.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.attention\.attention\.": ".attn.",
    r"\.attn\.query\.bias$": ".attn.q_bias",  # transformers 5; 4 says q_bias and v_bias itself
    r"\.attn\.value\.bias$": ".attn.v_bias",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"\.output\.dense\.": ".mlp.fc2.",
}


def read(path: Path) -> dict[str, Tensor]:
    """The encoder's state dict: of a .pth file, or of a folder with config.json and model.safetensors."""
    if not path.exists():
        raise Problem(f"{path}: no such file; {NEEDED} at that path. The miniature's own comes with the repository")
    state = _read_folder(path) if path.is_dir() else _read_file(path)
    if any(re.match(PRETRAINING, name) for name in state):
        raise Problem(f"{path}: the self-supervised pre-training model (it has a decoder or a mask token); {NEEDED}")
    state = {re.sub(r"^(module\.)?(encoder\.)?", "", name): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not re.match(HEADS, name)}


def unpickle(path: Path, needed: str) -> Any:
    """What a .pth file holds, read without running any code of its own; Problem where it holds more than plain data."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # authors keep their arguments beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file may break the unpickler anywhere
        first = str(error).strip().partition("\n")[0]
        raise Problem(f"{path}: not a checkpoint of plain tensors ({first}); {needed}") from None


def _read_file(path: Path) -> dict[str, Tensor]:
    state = unpickle(path, NEEDED)
    for nest in ("module", "model"):
        state = state.get(nest, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Problem(f"{path}: holds no state dict of tensors; {NEEDED}")
    return state


def _read_folder(path: Path) -> dict[str, Tensor]:
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise Problem(f"{path / name}: no such file; a transformers VideoMAE folder has it. If a file: {NEEDED}")
    try:
        kind = json.loads((path / "config.json").read_text()).get("model_type")
        stored = load_file(path / "model.safetensors")
    except (SafetensorError, ValueError) as error:
        raise Problem(f"{path}: not a readable transformers checkpoint: {error}") from None
    if kind != "videomae":
        raise Problem(f"{path}: a transformers model of type {kind!r}, not videomae; {NEEDED}")
    state = {}
    for name, value in stored.items():
        name = name.removeprefix("videomae.")
        for theirs, ours in FROM_TRANSFORMERS.items():
            name = re.sub(theirs, ours, name)
        state[name] = value
    for query in [name for name in state if name.endswith(".attn.query.weight")]:
        thirds = [state.pop(query.replace("query", third), None) for third in ("query", "key", "value")]
        if all(third is not None for third in thirds):
            state[query.replace("query", "qkv")] = torch.cat(thirds)
    return state


def check_sizes(state: dict[str, Tensor], encoder: Encoder, path: Path) -> None:
    """Refuse a ViT of another size, naming the parameter."""
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 5:
        raise Problem(f"{path}: has no patch embedding over space and time; {NEEDED}")
    found = {
        "width": kernel.shape[0],
        "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "tubelet": kernel.shape[2],
        "patch": kernel.shape[3],
    }
    for key, size in found.items():
        wanted = getattr(encoder, key)
        if size != wanted:
            raise Problem(f"{path}: its ViT has {key} {size}, and encoder.{key} is {wanted}; change that, or: {NEEDED}")


def check_names(state: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Refuse missing, unknown and misshapen weights, and biases of queries and values that a conversion lost."""
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        first = f"{missing[0]} is missing" if missing else f"{unknown[0]} belongs to no VideoMAEv2 encoder"
        rest = len(missing) + len(unknown) - 1
        raise Problem(f"{path}: {first}{f', and {rest} more names do not fit' if rest else ''}; {NEEDED}")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise Problem(f"{path}: {name} is {list(value.shape)}, not {list(wanted[name].shape)}; {NEEDED}")
        if name.endswith((".q_bias", ".v_bias")) and not value.any():
            raise Problem(f"{path}: {name} is all zero, as after a conversion that lost it; {NEEDED}")
