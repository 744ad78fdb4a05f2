"""A language model, an adapter and a vision model as one trainable module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..lavi_core import adapters, fingerprint
from ..lavi_core.checkpoint import BridgeCheckpoint
from ..lavi_core.conditioning import Conditioning, HiddenStates
from ..lavi_core.config import AdapterConfig, BridgeConfig, LoRAConfig, VisionConfig
from ..lavi_core.language import TextEncoder, TokenBatch
from ..lavi_core.lora import Delta, LoRA
from .parallel import outermost_layers
from .recipe import LanguageSection, Recipe, VisionSection
from .vision_model import VisionModel

GROUPS = ("adapter", "language", "vision")
FEW_CELLS = 256


class Pair(nn.Module):
    """Everything that one training step runs. Frozen weights stay as they were loaded, trained ones are float32."""

    def __init__(self, recipe: Recipe, encoder: TextEncoder, vision: VisionModel):
        super().__init__()
        self.recipe, self.vision_model = recipe, vision
        # Taken before LoRA goes in: the prints and the site names are those of the untouched models.
        self.sites = {"language": [], "vision": []}
        if recipe.language.train == "lora":
            self.sites["language"] = used_sites(encoder, recipe.prompt.hidden_states)
        if recipe.vision.train == "lora":
            self.sites["vision"] = vision.row.sites(vision.network)
        self.language_config = encoder.config
        bare = next(vision.network.parameters()).is_meta  # a dry run's: it has no values to print
        self.vision_print = None if bare else fingerprint.weights_print(vision.network)
        inner = recipe.adapter.inner_width
        in_width, out_width = encoder.config.hidden_size, vision.context_width
        self.adapter_config = AdapterConfig(
            kind=recipe.adapter.kind,
            in_width=in_width,
            inner_width=adapters.inner_width(in_width, out_width) if inner is None else inner,
            out_width=out_width,
            pooled_width=vision.pooled_width,
        )
        self.encoder = encoder
        self.adapter = adapters.build(self.adapter_config)
        self.network = vision.network
        prepare(encoder.model, recipe.language, self.sites["language"])
        prepare(self.network, recipe.vision, self.sites["vision"])
        unused = unused_modules(encoder, recipe.prompt.hidden_states)
        for module in unused:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if recipe.language.train != "full":
            drop_layers(encoder, unused)
        self.run_again = checkpoint_layers(encoder, vision.network, unused) if recipe.gradient_checkpointing else set()

    def train(self, mode: bool = True) -> Pair:
        """Training mode is for what is trained: a frozen model's own dropout stays off, its LoRA's is on."""
        super().train(mode)
        recipe = self.recipe
        for section, model in ((recipe.language, self.encoder), (recipe.vision, self.network)):
            if section.train != "full":
                for name, module in model.named_modules():
                    module.training = mode and ("lora_dropout" in name or module in self.run_again)
        return self

    def compile_layers(self) -> None:
        """Have the layers of both models compiled, one by one: alike as they are, that is fast and soon done."""
        for layer in self.encoder.layers():
            layer.compile()
        for block in outermost_layers(self.network):
            block.compile()

    def group(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters of one group, by name."""
        module = {"adapter": self.adapter, "language": self.encoder.model, "vision": self.network}[name]
        return ((f"{name}.{key}", p) for key, p in module.named_parameters() if p.requires_grad)

    def trained(self) -> dict[str, nn.Parameter]:
        return {key: p for name in GROUPS for key, p in self.group(name)}

    def condition(self, said: TokenBatch | HiddenStates) -> Conditioning:
        """Captions, as tokens or as what the language model says of them, to conditioning; the adapter runs in float32
        outside autocast."""
        hidden = self.encoder(said, self.recipe.prompt) if isinstance(said, TokenBatch) else said
        with torch.autocast(hidden.states.device.type, enabled=False):
            heard = self.adapter(hidden._replace(states=hidden.states.float()))
        return Conditioning(heard.context, heard.mask if self.recipe.prompt.vision_mask else None, heard.pooled)

    def forward(self, said: TokenBatch | HiddenStates, x: Tensor, timesteps: Tensor) -> Tensor:
        """The vision model's prediction [B C H W] for corrupted latents x [B C H W] at timesteps [B]."""
        return self.vision_model.predict(x, timesteps, self.condition(said))

    def checkpoint(self, provenance: dict) -> BridgeCheckpoint:
        """The bridge as it stands, on the CPU."""
        recipe, vision = self.recipe, self.vision_model
        language_config, vision_print = self.language_config, self.vision_print
        if recipe.language.train == "full":
            words = fingerprint.vocabulary_print(self.encoder.tokenizer)
            weights = fingerprint.weights_print(self.encoder.model)
            language_config = replace(language_config, fingerprint=fingerprint.join(words, weights))
        if recipe.vision.train == "full":
            vision_print = fingerprint.weights_print(self.network)
        config = BridgeConfig(
            language=language_config,
            prompt=recipe.prompt,
            adapter=self.adapter_config,
            vision=VisionConfig(
                model_id=vision.model_id,
                target=vision.target,
                context_width=vision.context_width,
                objective=vision.objective.kind,
                latent_channels=vision.latent_channels,
                latent_scale=vision.scale,
                fingerprint=vision_print,
            ),
            language_lora=_lora_config(recipe.language),
            vision_lora=_lora_config(recipe.vision),
            provenance=provenance,
        )
        state = {key: weight.detach().float().cpu() for key, weight in self.adapter.state_dict().items()}
        language = deltas(self.encoder.model, self.sites["language"], recipe.language)
        return BridgeCheckpoint(config, state, language, deltas(self.network, self.sites["vision"], recipe.vision))


def used_sites(encoder: TextEncoder, hidden_states: str | int) -> list[str]:
    """The LoRA sites of the layers that the recipe runs: one after an early stop would never see a gradient."""
    unused = {id(module) for module in unused_modules(encoder, hidden_states)}
    return [path for path in encoder.lora_sites() if id(encoder.model.get_submodule(path)) not in unused]


def unused_modules(encoder: TextEncoder, hidden_states: str | int) -> list[nn.Module]:
    """The modules of the layers after the last one that the recipe runs, less those that an earlier layer shares."""
    layers = encoder.layers()
    if isinstance(hidden_states, str) or hidden_states < 0:
        depth = len(layers) if isinstance(hidden_states, str) else len(layers) + 1 + hidden_states
    else:
        depth = hidden_states
    used = {id(module) for layer in layers[:depth] for module in layer.modules()}
    return [module for layer in layers[depth:] for module in layer.modules() if id(module) not in used]


def drop_layers(encoder: TextEncoder, unused: list[nn.Module]) -> None:
    """Free the layers after the last that the recipe runs: the pass is left at the first of them."""
    layers, gone = encoder.layers(), set(map(id, unused))
    for index, layer in enumerate(layers):
        if all(id(module) in gone for module in layer.modules()):
            layers[index] = nn.Identity()


def checkpoint_layers(encoder: TextEncoder, network: nn.Module, unused: list[nn.Module]) -> set[nn.Module]:
    """Have both models' layers run again in the backward pass instead of kept. Not reentrant: that would lose the
    gradients of LoRA behind a frozen input.

    Returns the modules that transformers wants in training mode for it: the layers and what holds them, not their
    parts, which drop out. The layers that are not used are none of them: the pass is left at the first. Raises
    ValueError for a model that cannot do it.
    """
    language, vision = cast(Any, encoder.model), cast(Any, network)
    enable = getattr(language, "activation_checkpointing_enable", None) or language.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    vision.enable_gradient_checkpointing()
    layers = encoder.layers()
    holders = (module for module in encoder.model.modules() if layers in module.children())
    return {*holders, *(layer for layer in layers if layer not in unused)}


def prepare(model: nn.Module, section: LanguageSection | VisionSection, sites: list[str]) -> None:
    """Freeze a model, inject LoRA into ``sites``, or open it whole, as the recipe says.

    LoRA starts as the authors': down ~ N(0, 1/rank), up = 0.
    """
    model.requires_grad_(section.train == "full")
    if section.train == "full":
        model.float()
    if section.train == "lora":
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = LoraConfig(
            r=section.rank,
            lora_alpha=section.alpha,  # type: ignore[arg-type]
            lora_dropout=section.dropout,
            target_modules="|".join(map(re.escape, sites)),
            init_lora_weights="gaussian",
        )
        inject_adapter_in_model(config, model)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in key)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):  # else every input goes to float32, and by autocast back to bf16
                layer.cast_input_dtype_enabled = False  # type: ignore[assignment]
        injected = sum(key.endswith("lora_A.default.weight") for key, _ in model.named_parameters())
        assert injected == len(sites), f"{injected} LoRA sites of {len(sites)} were injected"


def deltas(model: nn.Module, sites: list[str], section: LanguageSection | VisionSection) -> LoRA:
    """The LoRA as it stands, by module path of the untouched model."""
    found = {}
    for path in sites:
        layer = model.get_submodule(path)
        down, up = (getattr(layer, part)["default"].weight.detach().float().cpu() for part in ("lora_A", "lora_B"))
        found[path] = Delta(down.clone(), up.clone(), section.alpha / section.rank)
    return found


def _lora_config(section: LanguageSection | VisionSection) -> LoRAConfig | None:
    return LoRAConfig(rank=section.rank, alpha=section.alpha) if section.train == "lora" else None


@contextmanager
def eval_mode(pair: Pair) -> Iterator[Pair]:
    """Nothing drops out and no gradient is kept inside; put back as it was afterwards."""
    was = pair.training
    pair.eval()
    try:
        with torch.no_grad():
            yield pair
    finally:
        pair.train(was)


def attention_kernel(device: torch.device, cells: int) -> AbstractContextManager:
    """On a CPU plain matrix products train faster than torch's flash kernel, whose backward is slow there, as long as a
    picture has few latent cells."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and cells <= FEW_CELLS else nullcontext()
