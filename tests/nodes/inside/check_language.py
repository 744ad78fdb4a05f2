"""Language models and bridges in the host: numbers, patches, memory management, folders."""

# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import importlib
import os
import shutil
import weakref
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import torch
from host_side import (
    BASE,
    EXPECTED,
    KINDS,
    MODELS,
    PROMPTS,
    check,
    close,
    connected,
    context,
    distance,
    folders,
    imported,
    language_,
    language_model,
    node_classes,
    partly,
    refused,
    same_bits,
    weights,
)

import nodes as stock

lora_ = importlib.import_module("hyphen-pack.nodes.lora")


@check
def the_pack_imports_nothing_heavy():
    heavy = ("transformers", "diffusers", "peft", "accelerate", "gguf", "torch", "comfy.")
    assert not [name for name in imported if name.startswith(heavy)], sorted(imported)
    assert not [name for name in imported if ".training" in name]


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
def two_nodes_load_one_language_model_once():
    """Weights are shared while one of them is alive; LoRAs, layers and strengths are each one's own."""
    loader, whole = node_classes["LaViBridgeLoadLanguageModel"], node_classes["LaViBridgeLoadWithModel"]
    one, other = (loader.execute("tiny-llama", dtype).args[0] for dtype in ("auto", "float32"))
    third = whole.execute("llama.safetensors", 0.7, "auto").args[0]
    assert one.patcher.model is other.patcher.model is third.patcher.model and one.patcher is not other.patcher
    assert loader.execute("tiny-llama", "bfloat16").args[0].encoder is not one.encoder
    assert loader.execute("tiny-llama", "8-bit").args[0].encoder is not one.encoder
    before = weights(one.encoder)
    with_lora = node_classes["LaViBridgeLanguageLoRA"].execute(one, "peft-llama", 0.7).args[0]
    assert with_lora.patcher.patches and not one.patcher.patches and not other.patcher.patches
    (early,) = stock.CLIPSetLastLayer().set_last_layer(third.clip, -2)
    for _ in range(2):
        close(context(connected("llama", with_lora, 0.0)), "llama.lora.0")
        close(context(connected("llama", other, 0.0)), "llama.plain.0")
        close(context(third), "llama.lora.0")
        close(stock.CLIPTextEncode().encode(early, PROMPTS[0])[0][0][0], "llama.early.0")
    partly(third.clip.patcher)
    close(context(connected("llama", other, 0.0)), "llama.plain.0")
    comfy.model_management.unload_all_models()
    assert same_bits(before, weights(other.encoder))


@check
def a_language_model_is_read_anew_when_its_file_changes_and_gone_with_its_last_user():
    loader, folder = node_classes["LaViBridgeLoadLanguageModel"], MODELS / "LLM" / "tiny-passing"
    shutil.copytree(MODELS / "LLM" / "tiny-llama", folder)
    try:
        first = loader.execute("tiny-passing", "auto").args[0]
        os.utime(folder / "model.safetensors", (1, 1))
        second = loader.execute("tiny-passing", "auto").args[0]
        assert first.encoder is not second.encoder
        assert loader.execute("tiny-passing", "auto").args[0].encoder is second.encoder
        clone = second.clone()
        alive = weakref.ref(second.encoder)
        del second
        gc.collect()
        assert clone.encoder is loader.execute("tiny-passing", "auto").args[0].encoder is alive()
        del clone
        gc.collect()
        assert alive() is None
    finally:
        shutil.rmtree(folder)


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
def the_bridges_own_lora_is_not_added_twice():
    node = node_classes["LaViBridgeLanguageLoRA"]
    for source in ("peft-llama", "llama.safetensors"):
        patched = node.execute(language_model("llama"), source, 0.7).args[0]
        refused([source, "llama.safetensors", "Apply LoRA to Language Model"], connected, "llama", patched, 0.7)
        connected("llama", patched, 0.0)
    connected("llama", node.execute(language_model("llama"), "peft-llama", 0.0).args[0], 0.7)
    users = {path: delta._replace(down=-delta.down) for path, delta in peft_llama().items()}
    other = language_model("llama")
    lora_.add_to_language_model(other, other.patcher, users, 0.7)
    lora_.note(other.patcher, users, "my-own")
    connected("llama", other, 0.7)
    both = node.execute(other, "peft-llama", -0.5).args[0]
    refused(["peft-llama"], connected, "llama", both.clone(), 0.7)


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
    shell, model = clip.cond_stage_model.state_dict(), clip.patcher.model.state_dict()
    assert shell.keys() - model.keys() == clip.cond_stage_model.kohya_names.keys() and not model.keys() - shell.keys()


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
    ours = sorted(f"tiny-{kind}" for kind in KINDS)
    links = ["Qwen3-0.6B", "SmolLM2-135M", "flan-t5-xl", "gemma-3-1b-it", "lavi_demo_language"]  # of the workflows
    links += [
        "lavi_demo_own",
        "t5-large",
        "t5gemma-2b-2b-ul2",
        "Qwen3.5-0.8B-Base",
        "tiny-qwen35",
        "Qwen3-0.6B-Base",
        "tiny-qwen3",
        "pig_clip-f16",
        "tiny-pig-clip",
    ]
    assert names == sorted([*links, "no-tokenizer", "states-gemma", "states-t5", "tiny-own", *ours]), names


@check
def paths_of_the_user_are_kept():
    extra = str(Path(BASE) / "elsewhere")
    Path(extra).mkdir(exist_ok=True)
    folder_paths.folder_names_and_paths["lavi_bridges"] = ([extra], set())
    folders.register()
    folders.register()
    paths, extensions = folder_paths.folder_names_and_paths["lavi_bridges"]
    assert paths == [extra, str(MODELS / "lavi_bridges")] and extensions == {".safetensors"}


@check
def states_that_are_not_finite_are_refused_and_not_remembered():
    bridge = connected("bert", language_model("bert"), 0.0)
    weights = (p for name, p in bridge.encoder.model.named_parameters() if name.endswith("query.weight"))
    weight = next(weights)
    kept = weight.detach().clone()
    weight.data[0, 0] = float("nan")
    refused(["are not finite from layer 0 on", "float32"], bridge.encode, "a red circle")
    assert not len(bridge.prompts)
    weight.data.copy_(kept)
    context = bridge.encode("a red circle")[0][0][0]
    assert torch.isfinite(context).all() and len(bridge.prompts) == 1


@check
def what_leaves_float16_is_float32_where_nothing_wider_is_fast():
    """A folder, a lone file by its config or its names, a GGUF file by its architecture."""
    manage, device = comfy.model_management, torch.device("cpu")
    kept = manage.should_use_bf16, manage.should_use_fp16
    manage.should_use_bf16, manage.should_use_fp16 = (lambda *_, **__: False), (lambda *_, **__: True)
    llm, narrow, wide = MODELS / "LLM", torch.float16, torch.float32
    try:
        for path, config, expected in (
            (llm / "tiny-t5", None, wide),
            (llm / "tiny-bert", None, narrow),
            (MODELS / "text_encoders" / "tiny-distill-t5.safetensors", None, wide),
            (MODELS / "text_encoders" / "tiny-clip-l.safetensors", None, narrow),
            (MODELS / "text_encoders" / "tiny-clip-l.safetensors", llm / "tiny-gemma", wide),
            (llm / "tiny-packed.gguf", None, narrow),
        ):
            found = language_.best_dtype(device, path, config)
            assert found == expected, (path.name, found)
    finally:
        manage.should_use_bf16, manage.should_use_fp16 = kept


@check
def the_hosts_flags_for_text_encoders_are_honoured():
    from comfy.cli_args import args

    for flag, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        setattr(args, f"{flag}_text_enc", True)
        try:
            assert language_model("llama").encoder.dtype == dtype
            assert language_model("llama", torch.float32).encoder.dtype == torch.float32  # chosen on the node
        finally:
            setattr(args, f"{flag}_text_enc", False)
    modules = importlib.import_module("hyphen-pack.lavi_core.quantized.modules")
    for flag in ("fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc"):
        setattr(args, flag, True)
        try:
            kept = language_model("llama").encoder
            assert {module.format.name for _, module in modules.quantized(kept.model)} == {"Q8_0"}
        finally:
            setattr(args, flag, False)
    assert not list(modules.quantized(language_model("llama").encoder.model))


def peft_llama():
    return lora_.read(MODELS / "loras/peft-llama", language_model("llama").encoder.model)


@check
def a_lone_lora_file_is_the_same_as_its_peft_folder():
    """With the names of kohya, of PEFT, and with a part for a vision model beside it."""
    from safetensors.torch import save_file

    node, deltas = node_classes["LaViBridgeLanguageLoRA"], peft_llama()
    model = language_model("llama")
    expected = connected("llama", node.execute(model, "peft-llama", 0.6).args[0], strength=0.0)
    kohya, peft = {}, {}
    for path, delta in deltas.items():
        name = f"lora_te_{path.replace('.', '_')}"
        kohya |= {f"{name}.lora_down.weight": delta.down, f"{name}.lora_up.weight": delta.up}
        kohya[f"{name}.alpha"] = torch.tensor(delta.scale * delta.down.shape[0])
        name = f"base_model.model.{path}"
        peft |= {f"{name}.lora_A.weight": delta.down, f"{name}.lora_B.weight": delta.up * delta.scale}
    beside = {"lora_unet_x.lora_down.weight": torch.ones(1, 2), "lora_unet_x.lora_up.weight": torch.ones(2, 1)}
    file = MODELS / "loras" / "lone.safetensors"
    try:
        for tensors in (kohya, peft, kohya | beside):
            save_file(tensors, file)
            assert "lone.safetensors" in next(i for i in node.define_schema().inputs if i.id == "lora").options
            ours = connected("llama", node.execute(model, "lone.safetensors", 0.6).args[0], strength=0.0)
            torch.testing.assert_close(context(ours), context(expected))
        assert (context(ours) - context(connected("llama", model, strength=0.0))).abs().max() > 1e-3
        save_file(beside, file)
        refused(["for a vision model alone", "Load LoRA"], node.execute, model, "lone.safetensors", 0.6)
        save_file({**kohya, "lora_te_layers_9_mlp.lora_down.weight": torch.ones(1, 2)}, file)
        refused(["lora_te_layers_9_mlp", "no linear map"], node.execute, model, "lone.safetensors", 0.6)
        save_file({**kohya, "lora_te_x.hada_w1_a": torch.ones(1, 2)}, file)
        refused(["no plain LoRA", "hada_w1_a"], node.execute, model, "lone.safetensors", 0.6)
    finally:
        file.unlink()
