"""The paper's models, tiny and random, in folders named and laid out as ``training/recipes/paper`` expects them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

RECIPES = Path(__file__).parents[2] / "training" / "recipes" / "paper"
WORDS = ("a", "red", "blue", "green", "circle", "square", "left", "of", "two", "best", "quality")
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNET: dict[str, Any] = {
    "sample_size": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
}
POOLED = 20
SDXL: dict[str, Any] = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
}


def write_models(folder: Path) -> None:
    """All language models and pipelines, and a table of four captioned pictures in ``data/``."""
    write_languages(folder / "models")
    write_unet(folder / "models" / "stable-diffusion-v1-4", cross_attention_dim=768)
    write_clip(folder / "models" / "stable-diffusion-v1-4" / "text_encoder")
    write_unet(folder / "models" / "ldm-text2im-large-256", vae="vqvae", cross_attention_dim=1280)
    write_unet(folder / "models" / "stable-diffusion-xl-base-1.0", cross_attention_dim=48, **SDXL)
    write_pixart(folder / "models" / "PixArt-XL-2-512x512")
    write_data(folder / "data")


def write_languages(folder: Path) -> None:
    import transformers as hf

    for name, width in (("t5-small", 16), ("t5-base", 24), ("t5-large", 32)):
        sizes: dict[str, Any] = {"d_model": width, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        torch.manual_seed(1)
        hf.T5EncoderModel(hf.T5Config(vocab_size=32, **sizes)).save_pretrained(folder / name)
        tokenizer("$A </s>").save_pretrained(folder / name)
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
    for name, model in (
        ("Llama-2-7b-hf", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))),
        ("bert", lambda: hf.BertModel(hf.BertConfig(**sizes), add_pooling_layer=False)),
    ):
        torch.manual_seed(1)
        model().save_pretrained(folder / name)
        words = tokenizer("<s> $A")
        words.pad_token = None if name.startswith("Llama") else "</s>"  # Llama 2 has none
        words.save_pretrained(folder / name)
    write_clip(folder / "clip-vit-large-patch14")


def write_clip(folder: Path) -> None:
    import transformers as hf

    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 48, "eos_token_id": 1}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 77}
    torch.manual_seed(2)
    hf.CLIPTextModel(hf.CLIPTextConfig(**sizes)).save_pretrained(folder)
    tokenizer("<s> $A </s>").save_pretrained(folder.with_name(folder.name.replace("text_encoder", "tokenizer")))


def write_two_clips(folder: Path) -> None:
    """A pipeline's text encoders, of width 16 and 24, as SDXL has two, and their tokenizers."""
    import transformers as hf

    sizes: dict[str, Any] = {"vocab_size": 32, "intermediate_size": 48, "eos_token_id": 1, "num_attention_heads": 4}
    sizes |= {"num_hidden_layers": 2, "max_position_embeddings": 20}
    torch.manual_seed(2)
    hf.CLIPTextModel(hf.CLIPTextConfig(hidden_size=16, **sizes)).save_pretrained(folder / "text_encoder")
    second = hf.CLIPTextConfig(hidden_size=24, projection_dim=POOLED, **sizes)
    hf.CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer("<s> $A </s>").save_pretrained(folder / name)


def tokenizer(form: str) -> Any:
    """A tokenizer of a few words with the special tokens that ``form`` puts around them; "</s>" is its padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(("<unk>", "</s>", "<s>", *WORDS))}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    ends = [(token, words[token]) for token in ("<s>", "</s>")]
    raw.post_processor = processors.TemplateProcessing(single=form, special_tokens=ends)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def write_unet(folder: Path, vae: str = "vae", **changes: Any) -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(3)
    UNet2DConditionModel(**UNET | changes).save_pretrained(folder / "unet")
    DDIMScheduler(**SCALED_LINEAR).save_pretrained(folder / "scheduler")  # pyright: ignore[reportArgumentType]
    write_vae(folder / vae)


def write_own_encoders(folder: Path) -> Path:
    """Own encoders: clip/ and t5/ of the tiny vision model's width, and xl/, a pipeline with two CLIPs."""
    import transformers as hf

    clip: dict[str, Any] = {"vocab_size": 32, "intermediate_size": 48, "eos_token_id": 1, "num_attention_heads": 4}
    clip |= {"num_hidden_layers": 2, "max_position_embeddings": 20}
    torch.manual_seed(2)
    hf.CLIPTextModel(hf.CLIPTextConfig(hidden_size=24, **clip)).save_pretrained(folder / "clip")
    t5 = hf.T5Config(vocab_size=32, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    hf.T5EncoderModel(t5).save_pretrained(folder / "t5")
    write_unet(folder / "xl", cross_attention_dim=40, **SDXL)
    write_two_clips(folder / "xl")
    for name, form in (("clip", "<s> $A </s>"), ("t5", "$A </s>")):
        tokenizer(form).save_pretrained(folder / name)
    return folder


def write_pixart(folder: Path) -> None:
    """With the class name that the published config.json has, older than the class."""
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    torch.manual_seed(3)
    PixArtTransformer2DModel(
        sample_size=64,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=40,
    ).save_pretrained(folder / "transformer")
    config = folder / "transformer" / "config.json"
    formerly = {"_class_name": "Transformer2DModel", "double_self_attention": False, "only_cross_attention": False}
    config.write_text(json.dumps(json.loads(config.read_text()) | formerly))
    DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02).save_pretrained(folder / "scheduler")
    write_vae(folder / "vae")


def write_vae(folder: Path) -> None:
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    torch.manual_seed(4)
    AutoencoderKL(**blocks, norm_num_groups=4).save_pretrained(folder)


def write_data(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 36, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i}.png")
    captions = ("a red circle", "two blue square", "a green square left of a red circle", "a blue circle")
    (folder / "coco2017.tsv").write_text("".join(f"{i}.png\t{caption}\n" for i, caption in enumerate(captions)))
