"""Graphs in the host's API form."""

from __future__ import annotations

from typing import Any

from lavi_bridge.tests.nodes.tiny import PROMPTS

Graph = dict[str, Any]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def encoders(
    language: str = "tiny-bert", bridge: str = "bert.safetensors", language_lora: float = 0.7, stock: bool = False
) -> Graph:
    """model -> "language", bridge -> "bridge", two prompts -> "positive" and "negative"."""
    graph = {
        "language": node("LaViBridgeLoadLanguageModel", model=language, dtype="auto"),
        "bridge": node(
            "LaViBridgeLoad",
            language_model=["language", 0],
            bridge=bridge,
            language_lora=language_lora,
            allow_other_model=False,
        ),
    }
    for name, text in zip(("positive", "negative"), PROMPTS[:2], strict=True):
        if stock:
            graph[name] = node("CLIPTextEncode", clip=["bridge", 1], text=text)
        else:
            graph[name] = node("LaViBridgeTextEncode", bridge=["bridge", 0], text=text)
    return graph


def folder(name: str) -> dict[str, Any]:
    return node("LaViBridgeLoadVisionModel", model=name)


CHECKPOINTS = {name: node("CheckpointLoaderSimple", ckpt_name=f"tiny-{name}.safetensors") for name in ("sd1", "sdxl")}
PIXART = node("UNETLoader", unet_name="tiny-pixart.safetensors", weight_dtype="default")


def picture(
    vision: dict[str, Any] | str = "tiny-flow",
    strength: float = 1.0,
    seed: int = 7,
    positive: str = "positive",
    side: int = 16,
    steps: int = 4,
    **options: Any,
) -> Graph:
    """A whole graph, from a prompt to a picture and its latents, of ``side`` to a side.

    vision: a node that loads the vision model, or the name of a folder for ours.
    """
    return encoders(**options) | {
        "vision": folder(vision) if isinstance(vision, str) else vision,
        "bridged": node("LaViBridgeApply", model=["vision", 0], bridge=["bridge", 0], strength=strength),
        "empty": node("EmptyLatentImage", width=8 * side, height=8 * side, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["bridged", 0],
            positive=[positive, 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=seed,
            steps=steps,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "vae": node("VAELoader", vae_name="tiny-taesd.safetensors"),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="tiny"),
        "latents": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/tiny"),
    }
