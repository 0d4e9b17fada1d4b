"""Small models of the paper's own classes with random weights, in the hub's layout: where the miniature scale starts.

    build("resources/miniature/cogvideox", "cogvideox", seed=0)

Sizes are those of `backbones` in scales/miniature.yaml. The tokenizer is a byte-level BPE: words of the texts that it
is made from become one token each, all else is spelled.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from moalign.manifest import sha256, write_text

TEXT_TOKENS = 32
TEXT_WIDTH = 64
LATENT_CHANNELS = 16
SUMS = "SHA256SUMS"
CARD = ("README.md", "card.json", "loss.png", "samples.png", SUMS)  # what is no part of the model
TEXT = {
    "vocab_size": 768,
    "d_model": TEXT_WIDTH,
    "d_kv": 16,
    "num_heads": 4,
    "d_ff": 128,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}


def build(folder: str | Path, family: str, seed: int = 0, texts: Sequence[str] = ()) -> Path:
    """Write a random model of `family` to `folder`, in place of what is there, with its SHA256SUMS.

    Same seed and texts, same bytes.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    pipeline(family, seed, texts).save_pretrained(str(folder))
    write_sums(folder)
    return folder


def pipeline(family: str, seed: int = 0, texts: Sequence[str] = ()) -> DiffusionPipeline:
    """The stock pipeline of `family` (cogvideox or wan) over small random modules; torch's own random state is kept.

    texts: captions whose words the tokenizer shall know; without any it spells.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"cogvideox": _cogvideox, "wan": _wan}[family](tokenizer(texts))


def write_sums(folder: str | Path) -> None:
    """SHA256SUMS of every file of the model in `folder`, as `sha256sum -c` reads it from there."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in CARD)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SUMS, "".join(lines))


def _cogvideox(tokens: PreTrainedTokenizerFast) -> CogVideoXPipeline:
    """64 x 64 x 17 pixels -> 16 x 16 x 9 latents -> 8 x 8 x 9 tokens of width 128, 6 blocks."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=6,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=128,
        text_embed_dim=TEXT_WIDTH,
        max_text_seq_length=TEXT_TOKENS,
        sample_height=16,
        sample_width=16,
        sample_frames=17,
        temporal_compression_ratio=2,
        spatial_interpolation_scale=1.0,  # positions as they are: the grid is far smaller than the paper's
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(16, 32, 64),  # two halvings in space
        temporal_compression_ratio=2,
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_height=64,
        sample_width=64,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        snr_shift_scale=3.0,
    )
    text_encoder = T5EncoderModel(T5Config(**TEXT))
    return CogVideoXPipeline(tokens, text_encoder, vae, transformer, scheduler)


def _wan(tokens: PreTrainedTokenizerFast) -> WanPipeline:
    """64 x 64 x 17 pixels -> 16 x 16 x 5 latents -> 8 x 8 x 5 tokens of width 96, 6 blocks."""
    transformer = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        num_layers=6,
        ffn_dim=384,
        freq_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        rope_max_seq_len=64,
    )
    vae = AutoencoderKLWan(
        base_dim=16,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        z_dim=LATENT_CHANNELS,
        latents_mean=[0.0] * LATENT_CHANNELS,  # of random weights; a trained VAE has its own measured
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    text_encoder = UMT5EncoderModel(UMT5Config(**TEXT))
    return WanPipeline(tokens, text_encoder, vae, scheduler, transformer)


def tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`, T5's special tokens, prompts of TEXT_TOKENS at most."""
    special = ["<pad>", "</s>", "<unk>"]
    made = Tokenizer(BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=True), Bytes()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=TEXT["vocab_size"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=TEXT_TOKENS, **names)
