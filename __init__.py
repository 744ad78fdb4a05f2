"""LaVi-Bridge for ComfyUI: any language model as the text encoder of any diffusion model, through a small bridge."""

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"  # the help pages; no JavaScript


async def comfy_entrypoint():
    """Called by ComfyUI (V3 node API). Nothing is imported before that, so the host's start pays nothing."""
    from .nodes import LaViBridgeExtension

    return LaViBridgeExtension()
