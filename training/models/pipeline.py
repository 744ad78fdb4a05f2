"""Text to picture without ComfyUI: a bridge, a vision model and a VAE put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...lavi_core import fingerprint, lora
from ...lavi_core.bridge import Bridge
from ...lavi_core.checkpoint import BridgeCheckpoint
from ...lavi_core.conditioning import Heard
from ...lavi_core.config import BridgeConfig
from ...lavi_core.language import TextEncoder
from ...lavi_core.own_encoder import at_strength
from ...lavi_core.vision import VISION_TARGETS
from .device import pick_device
from .diffusers_folder import read_config
from .own_encoder import OwnEncoder, load_ear
from .sampling import noise_for, sample
from .vae import decode, load_vae, vae_batch_size
from .vision_model import VisionModel, load_vision_model


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Of each ear of a bridge that is heard beside the vision model's own encoder: 1 = as trained, 0 = it hears the
    empty prompt, see ``lavi_core.own_encoder.at_strength``. That of the bridge is one without such an encoder too."""

    bridge: float = 1.0
    own: float = 1.0


@dataclass
class Pipeline:
    """condition: prompts (and what the own encoder is told in their stead) -> what a sampler takes, on the vision
    model's device. precision: "bf16" computes under autocast. bridge: what conditions, where it is a whole one and not
    a pair in training. own: the vision model's own encoder, of a bridge that was trained beside it."""

    condition: Callable[..., Heard]
    vision: VisionModel
    vae: Any
    precision: Literal["bf16", "fp32"] = "fp32"
    bridge: Bridge | None = None
    own: OwnEncoder | None = None

    @classmethod
    def load(
        cls,
        bridge: str | Path,
        language: str | Path | TextEncoder,
        vision: str | Path,
        vae: str | Path,
        precision: Literal["bf16", "fp32"] = "fp32",
        device: str | torch.device | None = None,
        own: str | Path | None = None,
        strengths: Strengths = Strengths(),
    ) -> Pipeline:
        """From local files, weights in float32. device: of all parts; None = the best one here. own: the own encoder of
        a bridge that was trained beside one, its folder or its pipeline's; None = ``vision``.

        Raises ValueError where a model is not the one that the bridge was made for.
        """
        device = pick_device(device)
        checkpoint = BridgeCheckpoint.load(bridge)
        wanted = checkpoint.config.vision
        check_vision(bridge, checkpoint.config, vision)
        model = load_vision_model(vision, wanted.target)
        if wanted.fingerprint not in (None, fingerprint.weights_fingerprint(model.network)):
            raise ValueError(f"{bridge} was made for {wanted.model_id}, {vision} has other weights: load the former")
        encoder = language if isinstance(language, TextEncoder) else TextEncoder.load(language, dtype=torch.float32)
        connected = Bridge.connect(checkpoint, encoder).to(device)
        ear = checkpoint.config.own_encoder
        beside = None if ear is None else load_ear(bridge, ear, Path(own or vision), wanted).to(device)
        if ear is None and (own is not None or strengths.own != 1):
            raise ValueError(f"{bridge} was trained to be heard alone: leave out the own encoder and its strength")
        lora.merge(model.network, checkpoint.vision_lora)
        model.network.to(device)

        def condition(prompts: Sequence[str], own_prompts: Sequence[str] | None = None) -> Heard:
            with torch.no_grad():
                said = None
                if beside is not None and ear is not None:
                    said = beside.heard(prompts if own_prompts is None else own_prompts, ear.prompt)
                    if strengths.own != 1:
                        said = at_strength(said, beside.heard([""], ear.prompt), strengths.own)
                return connected.heard(prompts, said, strengths.bridge)

        decoder: Any = load_vae(vae)
        return cls(condition, model, decoder.to(device), precision, connected, beside)

    def tokens_cut(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens of each prompt are not heard, being over the bridge's length."""
        assert self.bridge is not None
        reports, queries = self.bridge.encoder.tokenize(prompts, self.bridge.config.prompt).reports, self.bridge.queries
        asked = [0 if queries is None else queries.count_cut(prompt) for prompt in prompts]
        return [max(report.cut, cut) for report, cut in zip(reports, asked, strict=True)]

    def draw(self, prompts: Sequence[str], **how: Any) -> np.ndarray:
        """One picture a prompt, uint8 [B size size 3]. how: see ``batches``."""
        return np.concatenate(list(self.batches(prompts, **how)))

    def batches(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        own_prompts: Sequence[str] | None = None,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 3.0,
        size: int = 128,
        embedded_guidance: float | None = None,
        progress: Callable[[], object] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """One picture a prompt, uint8 [b size size 3], a batch after the other. Picture i has the i-th noise of the
        seed's stream.

        own_prompts: what the own encoder is told of each, where one is heard; None = the same.
        embedded_guidance: see ``sampling.sample``. batch_size: None = what the VAE takes at a time.
        """
        self.vision.row.check_side(size, "the size of pictures")
        side = size // self.vision.row.pixels
        device = next(self.vision.network.parameters()).device
        noise = noise_for(seed, (len(prompts), self.vision.latent_channels, side, side)).to(device)
        count = batch_size or vae_batch_size(size)
        half = partial(torch.autocast, device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with half():
            unconditional = self.condition([negative])
        for i in range(0, len(prompts), count):
            with half():
                own = () if own_prompts is None else (list(own_prompts[i : i + count]),)
                positive = self.condition(list(prompts[i : i + count]), *own)
                some = noise[i : i + count]
                latents = sample(
                    self.vision, positive, unconditional, some, steps, guidance, progress, embedded_guidance
                )
                images = decode(self.vae, latents.float())
            yield images.cpu().numpy()


def check_vision(bridge: str | Path, made: BridgeConfig, folder: str | Path) -> None:
    """Raise ValueError, naming both sides, unless the network in ``folder`` takes what this bridge gives."""
    config, row = read_config(folder)
    wanted, width, pooled = made.vision, row.context_width(config), row.pooled_width(config)
    if not VISION_TARGETS[wanted.target].is_of(config) or width != wanted.context_width:
        raise ValueError(
            f"{bridge} was made for {wanted.model_id} ({wanted.target}, context width {wanted.context_width}), the "
            f"vision model {folder} is of {row.name} with context width {width}: load {wanted.model_id}"
        )
    if pooled is not None and made.pooled_width != pooled:
        gives = made.pooled_width
        other = "draw in ComfyUI, where Bridge Text Encode takes that of another encoder"
        raise ValueError(
            f"the vision model {folder} takes a pooled vector of width {pooled}, {bridge} gives "
            f"{'none' if gives is None else f'one of width {gives}'}: "
            f"{'train a bridge for this vision model' if wanted.other_pooled is None else other}"
        )
