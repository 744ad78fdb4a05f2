"""A language model, an adapter and a vision model as one trainable module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...lavi_core import adapters, fingerprint
from ...lavi_core.bridge import Queries, queries_of
from ...lavi_core.checkpoint import BridgeCheckpoint
from ...lavi_core.conditioning import Conditioning, Heard, HiddenStates, TimedConditioning
from ...lavi_core.config import BridgeConfig, OwnEncoderConfig, VisionConfig, check_positions
from ...lavi_core.language import TextEncoder, TokenBatch
from ...lavi_core.language.query_tokenizer import QueryTokenizer
from ...lavi_core.own_encoder import together
from ..recipe import Recipe
from .bridge_files.starting import started_from, take_over
from .dropout import draw_less
from .layers import alike_layers, checkpoint_layers, drop_layers, unused_modules, used_sites
from .lora_layers import LoRALayer, bypassed, copied
from .own_encoder import Ears, check_ear
from .trainable import deltas, lora_config, prepare
from .vision_model import VisionModel

GROUPS = ("adapter", "layers", "language", "vision")  # layers: the weights of a learned mean
KINDS = 64


class Pair(nn.Module):
    """Everything that one training step runs. Frozen weights stay as they were loaded, trained ones are float32."""

    def __init__(self, recipe: Recipe, encoder: TextEncoder, vision: VisionModel, ear: OwnEncoderConfig | None = None):
        """ear: the own encoder that is heard too, of ``read_ear``; what it says comes with the captions (``Ears``)."""
        super().__init__()
        self.ear = ear
        self.recipe, self.vision_model = recipe, vision
        # Taken before LoRA goes in: the fingerprints and the site names are those of the untouched models.
        self.sites = {"language": [], "vision": []}
        if recipe.language.train == "lora":
            self.sites["language"] = used_sites(encoder, recipe.prompt.hidden_states)
        if recipe.vision.train == "lora":
            self.sites["vision"] = vision.row.sites(vision.network)
        for key in ("resolution", *(["bucket_step"] if recipe.data.buckets else [])):
            vision.row.check_side(getattr(recipe.data, key), f"data.{key}")
        self.language_config = encoder.config
        bare = next(vision.network.parameters()).is_meta  # a dry run's: it has no values
        self.vision_fingerprint = None if bare else fingerprint.weights_fingerprint(vision.network)
        own_length, pooled_width = 0, vision.pooled_width
        if ear is not None:
            check_ear(ear, vision.model_id, vision.context_width, vision.pooled_width)
            own_length, pooled_width = ear.prompt.max_length, None if ear.pooled_width else vision.pooled_width
        start = None
        if recipe.adapter.from_:
            made = (recipe.adapter.from_, recipe.adapter.preset)
            start = started_from(*made, encoder.config, vision, pooled_width, ear, recipe.adapter.query_tokenizer)
        self.started_from = None if start is None else start.config.provenance
        self.queries: Queries | None = None
        if start is not None and start.query_tokenizer is not None:
            self.queries = queries_of(start)
        elif recipe.adapter.query_tokenizer:
            self.queries = QueryTokenizer.load(recipe.adapter.query_tokenizer)
        self.adapter_config = (
            start.config.adapter
            if start is not None
            else adapters.configure(
                recipe.adapter.kind,
                in_width=encoder.config.hidden_size * recipe.prompt.stacked,
                out_width=vision.context_width,
                inner=recipe.adapter.inner_width,
                pooled_width=pooled_width,
                layers=encoder.config.num_layers if recipe.prompt.hidden_states == "learned_mean" else None,
                vocabulary=None if self.queries is None else self.queries.vocabulary,
                **recipe.adapter.options(),
            )
        )
        if self.queries is not None:
            self.queries.limited(self.adapter_config, vision.row.text.limit, own_length)
        weight = next(encoder.parameters(), None)
        without_weights = weight is None or weight.is_meta  # see FrozenLanguage, which checks what it loads
        if not without_weights:  # of the whole model: what a recipe never runs is dropped below
            encoder.check_recipe(recipe.prompt)
        self.trims_padding = without_weights or encoder.may_trim(recipe.prompt)
        self.encoder = encoder
        self.adapter = adapters.build(self.adapter_config)
        if recipe.adapter.dropout is not None:
            self.adapter.set_dropout(recipe.adapter.dropout)
        draw_less(self.adapter)
        self.adapter_dtype = torch.float16  # of the file; what was given in more is not rounded
        if start is not None and not bare:
            self.adapter.load_state_dict(start.adapter)
            if any(tensor.dtype != torch.float16 for tensor in start.adapter.values() if tensor.is_floating_point()):
                self.adapter_dtype = torch.float32
        # What is heard of padding: tokens of an adapter's own are made of real ones alone, and are all attended. To one
        # that knows places, padding before these is where they stand.
        check_positions(self.adapter_config, recipe.prompt)
        placed = (self.adapter_config.positions or self.adapter_config.vocabulary) is not None
        placed = placed and recipe.prompt.padding_side == "left"
        self.hearing = replace(recipe.prompt, vision_mask=not placed) if self.adapter.own_tokens else recipe.prompt
        given = recipe.prompt
        if self.adapter.asks:  # of which there are as many as a caption has, masked where another has more
            given = replace(given, vision_mask=True, max_length=1)
            if vision.row.text.masked == "refused":
                raise ValueError(
                    f"the adapter {self.adapter_config.kind!r} gives as many tokens as a caption has, the vision model "
                    f"({vision.model_id}) takes no mask that would leave out what fills shorter ones up: take another "
                    "adapter.kind, or another vision model"
                )
        vision.row.text.check(given, vision.model_id, self.adapter_config.tokens, own_length)
        self.network = vision.network
        # Of the weights as they came: a frozen model's is what is computed in.
        self.dtypes = {"language": _dtype(encoder.model), "vision": _dtype(vision.network)}
        prepare(encoder.model, recipe.language, self.sites["language"])
        prepare(self.network, recipe.vision, self.sites["vision"])
        if start is not None and not bare:
            take_over(start, "language", encoder.model, recipe.language, self.sites["language"])
            take_over(start, "vision", self.network, recipe.vision, self.sites["vision"])
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
                for module in model.modules():
                    module.training = mode and (isinstance(module, LoRALayer) or module in self.run_again)
        return self

    def compile_layers(self) -> None:
        """Have the layers of both models compiled, each kind once: what has no twin is not worth the time."""
        from torch import _dynamo

        _dynamo.config.recompile_limit = KINDS  # of one class: a U-Net's residual blocks are of many widths
        for layer in (*alike_layers(self.encoder.model), *alike_layers(self.network)):
            layer.compile()

    def group(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters of one group, by name."""
        modules = {"adapter": self.adapter, "layers": self.adapter.layer_mean}
        modules |= {"language": self.encoder.model, "vision": self.network}
        module = modules[name] or nn.Module()
        apart = "layer_mean." if name == "adapter" else " "
        named = (pair for pair in module.named_parameters() if not pair[0].startswith(apart))
        return ((f"{name}.{key}", p) for key, p in named if p.requires_grad)

    def rate(self, name: str) -> float:
        """The learning rate of a group."""
        recipe = self.recipe
        return recipe.adapter.layer_learning_rate if name == "layers" else getattr(recipe, name).learning_rate

    def parameter_groups(self, *names: str) -> list[dict[str, Any]]:
        """As torch's optimizers take them, those of ``names`` that are trained, each with its rate."""
        groups = []
        for name in names:
            if params := [p for _, p in self.group(name)]:
                own = {"weight_decay": 0.0} if name == "layers" else {}  # it would pull them to the plain mean
                groups.append({"params": params, "lr": self.rate(name), "rate": self.rate(name), "name": name} | own)
        return groups

    def trained(self) -> dict[str, nn.Parameter]:
        return {key: p for name in GROUPS for key, p in self.group(name)}

    def condition(self, text: TokenBatch | HiddenStates | Ears, timesteps: Tensor | None = None) -> Conditioning:
        """Captions, as tokens or as text states, to conditioning, where the adapter hears them at timesteps [B]."""
        hidden, own = self.hear(text)
        return self.adapt(hidden, timesteps, own)

    def heard(self, text: TokenBatch | HiddenStates | Ears) -> Heard:
        """What a sampler takes, see ``Bridge.heard``."""
        hidden, own = self.hear(text)
        if self.adapter.hears_timestep:
            return TimedConditioning(hidden, self.adapt, own=own)
        return self.adapt(hidden, None, own)

    def hear(self, text: TokenBatch | HiddenStates | Ears) -> tuple[HiddenStates, Conditioning | None]:
        """What the language model says of captions, and the own encoder, where one is heard."""
        text, own = text if isinstance(text, Ears) else (text, None)
        return text if isinstance(text, HiddenStates) else self.states(text), own

    def adapt(
        self, hidden: HiddenStates, timesteps: Tensor | None = None, own: Conditioning | None = None
    ) -> Conditioning:
        """What the vision model hears. timesteps: [] or [B]. Raises ValueError for an ``own`` too few or too many."""
        return together(self.alone(hidden, timesteps), own, self.ear)

    def alone(self, hidden: HiddenStates, timesteps: Tensor | None = None) -> Conditioning:
        """What the bridge says. While it is trained in bf16 the adapter's products are too, as the models' are; else
        they are float32, as in use, and those of rows always: their regression is not to be rounded. timesteps: [] or
        [B]."""
        casts = self.training and self.recipe.precision == "bf16" and self.adapter.asks != "rows"
        with torch.autocast(hidden.states.device.type, torch.bfloat16, enabled=casts):
            states = hidden.states if casts else hidden.states.float()
            said = self.adapter(hidden._replace(states=states), timesteps)
        masked = self.recipe.prompt.vision_mask or self.adapter.asks
        return said if masked else replace(said, mask=None)

    def tokenize(self, captions: Sequence[str]) -> TokenBatch:
        """As the language model reads them, and as queries where the adapter asks."""
        tokens = self.encoder.tokenize(captions, self.recipe.prompt)
        return tokens if self.queries is None else tokens._replace(queries=self.queries(captions, tokens))

    def states(self, tokens: TokenBatch, encoder: TextEncoder | None = None) -> HiddenStates:
        """What the language model says of captions. encoder: the one that has its weights; None = the pair's own."""
        with self._autocast("language", tokens.ids.device):
            return (encoder or self.encoder)(tokens, self.recipe.prompt)

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [0, 1] [B] to timesteps [B] for square pictures of the recipe's resolution."""
        side = self.recipe.data.resolution // self.vision_model.row.pixels
        return self.vision_model.objective.timesteps(uniform, self.vision_model.row.tokens(side, side))

    def predict(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The vision model's prediction [B C H W] for x [B C H W] at timesteps [B]."""
        dtype = self.dtypes["vision"]
        pooled = None if conditioning.pooled is None else conditioning.pooled.to(dtype)
        heard = replace(conditioning, context=conditioning.context.to(dtype), pooled=pooled)
        with self._autocast("vision", x.device):
            return self.vision_model.predict(x.to(dtype), timesteps, heard, self.recipe.vision.embedded_guidance)

    def forward(
        self, text: TokenBatch | HiddenStates | Ears, x: Tensor, timesteps: Tensor, taught: Conditioning | None = None
    ) -> Any:
        """The vision model's prediction [B C H W] for corrupted latents x [B C H W] at timesteps [B].

        taught: what it was trained to hear; then a pair, the second what it predicts under that, without LoRA and
        without a gradient. In one forward pass, whatever is wrapped around this module.
        """
        lesson = None
        if taught is not None:
            with torch.no_grad(), bypassed(self.network):
                lesson = self.predict(x, timesteps, taught)
        with copied(self.encoder.model, self.network):
            prediction = self.predict(x, timesteps, self.condition(text, timesteps))
        return prediction if lesson is None else (prediction, lesson)

    def _autocast(self, name: str, device: torch.device) -> AbstractContextManager:
        """Weights that lie in the dtype that is computed in need no cast; a model that is trained whole has float32
        ones, which autocast casts where bf16 is enough."""
        casts = self.recipe.precision == "bf16" and self.dtypes[name] == torch.float32
        return torch.autocast(device.type, torch.bfloat16, enabled=casts)

    def checkpoint(self, provenance: dict) -> BridgeCheckpoint:
        """The bridge as it stands, on the CPU."""
        recipe, vision = self.recipe, self.vision_model
        language_config, vision_fingerprint = self.language_config, self.vision_fingerprint
        if recipe.language.train == "full":
            words = fingerprint.vocabulary_fingerprint(self.encoder.tokenizer)
            weights = fingerprint.weights_fingerprint(self.encoder.model)
            facts = (language_config.facts or {}) | {"weights": fingerprint.magnitudes(self.encoder.model)}
            language_config = replace(language_config, fingerprint=fingerprint.join(words, weights), facts=facts)
        if recipe.vision.train == "full":
            vision_fingerprint = fingerprint.weights_fingerprint(self.network)
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
                fingerprint=vision_fingerprint,
            ),
            language_lora=lora_config(recipe.language),
            vision_lora=lora_config(recipe.vision),
            own_encoder=self.ear,
            provenance=provenance | ({} if self.started_from is None else {"started_from": self.started_from}),
        )
        state = {key: weight.detach().cpu() for key, weight in self.adapter.state_dict().items()}
        state = {key: weight.float() if weight.is_floating_point() else weight for key, weight in state.items()}
        language, vision_lora = (
            deltas(self.encoder.model, self.sites["language"]),
            deltas(self.network, self.sites["vision"]),
        )
        queries = None if self.queries is None else self.queries.json
        return BridgeCheckpoint(config, state, language, vision_lora, queries)


def _dtype(model: nn.Module) -> torch.dtype | None:
    """None of a model whose weights are not here."""
    return next((p.dtype for p in model.parameters()), None)


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
