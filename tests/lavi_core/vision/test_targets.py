"""The rows of vision models: the authors' LoRA sites and file names that stock ComfyUI reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning
from lavi_bridge.lavi_core.vision import VISION_TARGETS, Told, target_of
from lavi_bridge.lavi_core.vision.added_conditions import micro_conditions, nothing, pooled_and_sizes


def sd14():
    """Stable Diffusion 1.4's U-Net, without its weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)


def pixart():
    """PixArt-XL-2-512x512, without its weights."""
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        return PixArtTransformer2DModel(sample_size=64, out_channels=8)


def test_the_authors_224_sites_of_stable_diffusion():
    model = sd14()
    sites = VISION_TARGETS["sd1"].sites(model)
    assert len(sites) == 224
    assert sum(isinstance(model.get_submodule(p), torch.nn.Conv2d) for p in sites) == 58
    params = sum(count(model.get_submodule(p), 32) for p in sites)
    assert params == 28_291_072
    assert VISION_TARGETS["unet"].sites(model) == sites
    for never in ("proj_in", "proj_out", "ff.net.2", "conv_in", "conv_out", "samplers", "time_embedding"):
        assert not any(never in path for path in sites)


def test_the_authors_224_sites_of_pixart():
    sites = VISION_TARGETS["pixart"].sites(pixart())
    assert len(sites) == 224
    assert sites[:5] == [f"transformer_blocks.0.attn1.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0")] + [
        "transformer_blocks.0.attn2.to_q"
    ]


def count(module, rank):
    weight = module.weight
    return rank * (weight[0].numel() + weight.shape[0])


def test_sdxl_sites():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),  # pyright: ignore[reportArgumentType]
            use_linear_projection=True,
        )
    sites = VISION_TARGETS["sdxl"].sites(model)
    assert sum(".transformer_blocks." in p for p in sites) == 70 * 9


@pytest.mark.parametrize(("name", "model"), [("sd1", sd14), ("pixart", pixart)])
def test_no_two_sites_share_a_key(name, model):
    target = VISION_TARGETS[name]
    sites = target.sites(model())
    assert len({target.keys.stem(path) for path in sites}) == len(sites)


def test_key_names():
    assert (
        VISION_TARGETS["sd1"].keys.stem("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0")
        == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    )
    assert (
        VISION_TARGETS["pixart"].keys.stem("transformer_blocks.0.attn2.to_k")
        == "transformer.transformer_blocks.0.attn2.to_k"
    )


def test_refusals():
    with pytest.raises(
        ValueError, match="unknown vision target 'x'; known: sd1, ldm, kolors, sdxl, pixart_sigma, pixart, "
    ):
        VISION_TARGETS["x"]
    with pytest.raises(
        ValueError, match="no LoRA sites of the vision target pixart were found in UNet2DConditionModel"
    ):
        VISION_TARGETS["pixart"].sites(sd14())
    assert all(name == row.name for name, row in VISION_TARGETS.items())


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}, "sd1"),
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 1280}, "ldm"),
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 1024}, "unet"),
        ({"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}, "sdxl"),
        ({"_class_name": "PixArtTransformer2DModel"}, "pixart"),
        # What PixArt-XL-2-512x512 was released with, before diffusers gave the class its name.
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}, "pixart"),
    ],
)
def test_a_config_tells_its_row(config, name):
    assert target_of(config).name == name


def test_a_config_that_no_row_fits_is_refused():
    with pytest.raises(ValueError, match="of class 'Transformer2DModel' is not known; known: AuraFlow"):
        target_of({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"})
    with pytest.raises(ValueError, match=r"with addition_embed_type = 'image' is not known; known: sd1: .*text_time"):
        target_of({"_class_name": "UNet2DConditionModel", "addition_embed_type": "image"})


def test_sdxls_refiner_is_not_sdxl(tmp_path):
    """diffusers' own class in the widths of the released refiner, which as SDXL would have a pooled vector of 1024."""
    from diffusers import UNet2DConditionModel
    from lavi_bridge.training.models.vision_model import load_vision_model

    shape: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
    }
    refiner: dict[str, Any] = shape | {
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 1280 + 5 * 256,
    }
    UNet2DConditionModel(**refiner).save_pretrained(tmp_path / "unet")
    for target in (None, "sdxl"):
        with pytest.raises(ValueError, match=r"SDXL's refiner \(context width 1280, .*\(context width 2048\): take"):
            load_vision_model(tmp_path, target)
    base = shape | {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 1280 + 6 * 256}
    assert target_of({"_class_name": "UNet2DConditionModel", **base}).name == "sdxl"


def test_what_a_network_is_told_beside_its_context():
    """SDXL's six sizes and pooled vector, PixArt's resolution and shape, where its checkpoint embeds them."""
    heard = Conditioning(torch.zeros(2, 3, 4), pooled=torch.ones(2, 5))
    added = pooled_and_sizes(heard, Told(config={}, size=(512, 256)))
    assert added["text_embeds"] is heard.pooled
    assert added["time_ids"].tolist() == 2 * [[512, 256, 0, 0, 512, 256]]
    large = micro_conditions(heard, Told(config={"sample_size": 128}, size=(1024, 512)))
    assert large["resolution"].tolist() == 2 * [[1024, 512]] and large["aspect_ratio"].tolist() == 2 * [[2.0]]
    for config in ({"sample_size": 64}, {"sample_size": 128, "use_additional_conditions": False}):
        none = micro_conditions(heard, Told(config=config, size=(512, 512)))
        assert none == {"resolution": None, "aspect_ratio": None}
    assert nothing(heard, Told(config={}, size=(512, 512))) == {}


def test_hunyuan_dit_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"two encoders at once, 77 and 256 tokens .* take another vision model"):
        target_of({"_class_name": "HunyuanDiT2DModel", "cross_attention_dim": 1024})


def test_a_width_that_config_json_does_not_say():
    for name, key in (("sd1", "cross_attention_dim"), ("sd3", "joint_attention_dim"), ("z_image", "cap_feat_dim")):
        with pytest.raises(ValueError, match=f"this {name} model does not say {key}"):
            VISION_TARGETS[name].context_width({})
    with pytest.raises(ValueError, match="this flux model does not say pooled_projection_dim"):
        VISION_TARGETS["flux"].pooled_width({"joint_attention_dim": 4096})
