"""A connected bridge as the host's own CLIP, so that every stock node that takes a CLIP takes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from .casting import managed, settle
from .language import LanguageModel

TOKENS = "lavi_bridge"  # the key under which our tokens travel in the host's token dictionary


def connect_clip(language_model: LanguageModel, bridge: Any) -> comfy.sd.CLIP:
    """A CLIP over a core ``Bridge``. Its patcher is a clone of the language model's: one set of weights, however many
    bridges listen to it."""
    shell = BridgeShell(bridge, language_model)
    device = language_model.patcher.load_device
    clip = comfy.sd.CLIP(
        ClipTarget(lambda **_: BridgeTokenizer(bridge), lambda **_: shell),
        model_options={
            "load_device": device,
            "offload_device": language_model.patcher.offload_device,
            "initial_device": None,  # the weights are where the language model's patcher has them
            "dtype": next(iter(shell.dtypes)),
        },
    )
    clip.patcher = language_model.patcher.clone()
    clip.patcher.is_clip = True
    clip.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
    return clip


class BridgeShell(nn.Module):
    """What the host calls a CLIP's ``cond_stage_model``. Its state dict has the names of the patcher's model."""

    disable_offload = True  # the throw-away patcher that comfy.sd.CLIP makes over this shell is a plain one

    def __init__(self, bridge: Any, language_model: LanguageModel):
        super().__init__()
        self.model = bridge.encoder.model
        self.dtypes = {next(self.model.parameters()).dtype}
        self.config = bridge.config
        self._encoder = (bridge.encoder,)  # in a tuple: not registered a second time
        patcher = language_model.patcher
        self._adapter = managed(bridge.adapter, patcher.load_device, patcher.offload_device)
        self._device = patcher.load_device
        self.reset_clip_options()

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """layer: the hidden states to hear, -1 being those the bridge was trained on; execution_device."""
        self._layer = options.get("layer", self._layer)
        self._device = options.get("execution_device", self._device) or self._device

    def reset_clip_options(self) -> None:
        self._layer: int | None = None

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """One prompt's tokens -> context [1 T C] and pooled [1 P] | None, float32 on the host's intermediate device.

        Masked tokens are dropped: the host's U-Nets and PixArt take no mask, and for cross-attention it is the same.
        """
        from ..lavi_core.conditioning import HiddenStates

        (encoder,) = self._encoder
        recipe = self.config.prompt
        if self._layer not in (None, -1):
            recipe = replace(recipe, hidden_states=self._layer)
        settle(encoder, self._device)
        hidden = encoder(tokens[TOKENS].to(self._device), recipe)
        comfy.model_management.load_models_gpu([self._adapter])  # after the language model, which it may push out
        here = self._adapter.load_device
        settle(self._adapter.model, here)
        hidden = HiddenStates(hidden.states.to(here, torch.float32), hidden.mask.to(here))
        heard = self._adapter.model(hidden)
        context = heard.context[:, hidden.mask[0]] if recipe.vision_mask else heard.context
        there = {"device": comfy.model_management.intermediate_device(), "dtype": torch.float32}
        return context.to(**there), None if heard.pooled is None else heard.pooled.to(**there)

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        return self.load_state_dict(sd, strict=False)


class BridgeTokenizer:
    """What the host calls a CLIP's tokenizer. Prompts are plain language: parentheses are parentheses, not weights."""

    def __init__(self, bridge: Any):
        self._encoder, self._recipe = bridge.encoder, bridge.config.prompt

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, Any]:
        return {TOKENS: self._encoder.tokenize([text], self._recipe)}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        return self._encoder.tokenizer.decode(token_ids, **kwargs)
