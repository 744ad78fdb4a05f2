"""A ComfyUI base folder of tiny models, and what transformers and diffusers compute with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.importers import read_released, released_prompt
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.lavi_core.language.gguf_files import write_llama
from lavi_bridge.tests.nodes import vision_dits
from lavi_bridge.tests.nodes import vision_models as vm
from lavi_bridge.tests.nodes.connectors import connectors
from lavi_bridge.tests.nodes.dit_models import dit_bridges
from lavi_bridge.tests.nodes.foreign_bridges import foreign_bridges
from lavi_bridge.tests.nodes.host import ROOT
from lavi_bridge.tests.nodes.tiny import PROMPTS, bridge, language_model, peft_folder
from lavi_bridge.tests.nodes.two_ears import two_ears
from lavi_bridge.training.commands import main
from lavi_bridge.training.models.diffusers_folder import read_vision
from lavi_bridge.training.models.sampling import noise_for, sample
from lavi_bridge.training.models.vision_model import load_vision_model
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Recipe of training/recipes/modern -> the tiny model that stands for its vision model, and where the graph finds that.
DITS = {
    "t5-large-sd35-medium": ("dit-sd3", "diffusers/stable-diffusion-3.5-medium"),
    "qwen3-0.6b-flux-dev": ("dit-flux", "diffusion_models/flux1-dev.safetensors"),
    "t5-large-chroma": ("dit-chroma", "diffusers/Chroma1-HD"),
    "qwen3-0.6b-z-image": ("dit-z_image", "diffusion_models/z_image_bf16.safetensors"),
    "smollm2-lumina2": ("dit-lumina2", "diffusers/Lumina-Image-2.0"),
    "qwen3-0.6b-qwen-image": ("dit-qwen_image", "diffusion_models/qwen_image_fp8_e4m3fn.safetensors"),
    "t5-large-aura-flow": ("dit-aura_flow", "diffusers/AuraFlow-v0.3"),
    "t5-large-cosmos": ("dit-cosmos", "diffusers/Cosmos-Predict2-2B-Text2Image"),
    "qwen3-0.6b-anima": ("dit-anima", "diffusion_models/anima-base-v1.0.safetensors"),
    "qwen3-0.6b-flux2-klein": ("dit-flux2", "diffusion_models/flux-2-klein-4b.safetensors"),
    "qwen3-0.6b-ernie-image": ("dit-ernie_image", "diffusers/ERNIE-Image"),
    "t5-large-wan": ("dit-wan", "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors"),
    "t5-large-pixart-sigma": ("dit-pixart_sigma", "diffusers/PixArt-Sigma-XL-2-1024-MS"),
}
# Names in workflows/*.json -> the tiny models that stand for them.
STAND_INS = {
    "LLM/lavi_demo_language": "LLM/tiny-bert",
    "LLM/t5-large": "LLM/tiny-bert",
    "lavi_bridges/lavi_demo_bridge.safetensors": "lavi_bridges/bert.safetensors",
    "lavi_bridges/t5-large-sd14.safetensors": "lavi_bridges/sd1.safetensors",
    "lavi_bridges/t5-large-sdxl.safetensors": "lavi_bridges/sdxl.safetensors",
    "lavi_bridges/t5-large-pixart.safetensors": "lavi_bridges/pixart.safetensors",
    "lavi_bridges/t5-large-ldm.safetensors": "lavi_bridges/ldm.safetensors",
    "diffusers/lavi_demo_vision": "diffusers/tiny-flow",
    "diffusers/ldm-text2im-large-256": "diffusers/tiny-ldm",
    "diffusion_models/tiny-pixart.safetensors": "diffusers/tiny-pixart/transformer/diffusion_pytorch_model.safetensors",
    "diffusion_models/PixArt-XL-2-512x512.safetensors": "diffusion_models/tiny-pixart.safetensors",
    "checkpoints/sd-v1-4.safetensors": "checkpoints/tiny-sd1.safetensors",
    "LLM/lavi_demo_own": "LLM/tiny-own",
    "lavi_bridges/lavi_demo_own.safetensors": "lavi_bridges/ears-own.safetensors",
    "lavi_bridges/lavi_demo_two_ears.safetensors": "lavi_bridges/ears.safetensors",
    "lavi_bridges/t5-large-sd15-two-ears.safetensors": "lavi_bridges/ears-sd1.safetensors",
    "checkpoints/v1-5-pruned-emaonly.safetensors": "checkpoints/tiny-sd1-clip.safetensors",
    "checkpoints/sd_xl_base_1.0.safetensors": "checkpoints/tiny-sdxl.safetensors",
    "vae/lavi_demo_vae.safetensors": "vae/tiny-taesd.safetensors",
    "vae/PixArt-XL-2-512x512_vae.safetensors": "vae/tiny-taesd.safetensors",
    "vae/ldm-text2im-large-256_vqvae.safetensors": "vae/tiny-taesd.safetensors",
    "loras/a-bridge.safetensors": "lavi_bridges/bert.safetensors",
    "LLM/Qwen3-0.6B": "LLM/tiny-bert",
    "LLM/SmolLM2-135M": "LLM/tiny-bert",
    "LLM/flan-t5-xl": "LLM/tiny-t5",
    **dict.fromkeys(("LLM/gemma-3-1b-it", "LLM/t5gemma-2b-2b-ul2"), "LLM/states-gemma"),
    "llm_adapters/rouweiGemma_g31b27k.safetensors": "llm_adapters/golden-rouwei.safetensors",
    "llm_adapters/rw_t5g_adapter_101k.safetensors": "llm_adapters/golden-rouwei-unfused.safetensors",
    "checkpoints/rouwei_080_base_fp16.safetensors": "checkpoints/tiny-sdxl.safetensors",
    "LLM/Qwen3.5-0.8B-Base": "LLM/tiny-qwen35",
    "LLM/Qwen3-0.6B-Base": "LLM/tiny-qwen3",
    "LLM/pig_clip-f16.gguf": "LLM/tiny-pig-clip.gguf",
    "LLM/pig_clip-f16": "LLM/tiny-pig-clip",
    "llm_adapters/pig_t5_adapter-f16.gguf": "llm_adapters/tiny-pig.gguf",
    "llm_adapters/anima-base-v1.0.safetensors": "llm_adapters/tiny-anima.safetensors",
    **dict.fromkeys(
        ("text_encoders/qwen_35_2b_base.safetensors", "llm_adapters/qwen_35_2b_base.safetensors"),
        "text_encoders/tiny-anima-t5free.safetensors",
    ),
    "llm_adapters/adapter_step_10000.safetensors": "llm_adapters/golden-qwen-sdxl.safetensors",
    **dict.fromkeys(
        ("text_encoders/DistillT5.safetensors", "llm_adapters/DistillT5.safetensors"),
        "text_encoders/tiny-distill-t5.safetensors",
    ),
    "text_encoders/clip_l.safetensors": "text_encoders/tiny-clip-l.safetensors",
    "vae/AuraFlow-v0.3_vae.safetensors": "vae/tiny-taesd.safetensors",
    "vae/PixArt-Sigma-XL-2-1024-MS_vae.safetensors": "vae/tiny-taesd.safetensors",
    **dict.fromkeys(
        (
            "vae/ae.safetensors",
            "vae/flux2-vae.safetensors",
            "vae/qwen_image_vae.safetensors",
            "vae/stable-diffusion-3.5-medium_vae.safetensors",
            "vae/wan_2.1_vae.safetensors",
        ),
        "vae/tiny-taesd-16.safetensors",
    ),
    **{f"lavi_bridges/{recipe}.safetensors": f"lavi_bridges/{name}.safetensors" for recipe, (name, _) in DITS.items()},
    **{
        file: f"diffusers/{name}" + ("/transformer/" + WEIGHTS if file.endswith(".safetensors") else "")
        for name, file in DITS.values()
    },
}


EXPORTED = (
    "sd1",
    "sdxl",
    "pixart",
)  # bridges whose vision LoRA lies in models/loras, written by ``lavi-bridge export``


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One graph of ``graphs.picture`` that the standalone sampler computes too."""

    bridge: str
    vision: str  # a folder of models/diffusers
    side: int = 16  # of the latents
    steps: int = 4


SAMPLED = {
    "flow": Sampled(bridge="bert", vision="tiny-flow"),
    "velocity": Sampled(bridge="lost", vision="tiny-velocity"),
    "masked": Sampled(bridge="masked", vision="tiny-flow"),
    "sd1": Sampled(bridge="sd1", vision="tiny-sd1"),
    "sdxl": Sampled(bridge="sdxl", vision="tiny-sdxl", steps=2),
    "ldm": Sampled(bridge="ldm", vision="tiny-ldm"),
    "pixart": Sampled(bridge="pixart", vision="tiny-pixart", side=40, steps=2),
    "small-pixart": Sampled(bridge="small-pixart", vision="tiny-small-pixart"),
    "told-pixart": Sampled(bridge="told-pixart", vision="tiny-told-pixart"),
    "sized": Sampled(bridge="sized", vision="tiny-sized"),
}


@dataclass
class Base:
    """models: the folder of that name. expected: what the tests compare with, by name."""

    models: Path
    expected: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bridges(self) -> Path:
        return self.models / "lavi_bridges"

    def forward(self, name: str, model: Any, checkpoint: BridgeCheckpoint, size: tuple[int, int]) -> None:
        """A pass of the plain diffusers network and of the one with the LoRA: NAME.{x, t, c, pooled, plain, lora}.

        size: height and width of the latents.
        """
        pixels, pooled = [8 * side for side in size], checkpoint.config.adapter.pooled_width
        width = checkpoint.config.vision.context_width
        given = {"x": torch.randn(2, 4, *size), "t": torch.tensor([321.0, 987.6]), "c": torch.randn(2, 9, width)}
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if model.config.sample_size == 128:  # diffusers' rule for a PixArt that is told sizes
            added = {"resolution": torch.tensor([pixels] * 2), "aspect_ratio": torch.tensor([[size[0] / size[1]]] * 2)}
        if pooled is not None:
            given["pooled"] = torch.randn(2, pooled)
            added = {"text_embeds": given["pooled"], "time_ids": torch.tensor([[*pixels, 0, 0, *pixels]] * 2)}
        for what in ("plain", "lora"):
            applied = lora.merge(model, checkpoint.vision_lora if what == "lora" else {})
            heard = {"timestep": given["t"], "encoder_hidden_states": given["c"], "added_cond_kwargs": added}
            given[what] = model(given["x"], **heard).sample[:, :4]
            applied.remove()
        self.expected |= {f"{name}.{key}": tensor for key, tensor in given.items()}

    def sampled(self, name: str, encoder: TextEncoder) -> None:
        """The latents that the pack's own sampler gives, without ComfyUI, for the graph of ``graphs.picture``."""
        case = SAMPLED[name]
        checkpoint = BridgeCheckpoint.load(self.bridges / f"{case.bridge}.safetensors")
        connected = Bridge.connect(checkpoint, encoder, lora="merged", strength=0.7)
        model = load_vision_model(self.models / "diffusers" / case.vision, checkpoint.config.vision.target)
        lora.merge(model.network, checkpoint.vision_lora)
        noise = noise_for(7, (1, 4, case.side, case.side))
        positive, negative = connected([PROMPTS[0]]), connected([PROMPTS[1]])
        self.expected[f"sampled.{name}"] = sample(model, positive, negative, noise, steps=case.steps, guidance=3.0)
        assert encoder.lora is not None
        encoder.lora.remove()


def language_models(base: Base, vision: Any) -> None:
    """A model and a bridge of each language family."""
    for kind in ("bert", "llama", "gemma", "gpt2", "t5"):
        folder = language_model(base.models / "LLM" / f"tiny-{kind}", kind)
        encoder = TextEncoder.load(folder, dtype=torch.float32)
        checkpoint = bridge(base.bridges / f"{kind}.safetensors", encoder, vision)
        plain = Bridge.connect(checkpoint, encoder, lora=None)
        base.expected |= {f"{kind}.plain.{i}": plain([prompt]).context for i, prompt in enumerate(PROMPTS)}
        patched = Bridge.connect(checkpoint, encoder, lora="merged", strength=0.7)
        base.expected |= {f"{kind}.lora.{i}": patched([prompt]).context for i, prompt in enumerate(PROMPTS)}
        if kind == "llama":
            peft_folder(base.models / "loras" / "peft-llama", folder, dict(checkpoint.language_lora))
            early = replace(checkpoint.config, prompt=replace(checkpoint.config.prompt, hidden_states=-2))
            base.expected["llama.early.0"] = Bridge(encoder, patched.adapter, early)([PROMPTS[0]]).context


def packed_models(base: Base, vision: Any) -> None:
    """Language models whose weights are quantised: a GGUF file, and the folders at 8 bits."""
    models = base.models / "LLM"
    packed = write_llama(models / "tiny-packed.gguf", models / "tiny-llama", "Q4_1")
    # releases of transformers differ in what they put before a GGUF file's tokens
    made = bridge(base.bridges / "packed.safetensors", TextEncoder.load(packed), vision, add_special_tokens=False)
    for kind in ("packed", "bert", "llama", "gemma", "gpt2", "t5"):
        name = kind if kind == "packed" else f"{kind}.8-bit"
        path, how = (packed, "dense") if kind == "packed" else (models / f"tiny-{kind}", "8-bit")
        encoder = TextEncoder.load(path, dtype=torch.float32, weights=how)
        checkpoint = made if kind == "packed" else BridgeCheckpoint.load(base.bridges / f"{kind}.safetensors")
        base.expected[f"{name}.plain.0"] = Bridge.connect(checkpoint, encoder, lora=None)([PROMPTS[0]]).context
        patched = Bridge.connect(checkpoint, encoder, lora="live", strength=0.7)
        base.expected[f"{name}.lora.0"] = patched([PROMPTS[0]]).context


def unets(base: Base) -> dict[str, Any]:
    """The U-Nets that no stock loader knows."""
    folders = base.models / "diffusers"
    found = {
        "flow": vm.unet(folders / "tiny-flow", vm.FLOW, vm.TINY, vm.SCALE),
        "velocity": vm.unet(folders / "tiny-velocity", vm.VELOCITY, vm.VELOCITY_SHAPE, vm.SCALE),
        "wide": vm.unet(folders / "tiny-wide", vm.FLOW, vm.TINY | {"cross_attention_dim": 40}, vm.SCALE),
        "sized": vm.unet(folders / "tiny-sized", vm.EPSILON, vm.SIZED_SHAPE, vm.SCALE),
        "ldm": vm.unet(folders / "tiny-ldm", vm.EPSILON, vm.LDM_SHAPE),
    }
    (folders / "tiny-ldm" / "vqvae").mkdir()
    (folders / "tiny-ldm" / "vqvae" / "config.json").write_text(json.dumps(vm.KL))
    return found


def vision_bridges(base: Base, encoder: TextEncoder, unet: dict[str, Any]) -> None:
    """Bridges from one BERT to vision models of every kind, and what these compute with and without their LoRA."""
    models, bridges = base.models, base.bridges
    made = {
        "sd1": vm.unet(models / "diffusers" / "tiny-sd1", vm.EPSILON, vm.SD1_SHAPE),
        "sdxl": vm.unet(models / "diffusers" / "tiny-sdxl", vm.EPSILON, vm.SDXL_SHAPE),
        "pixart": vm.pixart(models / "diffusers" / "tiny-pixart"),
        "small-pixart": vm.pixart(models / "diffusers" / "tiny-small-pixart", **vm.SMALL_PIXART),
        "told-pixart": vm.pixart(models / "diffusers" / "tiny-told-pixart", **vm.TOLD_PIXART),
        **unet,
    }
    vm.checkpoint(models / "checkpoints" / "tiny-sd1.safetensors", made["sd1"])
    vm.checkpoint(models / "checkpoints" / "tiny-sd1-clip.safetensors", made["sd1"], clip=True)
    vm.checkpoint(models / "checkpoints" / "tiny-sdxl.safetensors", made["sdxl"])
    vm.sd3(models / "diffusion_models" / "tiny-sd3.safetensors")
    for name, kind, more in (
        ("flow", "unet", {}),
        ("velocity", "unet", {}),
        ("sized", "sdxl", {"pooled": 12}),
        ("ldm", "ldm", {}),
        ("sd1", "sd1", {}),
        ("sdxl", "sdxl", {"pooled": 1280}),
        ("pixart", "pixart", {"vision_mask": True}),
        ("small-pixart", "pixart", {"vision_mask": True}),
        ("told-pixart", "pixart", {"vision_mask": True}),
    ):
        checkpoint = bridge(bridges / f"{name}.safetensors", encoder, made[name], f"tiny-{name}", kind, **more)
        base.forward(name, made[name], checkpoint, (40, 48) if name == "pixart" else (16, 24))
    for name in EXPORTED:
        output = models / "loras" / f"exported-{name}.safetensors"
        assert main(["export", str(bridges / f"{name}.safetensors"), "--format", "lora", "-o", str(output)]) == 0
    bridge(bridges / "lost.safetensors", encoder, made["velocity"], "tiny-velocity")
    bridge(bridges / "wide.safetensors", encoder, made["wide"], "tiny-wide")
    bridge(bridges / "unpooled.safetensors", encoder, made["sdxl"], "tiny-sdxl", "sdxl")
    bridge(bridges / "bare-pixart.safetensors", encoder, made["pixart"], "tiny-pixart", "pixart", lora=False)

    pooled = bridge(bridges / "pooled.safetensors", encoder, made["flow"], pooled=12)
    told = Bridge.connect(pooled, encoder, lora=None)([PROMPTS[0]]).pooled
    masked = bridge(bridges / "masked.safetensors", encoder, made["flow"], vision_mask=True)
    heard = Bridge.connect(masked, encoder, lora=None)([PROMPTS[0]])
    assert told is not None and heard.mask is not None
    base.expected |= {"pooled.0": told, "masked.0": heard.context[:, heard.mask[0]]}


def golden_bridges(base: Base) -> None:
    """The authors' released folders of ``tests/golden``, imported, and their models as the host reads them: the vision
    model with a scheduler beside it, the tokenizer in the one file that needs no library which ComfyUI does not bring.
    """
    for case in sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/case.json")):
        encoder = TextEncoder.load(case / "text_encoder", dtype=torch.float32)
        network, vision = read_vision(case / "vision")
        prompt = released_prompt(encoder, vision)
        checkpoint = read_released(case / "released", encoder, network, vision, prompt, {})
        checkpoint.save(base.bridges / f"golden_{case.name}.safetensors")
        folder = base.models / "diffusers" / f"golden_{case.name}"
        vm.beside(folder, vm.EPSILON, vm.KL)
        (folder / "unet").symlink_to(case / "vision")
        language = base.models / "golden" / case.name
        shutil.copytree(case / "text_encoder", language)
        encoder.tokenizer.save_pretrained(language)


@torch.no_grad()
def write_base(folder: Path) -> dict[str, Tensor]:
    """Every model file that the tests name, under ``folder``/models; returns what they must compute."""
    base = Base(folder / "models")
    for name in ("lavi_bridges", "vae", "loras", "diffusers", "diffusion_models", "checkpoints", "LLM"):
        (base.models / name).mkdir(parents=True)
    for channels, name in ((4, "tiny-taesd"), (16, "tiny-taesd-16")):
        save_file(vm.taesd(channels), base.models / "vae" / f"{name}.safetensors")
    golden_bridges(base)
    unet = unets(base)
    language_models(base, unet["flow"])
    packed_models(base, unet["flow"])
    encoder = TextEncoder.load(base.models / "LLM" / "tiny-bert", dtype=torch.float32)
    vision_bridges(base, encoder, unet)
    base.expected |= vision_dits.write(base.models / "diffusers")
    for name in SAMPLED:
        base.sampled(name, encoder)
    base.expected |= dit_bridges(base, encoder)
    base.expected |= connectors(base, encoder)
    base.expected |= two_ears(base, encoder)
    foreign_bridges(base.models)
    for name, ours in STAND_INS.items():
        (base.models / name).symlink_to(base.models / ours)

    (folder / "sites.json").write_text(json.dumps(vm.real_sizes()))
    (folder / "dit_sizes.json").write_text(json.dumps(vision_dits.real_sizes()))
    whole = (base.bridges / "bert.safetensors").read_bytes()
    (base.bridges / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(
        base.models / "LLM" / "tiny-bert",
        base.models / "LLM" / "no-tokenizer",
        ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    )
    return base.expected
