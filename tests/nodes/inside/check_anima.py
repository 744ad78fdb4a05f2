"""Anima's llm_adapter in its file: the host's own text path, tokenizers and network, at small sizes."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.supported_models_base import ClipTarget
from host_side import MODELS, NotHere, bridge_, check, node_classes, refused
from safetensors.torch import save_file

adapters = importlib.import_module("hyphen-pack.lavi_core.adapters")
config_ = importlib.import_module("hyphen-pack.lavi_core.config")
conditioning_ = importlib.import_module("hyphen-pack.lavi_core.conditioning")
context_tokens_ = importlib.import_module("hyphen-pack.nodes.context_tokens")
folders_ = importlib.import_module("hyphen-pack.nodes.folders")
language_ = importlib.import_module("hyphen-pack.nodes.language")
prompt_syntax_ = importlib.import_module("hyphen-pack.nodes.prompt_syntax")
save_ = importlib.import_module("hyphen-pack.nodes.save")

WIDTH, FILE = 32, "anima-tiny.safetensors"
PROMPTS = (
    "a red circle left of a blue square",
    "",
    "two lines\n(in parentheses), très loin",
    "a mill by the sea, " * 90,
)


@contextmanager
def adapter_file(prefix: str = "net.llm_adapter.", width: int = WIDTH) -> Iterator[dict[str, Any]]:
    """In models/llm_adapters, beside a tensor of the vision model. Its weights by the host's names."""
    config = config_.AdapterConfig(
        kind="token_queries",
        **{"in_width": width, "inner_width": width, "out_width": WIDTH},
        **{"vocabulary": 32128, "depth": 2, "heads": 4},
    )
    torch.manual_seed(3)
    state = adapters.build(config).state_dict()
    state = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in state.items()}
    beside = {f"{prefix.removesuffix('llm_adapter.')}x_embedder.proj.1.weight": torch.zeros(2, 2)} if prefix else {}
    file = MODELS / "llm_adapters" / FILE
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()} | beside, file)
    try:
        yield state
    finally:
        file.unlink()


@cache
def host_clip() -> comfy.sd.CLIP:
    """The host's CLIP for Anima, its Qwen3 narrow."""
    try:
        from comfy.text_encoders import anima
    except ImportError:
        raise NotHere("this ComfyUI has no Anima") from None
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    options = {"qwen3_06b_model_config": sizes, "dtype": torch.float32}
    clip = comfy.sd.CLIP(ClipTarget(anima.AnimaTokenizer, anima.te()), model_options=options)
    torch.manual_seed(4)
    for name, parameter in clip.cond_stage_model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    return clip


def host_network(state: dict[str, Any]) -> Any:
    """The host's Anima, its adapter of our width and with these weights."""
    from comfy.ldm.anima.model import LLMAdapter

    shape = {"image_model": "anima", "max_img_h": 24, "max_img_w": 24, "max_frames": 8, "in_channels": 16}
    shape |= {"out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True}
    shape |= {"model_channels": 32, "num_blocks": 1, "num_heads": 2, "crossattn_emb_channels": WIDTH}
    shape |= {"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop"}
    shape |= {"use_adaln_lora": True, "adaln_lora_dim": 8, "extra_per_block_abs_pos_emb": False}
    described = comfy.supported_models.Anima(shape)
    described.set_inference_dtype(torch.float32, None)
    model = described.get_model({}, device=torch.device("cpu"))
    sizes = {"source_dim": WIDTH, "target_dim": WIDTH, "model_dim": WIDTH, "num_layers": 2, "num_heads": 4}
    network = LLMAdapter(**sizes, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    network.load_state_dict(state)
    model.diffusion_model.llm_adapter = network.eval()
    return model


def heard_by(model: Any, conditioning: Any) -> torch.Tensor:
    """What the network attends to. [1 T C]"""
    context, more = conditioning[0]
    noise = torch.zeros(1, 16, 1, 8, 8)
    kept = {key: more[key] for key in ("t5xxl_ids", "t5xxl_weights") if key in more}
    return model.extra_conds(cross_attn=context, noise=noise, device="cpu", **kept)["c_crossattn"].cond


def loaded(language: Any, preset: str = "auto") -> Any:
    return bridge_.LoadBridge.execute(language, FILE, 1.0, False, preset).args[0]


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape and (found - wanted).abs().max() <= 1e-5, (found - wanted).abs().max()


@check
def a_bridge_of_animas_adapter_says_what_the_hosts_own_text_path_says():
    """From the same CLIP: the host's through both its tokenizers and the network's adapter, ours through Load Bridge;
    more than 512 tokens are heard too, as there."""
    clip = host_clip()
    with adapter_file() as state:
        model = host_network(state)
        bridge = loaded(node_classes["LaViBridgeLanguageModelFromCLIP"].execute(clip, "auto").args[0])
        for prompt in PROMPTS:
            plain = prompt.replace("(", "\\(").replace(")", "\\)")  # which are weights to the host
            stock = clip.encode_from_tokens_scheduled(clip.tokenize(plain))
            ours, report = bridge_.BridgeTextEncode.execute(bridge, prompt).args
            count = stock[0][1]["t5xxl_ids"].shape[-1]
            assert f"the adapter asks with {count} tokens" in report and heard_by(model, stock).abs().max() > 0.1
            near(heard_by(model, ours), heard_by(model, stock))
            if len(prompt) > 1000:
                assert count > 512 and heard_by(model, ours).shape[1] == count


@check
def words_are_weighed_as_the_hosts_anima_weighs_them():
    """By the tokens of the second tokenizer, of the context."""
    clip = host_clip()
    with adapter_file() as state:
        model = host_network(state)
        bridge = loaded(node_classes["LaViBridgeLanguageModelFromCLIP"].execute(clip, "auto").args[0])
        ((_, stock),) = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
        told = bridge_.BridgeTextEncode.execute(bridge, "a (red:1.4) circle", True).args[0]
        listed = told[0][1][context_tokens_.CONTEXT_TOKENS]
        count = stock["t5xxl_ids"].shape[-1]
        shown = [(token.text.strip(), token.kind, token.weight) for token in listed.tokens[:count]]
        assert ("red", "prompt", 1.4) in [(text, kind, round(weight, 3)) for text, kind, weight in shown]
        assert shown[-1] == ("</s>", "special", 1.0) and {token.kind for token in listed.tokens[count:]} == {"padding"}
        assert "red" in dict(listed.words())
        stock["t5xxl_weights"] = torch.tensor([weight for _, _, weight in shown])
        context = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))[0][0]
        near(heard_by(model, told), heard_by(model, [[context, stock]]))


def other_language() -> Any:
    return language_.LanguageModel.load(MODELS / "LLM" / "states-gemma", torch.float32)


@check
def the_queries_are_the_ids_of_the_hosts_t5_tokenizer():
    """On any host, with any language model of the width; chunks ask one by one, and at strength 0 the empty prompt is
    heard."""
    import transformers

    tokenizer = transformers.T5TokenizerFast.from_pretrained(folders_.host_tokenizers()["t5"])
    with adapter_file("", 48) as state:
        bridge = bridge_.LoadBridge.execute(other_language(), FILE, 1.0, True, "anima").args[0]
        core = adapters.build(bridge.config.adapter).eval()
        core.load_state_dict(state)

        def wanted(prompt: str) -> torch.Tensor:
            tokens = bridge.encoder.tokenize([prompt], bridge.config.prompt)
            hidden = bridge.encoder(tokens, bridge.config.prompt)
            ids = torch.tensor([tokenizer(prompt).input_ids])
            return core(hidden._replace(queries=ids)).context

        for prompt in PROMPTS[:3]:
            context, _ = bridge.encode(prompt)[0][0]
            said = wanted(prompt)
            near(context[:, : said.shape[1]], said)
            assert context.shape[1] == 512 and not context[:, said.shape[1] :].any()
        chunks = prompt_syntax_.PromptOptions(long_prompts="chunk")
        both = bridge.encode("a red circle BREAK a blue square", chunks)[0][0][0]
        said = torch.cat([wanted("a red circle"), wanted("a blue square")], dim=1)
        near(both[:, : said.shape[1]], said)
        blank, told = bridge.encode("")[0][0][0], bridge.encode(PROMPTS[0])[0][0][0]
        near(bridge.encode(PROMPTS[0], strength=0.0)[0][0][0], blank)
        near(bridge.encode(PROMPTS[0], strength=0.5)[0][0][0], (blank + told) / 2)


@check
def zeros_that_a_vision_model_was_trained_with_stand_behind_what_is_asked():
    """As in training, where a shorter prompt of a batch is masked: Chroma hears one right behind each."""
    with adapter_file("", 48):
        bridge = bridge_.LoadBridge.execute(other_language(), FILE, 1.0, True).args[0]
        told = bridge.encode(PROMPTS[0])[0][0][0]
        shell = bridge.clip.cond_stage_model
        shell.config = replace(shell.config, vision=replace(shell.config.vision, target="chroma"))
        context, _, more = shell.encode_token_weights(bridge.clip.tokenize(PROMPTS[0]))
        count = len(shell.queries.read(PROMPTS[0]))
        near(context[:, :count], told[:, :count])
        assert context.shape[1] == count + 1 and not context[:, count:].any()
        assert more[context_tokens_.CONTEXT_TOKENS].tokens[-1].kind == "padding"


@check
def saved_as_a_bridge_it_holds_its_tokenizer():
    file = MODELS / "lavi_bridges" / "saved-anima.safetensors"
    with adapter_file("", 48):
        bridge = bridge_.LoadBridge.execute(other_language(), FILE, 1.0, True).args[0]
        told = bridge.encode(PROMPTS[0])[0][0][0]
        try:
            save_.saved(bridge, None).save(file)
            again = bridge_.LoadBridge.execute(other_language(), file.name, 1.0, False).args[0]
            assert torch.equal(again.encode(PROMPTS[0])[0][0][0], told)
        finally:
            file.unlink(missing_ok=True)
        words = ["made for Qwen/Qwen3-0.6B-Base (hidden 48)", "load Qwen/Qwen3-0.6B-Base"]
        narrow = language_.LanguageModel.load(MODELS / "LLM" / "tiny-llama", torch.float32)
        refused(words, bridge_.LoadBridge.execute, narrow, FILE, 1.0, True)
