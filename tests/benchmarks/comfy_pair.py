"""One pair in a real ComfyUI: stock loader, language model, bridge, KSampler."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavi_bridge.tests.nodes import host
from lavi_bridge.tests.nodes.graphs import node

if TYPE_CHECKING:
    from pairs import Pair, Workshop

VAE = host.ROOT / "training" / "demo" / "weights" / "vae.safetensors"
NETWORK = "diffusion_pytorch_model.safetensors"


def sample(workshop: Workshop, pair: Pair, prompts: tuple[str, str], steps: int, size: int) -> str:
    """Seconds of the whole graph (loading included) and the server's peak memory, or what went wrong."""
    places = host.places()
    if not places:
        return "not run: no ComfyUI here"
    base = workshop.folder / "comfy"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    server = host.Server(places[0], base)
    try:
        files = _link(base, workshop, pair)
        begun = time.monotonic()
        try:
            outcome = server.run(_graph(files, prompts, steps, size), seconds=3600)
        except OSError as error:  # a server that the system has killed for its memory answers no more
            return f"not run: the server is gone ({error})"
        seconds, peak = time.monotonic() - begun, _peak(server.process.pid)
    finally:
        server.stop()
    if outcome.error or not outcome.images:
        return f"not run: {outcome.error or 'no picture came'}"
    return f"{seconds:.0f} s, {peak / (1 << 20):.1f} GB"


def _link(base: Path, workshop: Workshop, pair: Pair) -> dict[str, str]:
    vision = workshop.vision(pair)
    network = next(vision / part for part in ("unet", "transformer") if (vision / part).is_dir())
    wanted = {
        f"LLM/{pair.language}": workshop.language(pair),
        f"lavi_bridges/{pair.name}.safetensors": workshop.bridge(pair),
        f"diffusers/{pair.vision}": vision,
        f"diffusion_models/{pair.vision}.safetensors": network / NETWORK,
        "vae/demo.safetensors": VAE,
    }
    for name, target in wanted.items():
        link = base / "models" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return {"language": pair.language, "bridge": f"{pair.name}.safetensors", "vision": pair.vision}


def _graph(files: dict[str, str], prompts: tuple[str, str], steps: int, size: int) -> dict[str, Any]:
    if files["vision"] == "ldm":  # the host's detection does not know it
        vision = node("LaViBridgeLoadVisionModel", model="ldm")
    else:
        vision = node("UNETLoader", unet_name=f"{files['vision']}.safetensors", weight_dtype="default")
    return {
        "language": node("LaViBridgeLoadLanguageModel", model=files["language"], dtype="bfloat16"),
        "bridge": node(
            "LaViBridgeLoad",
            language_model=["language", 0],
            bridge=files["bridge"],
            language_lora=1.0,
            allow_other_model=False,
        ),
        "positive": node("LaViBridgeTextEncode", bridge=["bridge", 0], text=prompts[0]),
        "negative": node("LaViBridgeTextEncode", bridge=["bridge", 0], text=prompts[1]),
        "vision": vision,
        "bridged": node("LaViBridgeApply", model=["vision", 0], bridge=["bridge", 0], strength=1.0),
        "empty": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["bridged", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=7,
            steps=steps,
            cfg=4.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "vae": node("VAELoader", vae_name="demo.safetensors"),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="pair"),
    }


def _peak(pid: int) -> int:
    """Kilobytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
