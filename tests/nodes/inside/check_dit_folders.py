"""What a folder of a diffusion transformer says to the host: shards, shift, latents, precision; and what is refused."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
import math
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_detection
import torch
from check_dits import config_of, folder_of, ours
from host_side import BASE, check, refused, same_bits, vision_model_
from safetensors.torch import load_file, save_file

vision = importlib.import_module("hyphen-pack.lavi_core.vision")
registry_ = importlib.import_module("hyphen-pack.nodes.vision_model.registry")
scheduler_ = importlib.import_module("hyphen-pack.nodes.vision_model.scheduler")

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = ("sd3", "flux", "flux-schnell", "chroma", "flux2", "z_image", "lumina2", "qwen_image", "aura_flow", "cosmos")
NAMES += ("anima", "wan", "ernie_image")


def row_of(name):
    return vision.target_of(config_of(name))


def here():
    """The folders that this host has a class for."""
    return [name for name in NAMES if registry_.HOST_MODELS[row_of(name).name].is_here]


@contextmanager
def changed(name, part="transformer/config.json", **changes):
    """A copy of a folder, with other numbers in one of its configs."""
    with tempfile.TemporaryDirectory(dir=BASE) as made:
        folder = Path(made) / f"dit-{name}"
        shutil.copytree(folder_of(name), folder)
        path = folder / part
        path.parent.mkdir(exist_ok=True)
        said = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(said | changes))
        yield folder


@check
def pipelines_with_a_transformer_are_listed():
    for name in NAMES:
        assert vision_model_.is_vision_model(folder_of(name)), name
        assert vision_model_.is_vision_model(folder_of(name) / "transformer"), name


@check
def shards_are_one_model():
    """As released ones are saved; with one missing they are none."""
    whole = ours("sd3").model.state_dict()
    state = load_file(folder_of("sd3") / "transformer" / WEIGHTS)
    names = sorted(state)
    with changed("sd3") as folder:
        network = folder / "transformer"
        (network / WEIGHTS).unlink()
        files = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        shards = {key: files[i % 2] for i, key in enumerate(names)}
        for file in files:
            save_file({key: state[key].clone() for key in names if shards[key] == file}, network / file)
        for index in ("index", "index.fp16"):  # the list of a variant is named so
            (network / f"{WEIGHTS}.{index}.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
            assert same_bits(whole, vision_model_.load(folder).model.state_dict())
            (network / f"{WEIGHTS}.{index}.json").unlink()
        (network / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))
        (network / files[1]).unlink()
        refused(["1 of 2 shards", files[1]], vision_model_.load, folder)


@check
def a_flow_has_the_shift_of_its_scheduler_or_the_hosts_own():
    shifts = {"sd3": 3.0, "flux": 1.15, "flux-schnell": 1.0, "chroma": 1.15, "flux2": 2.02, "z_image": 3.0}
    shifts |= {"lumina2": 6.0, "qwen_image": 1.15, "aura_flow": 1.73, "anima": 3.0, "wan": 3.0, "ernie_image": 4.0}
    for name in here():
        sampling = ours(name).model.model_sampling
        assert getattr(sampling, "shift", None) == shifts.get(name), (name, getattr(sampling, "shift", None))
    cosmos = ours("cosmos").model.model_sampling
    assert (round(float(cosmos.sigma_min), 6), float(cosmos.sigma_max)) == (0.002, 80.0)
    fixed = {"use_dynamic_shifting": False, "shift": 3.0}
    with changed("chroma", "scheduler/scheduler_config.json", **fixed) as folder:
        assert vision_model_.load(folder).model.model_sampling.shift == math.log(3)  # mu
    unipc = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 5.0}
    with changed("wan", "scheduler/scheduler_config.json", **unipc) as folder:
        assert vision_model_.load(folder).model.model_sampling.shift == 5.0
    assert scheduler_.flow_shift({"_class_name": "FlowMatchEulerDiscreteScheduler"}, row_of("sd3")) is None
    epsilon = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}
    with changed("sd3", "scheduler/scheduler_config.json", **epsilon) as folder:
        refused(["sd3", "DDIMScheduler", "flow matching"], vision_model_.load, folder)


@check
def a_model_has_the_latents_that_its_folder_says():
    """The host's own where the folder says nothing or the same; else the folder's, its VAE's or its config's."""
    formats = {"sd3": "SD3", "flux2": "Flux2", "ernie_image": "Flux2", "aura_flow": "SDXL"}
    formats |= dict.fromkeys(("flux", "flux-schnell", "chroma", "z_image", "lumina2"), "Flux")
    formats |= dict.fromkeys(("qwen_image", "cosmos", "anima", "wan"), "Wan21")
    for name in here():
        found = ours(name).get_model_object("latent_format")
        assert type(found).__name__ == formats[name]
        assert_seen(found, vision.latent_space(folder_of(name) / "transformer", row_of(name)))
        assert found.latent_channels == row_of(name).latent_channels(config_of(name))
    other = {"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "shift_factor": 0.25}
    numbers = {"latents_mean": [0.5] * 16, "latents_std": [2.0] * 16}
    for name, part, said, space in (
        ("flux", "vae/config.json", other, vision.LatentSpace(0.5, 0.25)),
        ("sd3", "transformer/config.json", {"latent_scale": 1.0}, vision.LatentSpace(1.0)),
        ("wan", "vae/config.json", numbers, vision.LatentSpace((0.5,) * 16, (0.5,) * 16)),
        ("qwen_image", "transformer/config.json", {"latent_scale": 0.5}, vision.LatentSpace(0.5)),
    ):
        with changed(name, part, **said) as folder:
            assert_seen(vision_model_.load(folder).get_model_object("latent_format"), space)
    with changed("aura_flow", "vae/config.json", **other) as folder:  # SDXL's format has no shift
        refused(["0.25", "0.5", "SDXL"], vision_model_.load, folder)


def assert_seen(host_format, space):
    raw = torch.randn(2, host_format.latent_channels, 3, 5)
    five = host_format.latent_dimensions == 3
    host = host_format.process_in(raw.unsqueeze(2) if five else raw)
    torch.testing.assert_close(host.reshape(raw.shape), space.seen(raw))
    torch.testing.assert_close(host_format.process_out(host).reshape(raw.shape), raw)


@check
def float16_is_for_those_whose_class_has_it():
    for name, has in (("sd3", True), ("flux", True), ("lumina2", False), ("qwen_image", False)):
        if name in here():
            dtypes = ours(name).model.model_config.supported_inference_dtypes
            assert (torch.float16 in dtypes) == has, name


@check
def a_transformer_that_the_host_cannot_be():
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("sd3", {"attention_head_dim": 32}),
        ("sd3", {"qk_norm": "layer_norm"}),
        ("flux", {"axes_dims_rope": [16, 16, 16]}),
        ("chroma", {"num_single_layers": 1000}),
        ("flux2", {"timestep_guidance_channels": 32}),
        ("z_image", {"all_patch_size": [4]}),
        ("lumina2", {"out_channels": 8}),
        ("qwen_image", {"zero_cond_t": True}),
        ("aura_flow", {"caption_projection_dim": 96}),
        ("cosmos", {"extra_pos_embed_type": "learnable"}),
        ("wan", {"image_dim": 1280}),
        ("ernie_image", {"qk_layernorm": False}),
    )
    for name, change in wrong:
        if name in here():
            with changed(name, **change) as folder:
                refused(["transformer", "ComfyUI", str(*change.values())], vision_model_.load, folder)


@check
def weights_without_a_place_and_places_without_weights():
    with changed("qwen_image") as folder:
        path = folder / "transformer" / WEIGHTS
        state = load_file(path)
        save_file(state | {"a.weight": torch.zeros(1)}, path)
        refused(["1 of", "dit-qwen_image", "QwenImageTransformer2DModel", "a.weight"], vision_model_.load, folder)
        state.pop("proj_out.bias")
        save_file(state, path)
        refused(["lacks 1", "proj_out.bias"], vision_model_.load, folder)
        config = folder / "transformer" / "config.json"
        config.write_text(config.read_text()[:40])
        refused(["config.json", "no whole JSON object", "copy it again"], vision_model_.load, folder)


@check
def a_config_that_is_not_of_its_weights():
    """Weights of other shapes, a part of a matrix that the host fuses, heads that are no whole, a width unsaid."""
    for name in here():
        key = row_of(name).width_key
        wider: dict[str, Any] = {key: 41}
        unsaid: dict[str, Any] = {key: None}
        with changed(name, **wider) as folder:
            refused([f"dit-{name}", "other shapes than its config.json says", "40", "41"], vision_model_.load, folder)
        with changed(name, **unsaid) as folder:
            refused([row_of(name).name, "does not say", key], vision_model_.load, folder)
    with changed("lumina2") as folder:
        path = folder / "transformer" / WEIGHTS
        state = load_file(path)
        state.pop("layers.0.attn.to_k.weight")
        save_file(state, path)
        refused(["1 of", "dit-lumina2", "layers.0.attention.qkv.weight"], vision_model_.load, folder)
    with changed("lumina2", num_attention_heads=8) as folder:
        refused(["8 heads", "96", "[8, 8, 8]"], vision_model_.load, folder)


def bridge_to(target, width=40, pooled=None):
    trained = SimpleNamespace(target=target, model_id=f"the {target}", context_width=width, other_pooled=None)
    return SimpleNamespace(vision=trained, pooled_width=pooled)


@check
def at_released_sizes_every_weight_has_its_place():
    """And the description is what the host's own detection says of such weights, as far as that says it."""
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    sizes = json.loads((Path(BASE) / "dit_sizes.json").read_text())
    assert len(sizes) == 13
    for config, shapes in sizes:
        row = vision.target_of(config)
        host_model = registry_.HOST_MODELS[row.name]
        if not host_model.is_here:
            continue
        space = vision.LatentSpace(row.latent_scale, row.latent_shift)
        said = host_model.describe(config, flow | {"use_karras_sigmas": row.name == "cosmos"}, row, space)
        told = said.unet_config.copy()
        said.set_inference_dtype(torch.bfloat16, None)
        model = said.get_model({}, "", device=torch.device("meta"))
        host_model.adjust(model)
        state = host_model.rename({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, told)
        expected = {key: weight.shape for key, weight in model.diffusion_model.state_dict().items()}
        assert {key: weight.shape for key, weight in state.items()} == expected, row.name
        detected = comfy.model_detection.detect_unet_config(state, "")
        stock = comfy.model_detection.model_config_from_unet_config(detected, state)
        assert type(said) is type(stock) and said.memory_usage_factor == stock.memory_usage_factor
        assert said.sampling_settings == stock.sampling_settings
        assert said.supported_inference_dtypes == stock.supported_inference_dtypes
        other = {key for key in told.keys() & detected.keys() if told[key] != detected[key]}
        if row.name == "flux2" and detected["num_heads"] == 48:  # older hosts take klein for Flux.2 dev
            other.discard("num_heads")
        assert other <= {"ffn_dim_multiplier", "axes_lens"}, (row.name, other)  # rounded otherwise; not used


@check
def a_bridge_fits_its_own_transformer_alone():
    """Kind, width and pooled vector, each in one sentence with both sides; Flux.1's bridges fit dev and schnell."""
    pooled: dict[str, int] = dict.fromkeys(("sd3", "flux", "flux-schnell"), 24)
    models = {name: ours(name) for name in here()}
    for name, model in models.items():
        own = bridge_to(row_of(name).name, pooled=pooled.get(name))
        vision_model_.refuse_misfit(model, "own.safetensors", own)
        wide = bridge_to(row_of(name).name, 41, pooled.get(name))
        refused(["own", "41", "40"], vision_model_.refuse_misfit, model, "own", wide)
        other = None if name in pooled else 12
        words = ["no pooled vector", f"width {pooled.get(name, 12)}"]
        refused(words, vision_model_.refuse_misfit, model, "own", bridge_to(row_of(name).name, pooled=other))
        kin = {"flux", "flux_schnell"} if name.startswith("flux") and name != "flux2" else {row_of(name).name}
        for target in {row_of(one).name for one in models} - kin:
            words = [f"the {target}", type(model.model).__name__, f"load the {target}"]
            refused(words, vision_model_.refuse_misfit, model, "own", bridge_to(target, pooled=pooled.get(target)))


@check
def a_bridge_to_a_model_that_this_host_is_too_old_for():
    for name in set(NAMES) - set(here()):
        words = ["own.safetensors", row_of(name).name, "a newer ComfyUI"]
        refused(words, vision_model_.refuse_misfit, ours("sd3"), "own.safetensors", bridge_to(row_of(name).name))
