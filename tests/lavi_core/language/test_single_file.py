"""A lone safetensors file says what its folder says; where config and tokenizer come from; what is refused."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.quantized.modules import quantized
from safetensors.torch import load_file, save_file

RECIPE = PromptRecipe(max_length=20)


def say(encoder):
    return encoder(encoder.tokenize(["a red circle left of a blue square", "sea"], RECIPE), RECIPE).states


def alone(folder, target, dtype=torch.float32, prefix=""):
    """The folder's weights as one file, its other files in a folder beside it."""
    state = load_file(folder / "model.safetensors")
    save_file({f"{prefix}{name}": tensor.to(dtype) for name, tensor in state.items()}, target)
    shutil.copytree(folder, target.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    return target


@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "clip", "gpt2", "bart"])
def test_a_file_says_what_its_folder_says(language_folder, tmp_path, kind):
    folder = language_folder(kind)
    file = alone(folder, tmp_path / f"{folder.name}.safetensors")
    ours, theirs = TextEncoder.load(file), TextEncoder.load(folder)
    assert ours.config == theirs.config  # the fingerprint too
    assert kind == "bart" or TextEncoder.skeleton(file).config == theirs.config
    assert torch.equal(say(ours), say(theirs))


def test_the_config_may_lie_elsewhere(language_folder, tmp_path):
    folder = language_folder("llama")
    file = alone(folder, tmp_path / "x.safetensors", prefix="text_encoder.")
    shutil.move(tmp_path / "x", tmp_path / "elsewhere")
    for config in (tmp_path / "elsewhere", folder):
        assert torch.equal(say(TextEncoder.load(file, config=config)), say(TextEncoder.load(folder)))
    with pytest.raises(ValueError, match=r"x.safetensors holds weights alone, .* \(CLIP, T5\): put .* into a folder x"):
        TextEncoder.load(file)
    with pytest.raises(ValueError, match=r"x.safetensors does not hold a bert model of 32 channels by its usual names"):
        TextEncoder.load(file, config=language_folder("bert"))


def test_another_file_is_named(tmp_path):
    save_file({"taesd_decoder.1.bias": torch.zeros(4)}, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"vae.safetensors is no language model, it is a VAE \(TAESD\), which belongs"):
        TextEncoder.load(tmp_path / "vae.safetensors")


def test_a_known_encoder_needs_a_tokenizer_alone(language_folder, tmp_path):
    """True widths of CLIP-L and T5 v1.1 XXL, with fewer layers and narrow maps."""
    import transformers

    shape: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
    }
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**shape, hidden_act="quick_gelu", vocab_size=400, pad_token_id=1)
    )
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, vocab_size=32128, feed_forward_proj="gated-gelu"
        )
    )
    tokenizers = {"clip": language_folder("clip"), "t5": language_folder("t5")}
    for name, model in (("clip", clip.eval()), ("t5", t5.eval())):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        state = {k: v.contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}
        if name == "clip":  # as ComfyUI's users have it, whatever transformers calls them now
            state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
        else:
            del state["encoder.embed_tokens.weight"]
        file = tmp_path / f"{name}.safetensors"
        save_file(state, file)
        ours = TextEncoder.load(file, tokenizers=tokenizers)
        tokens = ours.tokenize(["a red circle", ""], RECIPE)
        with torch.no_grad():
            theirs = model(tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
            assert torch.equal(ours(tokens, RECIPE).states, theirs)
        assert (ours.config.family, ours.config.num_layers) == (name, 2)


def test_a_whole_clip_is_its_text_half(language_folder, tmp_path):
    """Its vision half has layers of the same names, and more of them."""
    import transformers

    shape: Any = {"intermediate_size": 64, "num_attention_heads": 12, "hidden_size": 768}
    text = transformers.CLIPTextConfig(**shape, num_hidden_layers=2, vocab_size=400, pad_token_id=1)
    vision = transformers.CLIPVisionConfig(**shape, num_hidden_layers=4, image_size=32, patch_size=16)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    ).eval()
    state = {k: v.contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}
    save_file(state, tmp_path / "whole.safetensors")
    ours = TextEncoder.load(tmp_path / "whole.safetensors", tokenizers={"clip": language_folder("clip")})
    tokens = ours.tokenize(["a red circle"], RECIPE)
    with torch.no_grad():
        theirs = model.text_model(tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        torch.testing.assert_close(ours(tokens, RECIPE).states, theirs)
    assert ours.config.num_layers == 2


def test_a_umt5_is_not_taken_for_a_t5(language_folder, tmp_path):
    """pile-T5 has as many words as T5, and another tokenizer. A T5's decoder has a table of distances too."""
    import transformers

    sizes: Any = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "vocab_size": 32128}
    pile = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes))
    whole = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    for name, model in (("pile", pile), ("whole", whole)):
        tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
        save_file(state, tmp_path / f"{name}.safetensors")
    tokenizers = {"t5": language_folder("t5")}
    with pytest.raises(ValueError, match="of no encoder that is known by its shapes"):
        TextEncoder.load(tmp_path / "pile.safetensors", tokenizers=tokenizers)
    assert TextEncoder.load(tmp_path / "whole.safetensors", tokenizers=tokenizers).config.num_layers == 2


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_float8_stays_float8(language_folder, tmp_path, kind, dtype):
    folder = language_folder(kind)
    eight = alone(folder, tmp_path / "eight.safetensors", dtype)
    wide = {name: tensor.float() for name, tensor in load_file(eight).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    for compute in (torch.float32, torch.bfloat16):
        ours = TextEncoder.load(eight, dtype=compute)
        golden = TextEncoder.load(tmp_path / "wide.safetensors", dtype=compute, config=tmp_path / "eight")
        assert torch.equal(say(ours), say(golden)) and ours.dtype == compute
        assert ours.config.fingerprint == TextEncoder.load(folder).config.fingerprint  # signs survive
        held = {id(p): p.nbytes for p in ours.parameters() if p.ndim > 1}
        assert sum(held.values()) == sum({id(m.blocks): m.rows * m.columns for _, m in quantized(ours.model)}.values())
