"""The vision LoRA that ``lavi-bridge export`` writes, in the host's own LoRA loader."""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging

import comfy.model_management
import comfy.sd
import comfy.utils
from check_vision import forward, stocks
from host_side import MODELS, check, close, connected, language_model


class TextInput(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@check
def an_exported_lora_loads_whole_and_without_a_warning():
    """All sites of a U-Net and a DiT, in models of the host's own loaders: its loader names every key that is left."""
    for name in ("sd1", "sdxl", "pixart"):
        model = stocks(name)
        close(forward(model, name), f"{name}.plain", 1e-4)
        state = comfy.utils.load_torch_file(str(MODELS / "loras" / f"exported-{name}.safetensors"), safe_load=True)
        sites = len(connected(name, language_model("bert")).vision_lora)
        assert len(state) == 3 * sites > 0
        said = TextInput()
        logging.getLogger().addHandler(said)
        try:
            patched, _ = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)
        finally:
            logging.getLogger().removeHandler(said)
        assert not said.lines, said.lines
        assert sum(len(patches) for patches in patched.patches.values()) == sites
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
        close(forward(patched, name), f"{name}.lora", 1e-4)
        comfy.model_management.unload_all_models()


@check
def what_the_loader_does_not_know_it_says():
    """So that the silence above says something."""
    model, said = stocks("sd1"), TextInput()
    state = comfy.utils.load_torch_file(str(MODELS / "lavi_bridges" / "sd1.safetensors"), safe_load=True)
    logging.getLogger().addHandler(said)
    try:
        comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)
    finally:
        logging.getLogger().removeHandler(said)
    assert any("language_lora" in line for line in said.lines) and any("adapter" in line for line in said.lines)
