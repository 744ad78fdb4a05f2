"""Tiny random models laid out as a ComfyUI base folder, and what transformers and diffusers compute with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.adapters import build
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig, BridgeConfig, LoRAConfig, VisionConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.vision import VISION_TARGETS
from lavi_bridge.training.sampling import noise_for, sample
from lavi_bridge.training.vision_model import load_vision_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTH, CONTEXT, RANK, SCALE = 32, 24, 2, 0.5
PROMPTS = ("a red circle left of a blue square", "", "two elephants in the forest (with a candy) " * 4)
RECIPE = PromptRecipe(max_length=16, template="{prompt}, best quality")
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
VELOCITY = {
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}


def language_model(folder: Path, kind: str) -> Path:
    """A Hugging Face folder: the real class with random weights and a real tokenizer of a few words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator([*PROMPTS, "best quality"], trainer)
    ends = [("<s>", 1), ("</s>", 2)]
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(1)
    model = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**sizes), add_pooling_layer=False),
        "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**sizes, num_key_value_heads=2)),
        "gemma": lambda: hf.Gemma3TextModel(
            hf.Gemma3TextConfig(**sizes, num_key_value_heads=2, head_dim=8, sliding_window=8)
        ),
        "gpt2": lambda: hf.GPT2Model(
            hf.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=128, vocab_size=len(tokenizer))
        ),
        "t5": lambda: hf.T5EncoderModel(
            hf.T5Config(d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=len(tokenizer))
        ),
    }[kind]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def unet(folder: Path, scheduler: dict[str, Any], **changes: Any) -> Any:
    """A diffusers U-Net folder of a shape that the host does not know, in float16; returns the model in float32."""
    from diffusers import UNet2DConditionModel

    shape: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": CONTEXT,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    torch.manual_seed(2)
    model = UNet2DConditionModel(**shape | changes).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.half().save_pretrained(folder / "unet")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_scale": SCALE}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return model.float()


def pixart(path: Path) -> Any:
    """One layer of PixArt-XL-2-512x512, whose width the host has hard-wired; returns the model in float32."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(6)
    model = (
        PixArtTransformer2DModel(num_layers=1, sample_size=64, caption_channels=4096)
        .eval()
        .requires_grad_(False)
        .half()
    )
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model.float()


def taesd(path: Path) -> None:
    """A VAE of TAESD's architecture, under the names that the host reads."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(3)
    state = AutoencoderTiny().state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        side, _, index, rest = name.split(".", 3)
        place = int(index) + (side == "decoder")  # TAESD's decoder counts its clamp
        renamed[f"taesd_{side}.{place}.{rest}"] = tensor.contiguous()
    save_file(renamed, path)


def random_lora(model: nn.Module, sites: list[str]) -> dict[str, Delta]:
    """Deltas of a size that shows."""
    generator = torch.Generator().manual_seed(4)
    found = {}
    for path in sites:
        module: Any = model.get_submodule(path)
        weight = module.weight if isinstance(module, nn.Linear | nn.Conv2d) else module.weight.T
        down = torch.randn(RANK, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = torch.randn(weight.shape[0], RANK, *([1] * (weight.ndim - 2)), generator=generator) * 0.3
        found[path] = Delta(down, up, 2.0)
    return found


def bridge(
    path: Path,
    encoder: TextEncoder,
    vision: Any,
    name: str = "tiny-flow",
    kind: str = "unet",
    pooled: int | None = None,
    **recipe: Any,
) -> BridgeCheckpoint:
    """A bridge file between the two, its adapter and both LoRAs random."""
    width = vision.config.cross_attention_dim if kind == "unet" else vision.config.caption_channels
    target = VISION_TARGETS[kind]
    adapter = AdapterConfig(kind="mlp", in_width=WIDTH, inner_width=28, out_width=width, pooled_width=pooled)
    ranks = LoRAConfig(rank=RANK, alpha=4.0)
    config = BridgeConfig(
        language=encoder.config,
        prompt=replace(RECIPE, **recipe),
        adapter=adapter,
        vision=VisionConfig(
            model_id=name,
            target=kind,
            context_width=width,
            objective="flow" if kind == "unet" else "epsilon",
            latent_channels=4,
            latent_scale=target.latent_scale or SCALE,
            fingerprint="",
        ),
        language_lora=ranks,
        vision_lora=ranks,
    )
    torch.manual_seed(5)
    checkpoint = BridgeCheckpoint(
        config,
        build(adapter).state_dict(),
        random_lora(encoder.model, encoder.lora_sites()),
        random_lora(vision, target.sites(vision)),
    )
    checkpoint.save(path)
    return checkpoint


def peft_folder(folder: Path, language: Path, deltas: dict[str, Delta]) -> None:
    """The same LoRA as PEFT saves it, trained on the causal LM that holds the language model."""
    import transformers as hf
    from peft import LoraConfig, get_peft_model

    whole = hf.AutoModelForCausalLM.from_pretrained(language)
    wanted = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(deltas))
    model = get_peft_model(whole, wanted)
    for path, delta in deltas.items():
        site: Any = whole.model.get_submodule(path)
        site.lora_A["default"].weight.copy_(delta.down)
        site.lora_B["default"].weight.copy_(delta.up)
    model.save_pretrained(folder)  # type: ignore[arg-type]
    assert all(name.startswith("base_model.model.model.") for name in load_file(folder / "adapter_model.safetensors"))


def pixart_expected(dit: Any, checkpoint: BridgeCheckpoint) -> dict[str, Tensor]:
    """A forward pass of the plain model and of the one with the bridge's LoRA."""
    x, t, c = torch.randn(1, 4, 40, 40), torch.tensor([321.0]), torch.randn(1, 9, 4096)
    nothing = {"resolution": None, "aspect_ratio": None}
    found = {"pixart.x": x, "pixart.t": t, "pixart.c": c}
    found["pixart.plain"] = dit(x, c, t, nothing).sample.chunk(2, dim=1)[0]
    applied = lora.merge(dit, checkpoint.vision_lora)
    found["pixart.lora"] = dit(x, c, t, nothing).sample.chunk(2, dim=1)[0]
    applied.remove()
    return found


def known_unets() -> dict[str, tuple[list[str], dict[str, list[int]]]]:
    """LoRA sites and weight shapes of Stable Diffusion 1.4 and of SDXL, without their weights."""
    from diffusers import UNet2DConditionModel

    cross, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    sdxl: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (plain, cross, cross),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    found = {}
    with torch.device("meta"):
        for kind, shape in {"sd1": {"cross_attention_dim": 768}, "sdxl": sdxl}.items():
            model = UNet2DConditionModel(**shape)
            shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            found[kind] = (VISION_TARGETS[kind].sites(model), shapes)
    return found


def standalone(vision: Path, checkpoint: BridgeCheckpoint, bridge: Bridge, seed: int = 7) -> Tensor:
    """The latents that the pack's own sampler gives, without ComfyUI, for the graph of ``graphs.picture``."""
    model = load_vision_model(vision, checkpoint.config.vision.target)
    lora.merge(model.network, checkpoint.vision_lora)
    noise = noise_for(seed, (1, 4, 16, 16))
    return sample(model, bridge([PROMPTS[0]]), bridge([PROMPTS[1]]), noise, steps=4, guidance=3.0)


def bert_bridges(models: Path, vision: Any, velocity: Any, wide: Any) -> dict[str, Tensor]:
    """Bridges of every other sort, all from the one BERT: masked, pooled, to other vision models."""
    bridges = models / "lavi_bridges"
    encoder = TextEncoder.load(models / "LLM" / "tiny-bert", dtype=torch.float32)
    checkpoint = BridgeCheckpoint.load(bridges / "bert.safetensors")
    lost = bridge(bridges / "lost.safetensors", encoder, velocity, name="tiny-velocity")
    bridge(bridges / "wide.safetensors", encoder, wide, name="tiny-wide")
    dit = pixart(models / "diffusion_models" / "tiny-pixart.safetensors")
    expected = pixart_expected(dit, bridge(bridges / "pixart.safetensors", encoder, dit, name="p", kind="pixart"))

    pooled = bridge(bridges / "pooled.safetensors", encoder, vision, pooled=12)
    told = Bridge.connect(pooled, encoder, lora=None)([PROMPTS[0]]).pooled
    masked = bridge(bridges / "masked.safetensors", encoder, vision, vision_mask=True)
    heard = Bridge.connect(masked, encoder, lora=None)([PROMPTS[0]])
    assert told is not None and heard.mask is not None
    expected |= {"pooled.0": told, "masked.0": heard.context[:, heard.mask[0]]}

    patched = Bridge.connect(checkpoint, encoder, lora="merged", strength=0.7)
    for name, folder, file in (
        ("flow", "tiny-flow", checkpoint),
        ("velocity", "tiny-velocity", lost),
        ("masked", "tiny-flow", masked),
    ):
        connected = Bridge(encoder, patched.adapter, file.config)
        expected[f"sampled.{name}"] = standalone(models / "diffusers" / folder, file, connected)
    return expected


@torch.no_grad()
def write_base(base: Path) -> dict[str, Tensor]:
    """Every model file that the tests name, under ``base``/models; returns what they must compute."""
    models = base / "models"
    for name in ("lavi_bridges", "vae", "loras", "diffusers", "diffusion_models", "LLM"):
        (models / name).mkdir(parents=True)
    expected: dict[str, Tensor] = {}
    vision = unet(models / "diffusers" / "tiny-flow", FLOW)
    latents = torch.randn(2, 4, 16, 16)
    expected |= {"unet.x": latents, "unet.t": torch.tensor([999.0, 123.4]), "unet.c": torch.randn(2, 7, CONTEXT)}
    expected["unet.flow"] = vision(latents, expected["unet.t"], expected["unet.c"]).sample
    velocity = unet(
        models / "diffusers" / "tiny-velocity",
        VELOCITY,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        attention_head_dim=(2, 4, 6),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    expected["unet.velocity"] = velocity(latents, expected["unet.t"], expected["unet.c"]).sample
    wide = unet(models / "diffusers" / "tiny-wide", FLOW, cross_attention_dim=40)
    taesd(models / "vae" / "tiny-taesd.safetensors")

    bridges = models / "lavi_bridges"
    for kind in ("bert", "llama", "gemma", "gpt2", "t5"):
        folder = language_model(models / "LLM" / f"tiny-{kind}", kind)
        encoder = TextEncoder.load(folder, dtype=torch.float32)
        checkpoint = bridge(bridges / f"{kind}.safetensors", encoder, vision)
        plain = Bridge.connect(checkpoint, encoder, lora=None)
        expected |= {f"{kind}.plain.{i}": plain([prompt]).context for i, prompt in enumerate(PROMPTS)}
        patched = Bridge.connect(checkpoint, encoder, lora="merged", strength=0.7)
        expected |= {f"{kind}.lora.{i}": patched([prompt]).context for i, prompt in enumerate(PROMPTS)}
        if kind == "llama":
            peft_folder(models / "loras" / "peft-llama", folder, dict(checkpoint.language_lora))
            early = replace(checkpoint.config, prompt=replace(checkpoint.config.prompt, hidden_states=-2))
            expected["llama.early.0"] = Bridge(encoder, patched.adapter, early)([PROMPTS[0]]).context
    expected |= bert_bridges(models, vision, velocity, wide)

    (base / "sites.json").write_text(json.dumps(known_unets()))
    whole = (bridges / "bert.safetensors").read_bytes()
    (bridges / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    for folder, demo, ours in (
        ("LLM", "lavi_demo_language", "tiny-bert"),
        ("lavi_bridges", "lavi_demo_bridge.safetensors", "bert.safetensors"),
        ("diffusers", "lavi_demo_vision", "tiny-flow"),
        ("vae", "lavi_demo_vae.safetensors", "tiny-taesd.safetensors"),
    ):  # the names in workflows/*.json
        (models / folder / demo).symlink_to(models / folder / ours)
    (models / "loras" / "a-bridge.safetensors").symlink_to(bridges / "bert.safetensors")
    shutil.copytree(
        models / "LLM" / "tiny-bert",
        models / "LLM" / "no-tokenizer",
        ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    )
    return expected
