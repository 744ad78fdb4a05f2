"""Quantised weights in the host: numbers, size, LoRA by node and by hook, partial loading, cancel."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
import shutil

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from host_side import (
    KINDS,
    MODELS,
    bridge_,
    check,
    close,
    connected,
    context,
    language_,
    node_classes,
    partly,
    refused,
    same_bits,
    weights,
)
from safetensors.torch import save_file

import nodes as stock

PACKED = MODELS / "LLM" / "tiny-packed.gguf"


def packed_model(dtype=None):
    return language_.LanguageModel.load(PACKED, dtype)


def at_8_bits(kind):
    return language_.LanguageModel.load(MODELS / "LLM" / f"tiny-{kind}", None, "8-bit")


def quantised(model):
    return {path: module for path, module in model.encoder.named_modules() if hasattr(module, "blocks")}


@check
def a_gguf_file_gives_the_cores_context_with_its_lora_and_without():
    model = packed_model()
    close(context(connected("packed", model, 0.0)), "packed.plain.0")
    close(context(connected("packed", model)), "packed.lora.0")
    close(context(connected("packed", model, 0.0)), "packed.plain.0")


@check
def what_the_host_counts_and_moves_are_the_bytes_of_the_file():
    model = packed_model()
    modules = quantised(model)
    linear = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    assert len(linear) == len(modules) == 15
    size = model.patcher.model_size()
    values = sum(module.rows * module.columns for module in modules.values())
    plain = sum(p.nbytes for p in model.encoder.parameters() if p.is_floating_point())
    assert size == values * 5 // 8 + plain and size < PACKED.stat().st_size, (size, values)
    comfy.model_management.load_models_gpu([model.patcher])
    assert model.patcher.loaded_size() == size
    assert all(module.blocks.dtype == torch.uint8 for module in modules.values())


@check
def a_lora_never_touches_the_bytes_and_goes_with_the_model():
    model = packed_model()
    before = weights(model.encoder)
    patched = connected("packed", model)
    context(patched)
    assert same_bits(before, weights(model.encoder))
    assert sum(bool(module.weight_function) for module in quantised(model).values()) == 8
    comfy.model_management.unload_all_models()
    assert not any(module.weight_function for module in quantised(model).values())
    assert same_bits(before, weights(model.encoder))
    one, other = connected("packed", model), connected("packed", model, 0.0)
    for _ in range(2):
        close(context(one), "packed.lora.0")
        one.prompts._kept.clear()
        close(context(other), "packed.plain.0")
        other.prompts._kept.clear()


@check
def a_partial_load_and_a_partial_unload_keep_the_lora_once():
    kinds = ("t5", "gpt2")  # GPT-2's maps are unpacked while their module runs
    for patched in (connected("packed", packed_model()), *(connected(kind, at_8_bits(kind)) for kind in kinds)):
        kind = patched.name.split(".")[0]
        name = "packed.lora.0" if kind == "packed" else f"{kind}.8-bit.lora.0"
        tokens = patched.clip.tokenize("a red circle left of a blue square")

        def say(patched=patched, tokens=tokens):
            return patched.clip.cond_stage_model.encode_token_weights(tokens)[0]

        partly(patched.patcher)
        close(say(), name)
        comfy.model_management.unload_all_models()
        comfy.model_management.load_models_gpu([patched.patcher])
        close(say(), name)
        freed = patched.patcher.partially_unload(patched.patcher.offload_device, patched.patcher.model_size() // 2)
        assert freed and patched.patcher.model.model_lowvram
        close(say(), name)
        patched.patcher.partially_load(patched.patcher.load_device, 2**30)
        close(say(), name)
        comfy.model_management.unload_all_models()


@check
def every_family_at_8_bits_is_the_cores():
    for kind in KINDS:
        model = at_8_bits(kind)
        assert kind == "gpt2" or len(quantised(model)) > 11, kind
        close(context(connected(kind, model, 0.0)), f"{kind}.8-bit.plain.0")
        close(context(connected(kind, model)), f"{kind}.8-bit.lora.0")


@check
def half_precision_computes_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        model = packed_model(dtype)
        patched = connected("packed", model)
        assert model.encoder.dtype == dtype and patched.clip.cond_stage_model.dtypes == {dtype}
        close(context(patched), "packed.lora.0", 0.1)


@check
def stock_lora_nodes_and_hooks_reach_quantised_weights():
    clip = connected("packed", packed_model()).clip
    key = "text_encoders.model.layers.0.self_attn.q_proj"
    lora = {f"{key}.lora_up.weight": torch.ones(32, 1) / 8, f"{key}.lora_down.weight": torch.ones(1, 32) / 8}

    def say(clip):
        return stock.CLIPTextEncode().encode(clip, "a red circle left of a blue square")[0][0][0]

    close(say(clip), "packed.lora.0")
    _, changed = comfy.sd.load_lora_for_models(None, clip, lora, 1.0, 1.0)
    direct = say(changed)
    hooked = clip.clone()
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    hooked.patcher.forced_hooks = hooks
    hooked.patcher.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Clip))
    by_hook = say(hooked)
    assert (direct - say(clip)).abs().max() > 1e-3
    torch.testing.assert_close(by_hook, direct, rtol=1e-4, atol=1e-5)
    close(say(clip), "packed.lora.0")


@check
def a_lone_file_takes_the_hosts_own_tokenizer():
    """A T5 of true vocabulary in float8, as its users have it, and what the host's own tokenizer says of a prompt."""
    import transformers
    from comfy.text_encoders.sd3_clip import T5XXLTokenizer

    shape = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2, "feed_forward_proj": "gated-gelu"}
    model = transformers.T5EncoderModel(transformers.T5Config(vocab_size=32128, **shape))
    state = {k: v.to(torch.float8_e4m3fn) for k, v in model.state_dict().items() if "embed_tokens" not in k}
    name = "t5_tiny_fp8_e4m3fn.safetensors"
    (MODELS / "text_encoders").mkdir(exist_ok=True)
    save_file(state, MODELS / "text_encoders" / name)
    node = node_classes["LaViBridgeLoadLanguageModel"]
    inputs = {field.id: field for field in node.define_schema().inputs}
    assert name in inputs["model"].options and "tiny-llama" in inputs["config"].options
    model = node.execute(name, "auto").args[0]
    assert len(quantised(model)) > 2 * 7 + 1 and model.encoder.config.family == "t5"
    text = "a red circle left of a blue square"
    recipe = model.encoder.tokenize([text], prompt_(max_length=20))
    theirs = [token for token, _ in T5XXLTokenizer().tokenize_with_weights(text)[0]]
    ours = recipe.ids[0][recipe.mask[0]].tolist()
    assert ours == theirs[: len(ours)] and ours[-1] == 1
    comfy.model_management.load_models_gpu([model.patcher])
    assert torch.isfinite(model.encoder(recipe, prompt_(max_length=20)).states).all()
    weight = "encoder.block.0.layer.0.SelfAttention.q.weight"
    factor = {weight.replace("weight", "scale_weight"): torch.tensor(2.5), "scaled_fp8": torch.zeros(2)}
    loaded = scaled({**state, **factor}, node).encoder.model.get_submodule(weight.removesuffix(".weight"))
    assert torch.equal(loaded[:], state[weight].float() * 2.5)
    rows = {weight.replace("weight", "weight_scale"): torch.ones(64)}
    refused(["scaled weights", "CLIPLoader"], scaled, {**state, **rows}, node)
    for left in (name, "scaled.safetensors"):
        (MODELS / "text_encoders" / left).unlink()


def scaled(state, node):
    save_file(state, MODELS / "text_encoders" / "scaled.safetensors")
    return node.execute("scaled.safetensors", "auto").args[0]


def prompt_(**how):
    return importlib.import_module("hyphen-pack.lavi_core.prompt").PromptRecipe(**how)


@check
def what_other_libraries_have_packed_is_refused():
    folder = MODELS / "LLM" / "tiny-bnb"
    shutil.copytree(MODELS / "LLM" / "tiny-bert", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    refused(["tiny-bnb", "bitsandbytes", "8-bit", ".gguf"], language_.LanguageModel.load, folder)
    shutil.rmtree(folder)


@check
def a_cancel_ends_loading_and_encoding():
    patched = connected("packed", packed_model())

    def encode():
        bridge_.ConnectedBridge.encode(patched, "a red circle")

    def load():
        packed_model(torch.bfloat16)  # the other is loaded already

    for run in (load, encode):
        comfy.model_management.interrupt_current_processing(True)
        try:
            run()
        except comfy.model_management.InterruptProcessingException:
            pass
        else:
            raise AssertionError(f"{run} went on")
    close(context(patched), "packed.lora.0")


@check
def a_pass_can_be_cancelled_between_its_layers():
    model = packed_model()
    comfy.model_management.load_models_gpu([model.patcher])
    seen = []

    def press(*_):
        seen.append(1)
        comfy.model_management.interrupt_current_processing(True)

    first, second = model.encoder.layers()
    first.register_forward_hook(press)
    second.register_forward_hook(lambda *_: seen.append(2))
    try:
        connected("packed", model).encode("a red circle")
    except comfy.model_management.InterruptProcessingException:
        assert seen == [1]
    else:
        raise AssertionError("the second layer ran")
    finally:
        comfy.model_management.interrupt_current_processing(False)
