"""Checks that need the host's own library: run by the host's Python, in one process, each reported by name.

python inside.py HOST BASE PACK OUT     (see ``conftest.py``; OUT gets {"check": "" or the traceback} as JSON)
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

HOST, BASE, PACK, OUT = (os.path.abspath(path) for path in sys.argv[1:5])  # noqa: PTH100
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
os.chdir(HOST)
sys.path.insert(0, HOST)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import nodes as stock  # noqa: E402

before = set(sys.modules)
spec = importlib.util.spec_from_file_location("hyphen-pack", f"{PACK}/__init__.py", submodule_search_locations=[PACK])
assert spec is not None and spec.loader is not None
sys.modules["hyphen-pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
node_classes = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
imported = set(sys.modules) - before

bridge_ = importlib.import_module("hyphen-pack.nodes.bridge")
folders = importlib.import_module("hyphen-pack.nodes.folders")
language_ = importlib.import_module("hyphen-pack.nodes.language")
lora_ = importlib.import_module("hyphen-pack.nodes.lora")
unet_ = importlib.import_module("hyphen-pack.nodes.unet")
vision_ = importlib.import_module("hyphen-pack.nodes.vision")

MODELS = Path(BASE) / "models"
PROMPTS = json.loads((Path(BASE) / "prompts.json").read_text())
EXPECTED = load_file(f"{BASE}/expected.safetensors")
KINDS = ("bert", "llama", "gemma", "gpt2", "t5")
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def vision_targets():
    return importlib.import_module("hyphen-pack.lavi_core.vision").VISION_TARGETS


def close(ours, name, tolerance=1e-5):
    assert ours.shape == EXPECTED[name].shape, (name, ours.shape, EXPECTED[name].shape)
    difference = (ours.float() - EXPECTED[name]).abs().max().item()
    assert difference <= tolerance, f"{name}: differs by {difference:.3g}, sized {EXPECTED[name].abs().max():.3g}"


def distance(ours, name):
    return (ours.float() - EXPECTED[name]).norm().item()


def language_model(kind, dtype=None):
    return language_.LanguageModel.load(MODELS / "LLM" / f"tiny-{kind}", dtype)


def connected(kind, model=None, strength=0.7):
    return bridge_.ConnectedBridge.load(f"{kind}.safetensors", model or language_model(kind), strength, False)


def context(bridge, i=0):
    return bridge.encode(PROMPTS[i])[0][0][0]


def partly(patcher):
    """Load with a budget of one byte: every module that can stay where it is does."""
    comfy.model_management.unload_all_models()
    patcher.partially_load(patcher.load_device, 1)
    assert patcher.model.model_lowvram


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@check
def the_pack_imports_nothing_heavy():
    heavy = ("transformers", "diffusers", "peft", "accelerate", "gguf", "torch", "comfy.")
    assert not [name for name in imported if name.startswith(heavy)], sorted(imported)
    assert not [name for name in imported if ".training" in name]


@check
def unets_compute_what_diffusers_does():
    x, t, c = (EXPECTED[f"unet.{name}"] for name in "xtc")
    for name in ("flow", "velocity"):
        patcher = unet_.load(MODELS / "diffusers" / f"tiny-{name}")
        close(patcher.model.diffusion_model(x, t, context=c), f"unet.{name}")


@check
def unet_refuses_what_the_host_cannot_be():
    config = json.loads((MODELS / "diffusers" / "tiny-flow" / "unet" / "config.json").read_text())
    wrong = {"norm_num_groups": 16, "block_out_channels": [64, 96], "attention_head_dim": [1, 4]}
    wrong |= {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "layers_per_block": [1, 2]}
    for key, value in wrong.items():
        try:
            unet_.shape(config | {key: value})
        except ValueError as error:
            assert "ComfyUI" in str(error), error
        else:
            raise AssertionError(f"{key} = {value} was taken")


@check
def a_unet_says_the_scale_of_its_latents_or_is_refused():
    silent = Path(BASE) / "silent"
    for part, change in (("unet/config.json", {"latent_scale": None}), ("scheduler/scheduler_config.json", {})):
        said = json.loads((MODELS / "diffusers" / "tiny-flow" / part).read_text())
        (silent / part).parent.mkdir(parents=True, exist_ok=True)
        (silent / part).write_text(json.dumps(said | change))
    assert unet_.configs(MODELS / "diffusers" / "tiny-flow")[2] == 0.5
    try:
        unet_.configs(silent)
    except ValueError as error:
        assert "latent_scale" in str(error), error
    else:
        raise AssertionError("a scale was assumed")


@check
def schedules_are_those_of_diffusers():
    scheduler = json.loads((MODELS / "diffusers" / "tiny-velocity" / "scheduler" / "scheduler_config.json").read_text())
    model = unet_.load(MODELS / "diffusers" / "tiny-velocity").model
    betas = torch.linspace(scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    torch.testing.assert_close(model.model_sampling.sigmas, ((1 - alphas) / alphas).sqrt().float())
    kind, settings = unet_.sampling({"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True})
    assert (kind.name, settings["beta_schedule"], settings["zsnr"]) == ("EPS", "sqrt_linear", True)


@check
def every_family_gives_the_cores_context():
    for kind in KINDS:
        plain = connected(kind, strength=0.0)
        for i in range(len(PROMPTS)):
            close(context(plain, i), f"{kind}.plain.{i}")


@check
def the_language_lora_is_the_cores():
    for kind in KINDS:
        patched = connected(kind)
        assert (EXPECTED[f"{kind}.lora.0"] - EXPECTED[f"{kind}.plain.0"]).abs().max() > 1e-2
        for i in range(len(PROMPTS)):
            close(context(patched, i), f"{kind}.lora.{i}")


@check
def the_language_lora_survives_a_partial_load():
    for kind in KINDS:
        patched = connected(kind)
        partly(patched.clip.patcher)
        tokens = patched.clip.tokenize(PROMPTS[0])
        close(patched.clip.cond_stage_model.encode_token_weights(tokens)[0], f"{kind}.lora.0")


@check
def half_precision_works_whole_and_in_part():
    for dtype in (torch.bfloat16, torch.float16):
        for kind in KINDS:
            patched = connected(kind, language_model(kind, dtype))
            whole = context(patched)
            partly(patched.clip.patcher)
            tokens = patched.clip.tokenize(PROMPTS[0])
            for ours in (whole, patched.clip.cond_stage_model.encode_token_weights(tokens)[0]):
                close(ours, f"{kind}.lora.0", 0.1)
                with_it, without = (distance(ours, f"{kind}.{name}.0") for name in ("lora", "plain"))
                assert without > 5 * with_it, f"{kind} in {dtype}: {with_it:.3g} with the LoRA, {without:.3g} without"
            comfy.model_management.unload_all_models()
            assert next(patched.patcher.model.model.parameters()).dtype == dtype


@check
def a_pooled_head_reaches_the_conditioning():
    conditioning, _ = connected("pooled", language_model("bert"), 0.0).encode(PROMPTS[0])
    close(conditioning[0][1]["pooled_output"], "pooled.0")


@check
def taking_the_language_lora_away_restores_every_bit():
    for kind in KINDS:
        model = language_model(kind)
        before = weights(model.encoder)
        patched = connected(kind, model)
        context(patched)
        assert not same_bits(before, weights(model.encoder))
        close(context(connected(kind, model, 0.0)), f"{kind}.plain.0")
        assert same_bits(before, weights(model.encoder)), kind
        context(patched)
        comfy.model_management.unload_all_models()
        assert same_bits(before, weights(model.encoder)), kind


@check
def two_bridges_share_one_language_model():
    model = language_model("bert")
    one, other, third = connected("bert", model), connected("bert", model, 0.0), connected("masked", model, 0.0)
    for _ in range(2):
        close(context(one), "bert.lora.0")
        close(context(other), "bert.plain.0")
        close(context(third), "masked.0")
    assert one.patcher.model is other.patcher.model is model.patcher.model


@check
def the_lora_node_takes_peft_folders_and_bridges():
    model = language_model("llama")
    before = weights(model.encoder)
    node = node_classes["LaViBridgeLanguageLoRA"]
    for source in ("peft-llama", "llama.safetensors"):
        patched = node.execute(model, source, 0.7).args[0]
        close(context(connected("llama", patched, 0.0)), "llama.lora.0")
    close(context(connected("llama", model, 0.0)), "llama.plain.0")
    assert same_bits(before, weights(model.encoder))
    try:
        node.execute(language_model("bert"), "peft-llama", 1.0)
    except ValueError as error:
        assert "self_attn" in str(error), error
    else:
        raise AssertionError("a LoRA of another model was taken")


@check
def stock_clip_nodes_work():
    patched = connected("llama")
    clip = patched.clip
    (stocks,) = stock.CLIPTextEncode().encode(clip, PROMPTS[0])
    close(stocks[0][0], "llama.lora.0")
    (early,) = stock.CLIPSetLastLayer().set_last_layer(clip, -2)
    close(stock.CLIPTextEncode().encode(early, PROMPTS[0])[0][0][0], "llama.early.0")
    (last,) = stock.CLIPSetLastLayer().set_last_layer(clip, -1)
    close(stock.CLIPTextEncode().encode(last, PROMPTS[0])[0][0][0], "llama.lora.0")
    key = "text_encoders.model.layers.0.self_attn.q_proj"
    width = clip.cond_stage_model.state_dict()["model.layers.0.self_attn.q_proj.weight"].shape
    lora = {f"{key}.lora_up.weight": torch.ones(width[0], 1), f"{key}.lora_down.weight": torch.ones(1, width[1])}
    _, changed = comfy.sd.load_lora_for_models(None, clip, lora, 1.0, 1.0)
    assert (stock.CLIPTextEncode().encode(changed, PROMPTS[0])[0][0][0] - stocks[0][0]).abs().max() > 1e-3
    close(stock.CLIPTextEncode().encode(clip, PROMPTS[0])[0][0][0], "llama.lora.0")
    assert clip.get_sd().keys() == clip.patcher.model.state_dict().keys()


@check
def conditioning_is_float32_where_the_host_wants_it():
    conditioning, report = connected("bert").encode(PROMPTS[2])
    assert conditioning[0][0].dtype == torch.float32
    assert conditioning[0][0].device == comfy.model_management.intermediate_device()
    assert conditioning[0][1]["pooled_output"] is None
    assert report.startswith("16 tokens, 0 padding;") and "were cut off" in report, report


@check
def models_are_known_to_the_hosts_memory_management():
    bridge = connected("bert")
    context(bridge)
    loaded = comfy.model_management.loaded_models()
    assert bridge.patcher in loaded
    assert bridge.clip.cond_stage_model._adapter in loaded
    assert language_model("bert").patcher.model_size() > 0


@check
def nearly_all_weights_can_be_loaded_in_part():
    """What the host's casting classes hold it moves piece by piece; the rest (norms; GPT-2's own class) comes whole."""
    for kind in KINDS:
        shares = {True: 0, False: 0}
        for module in language_model(kind).encoder.modules():
            size = sum(parameter.nbytes for parameter in module.parameters(recurse=False))
            shares[hasattr(module, "comfy_cast_weights")] += size
        assert kind == "gpt2" or shares[True] > 0.98 * sum(shares.values()), (kind, shares)


def forward(patcher, name):
    x, t, c = (EXPECTED[f"{name}.{part}"] for part in "xtc")
    return patcher.model.diffusion_model(x, t, context=c)


@check
def the_vision_lora_survives_a_partial_load_and_leaves_no_trace():
    model = unet_.load(MODELS / "diffusers" / "tiny-flow")
    before = weights(model.model)
    patched = vision_.apply(model, connected("bert"), 1.0)
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    full = forward(patched, "unet")
    assert (full - EXPECTED["unet.flow"]).abs().max() > 1e-2
    partly(patched)
    assert (forward(patched, "unet") - full).abs().max() <= 1e-5
    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu([model])
    assert same_bits(before, weights(model.model))
    close(forward(model, "unet"), "unet.flow")
    assert vision_.apply(model, connected("bert"), 0.0) is model


@check
def pixart_at_512_gets_its_own_latents():
    model = comfy.sd.load_diffusion_model(str(MODELS / "diffusion_models" / "tiny-pixart.safetensors"))
    close(forward(model, "pixart"), "pixart.plain", 1e-4)
    patched = vision_.apply(model, connected("pixart", language_model("bert")), 1.0)
    assert abs(model.get_model_object("latent_format").scale_factor - 0.13025) < 1e-6
    assert abs(patched.get_model_object("latent_format").scale_factor - 0.18215) < 1e-6
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    assert (EXPECTED["pixart.lora"] - EXPECTED["pixart.plain"]).abs().max() > 1e-3
    close(forward(patched, "pixart"), "pixart.lora", 1e-4)


@check
def every_site_of_the_known_unets_is_known_to_the_host():
    """The authors adapt 224 sites of Stable Diffusion 1.4; a lost one would be another model."""
    from_detection = comfy.model_detection.unet_config_from_diffusers_unet
    for kind, (sites, shapes) in json.loads((Path(BASE) / "sites.json").read_text()).items():
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        config = comfy.model_detection.model_config_from_unet_config(from_detection(state))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=torch.device("meta"))
        host_keys = comfy.lora.model_lora_keys_unet(model, {})
        target = vision_targets()[kind]
        lost = [site for site in sites if target.key_of(site) not in host_keys]
        assert not lost, (kind, lost)
        weights_there = model.state_dict()
        for site in sites:
            assert list(weights_there[host_keys[target.key_of(site)]].shape) == shapes[f"{site}.weight"], site
    assert len(json.loads((Path(BASE) / "sites.json").read_text())["sd1"][0]) == 224


@check
def names_stay_inside_the_registered_folders():
    for name in ("../secret", "a/../../b", "/etc/passwd", "C:\\x", "\\\\host\\x", "", "a\0b", "..\\x", "C:x"):
        try:
            folders.resolve("bridge", name, folders.BRIDGES)
        except ValueError as error:
            assert "inside" in str(error), error
        else:
            raise AssertionError(f"{name!r} was taken")
    assert folders.resolve("bridge", "bert.safetensors", folders.BRIDGES).is_file()
    names = folders.names(*folders.LANGUAGE, folder=language_.is_language_model)
    assert names == ["lavi_demo_language", "no-tokenizer", *sorted(f"tiny-{kind}" for kind in KINDS)], names


@check
def paths_of_the_user_are_kept():
    extra = str(Path(BASE) / "elsewhere")
    Path(extra).mkdir(exist_ok=True)
    folder_paths.folder_names_and_paths["lavi_bridges"] = ([extra], set())
    folders.register()
    folders.register()
    paths, extensions = folder_paths.folder_names_and_paths["lavi_bridges"]
    assert paths == [extra, str(MODELS / "lavi_bridges")] and extensions == {".safetensors"}


results = {}
for name, function in CHECKS.items():
    try:
        with torch.inference_mode():
            function()
        results[name] = ""
    except Exception:
        results[name] = traceback.format_exc()
Path(OUT).write_text(json.dumps(results))
