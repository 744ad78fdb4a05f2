"""Watch Attention: which token drives which region, from the cross-attention of a cloned model while it samples.

Hooks on the projections to queries and keys live only inside a forward pass of that clone; nothing is replaced, so the
samples are the same to the bit. A map is the mean over heads, layers and steps (DAAM, arXiv 2210.04885).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor, nn

from .cache_signature import current_signatures
from .context_tokens import ContextTokens, find_context_tokens
from .schema import AttentionWire, schema

KEY = "lavi_bridge_attention"  # of our wrappers in the host's table
KEPT = 8  # samplings whose maps are kept: the host may give the pictures of an earlier one again, from its cache


@dataclass(frozen=True)
class CrossAttention:
    """Where a kind of network has its cross-attention. path: the modules' names end so. heads: their attribute."""

    path: str
    query: str
    key: str  # of the keys, or of keys and values in one
    heads: str


CROSS_ATTENTION = {
    "UNetModel": CrossAttention(path="attn2", query="to_q", key="to_k", heads="heads"),
    "PixArtMS": CrossAttention(path="cross_attn", query="q_linear", key="kv_linear", heads="num_heads"),
}


def kind_of(network: nn.Module) -> CrossAttention:
    """The row of a network. Raises ValueError for one whose text is no cross-attention's."""
    for ancestor in type(network).__mro__:
        if ancestor.__name__ in CROSS_ATTENTION:
            return CROSS_ATTENTION[ancestor.__name__]
    raise ValueError(
        f"attention maps are drawn of the cross-attention of {' and '.join(CROSS_ATTENTION)}, this one is a "
        f"{type(network).__name__}: take the node out"
    )


@dataclass
class Sampling:
    """The attention of one sampling.

    size: of the latents. sums: grid of a layer -> sum of its maps [B T h w], and their number. made_in: signatures of
    the node that sampled.
    """

    size: tuple[int, int] = (0, 0)
    sums: dict[tuple[int, int], tuple[Tensor, int]] = field(default_factory=dict)
    current_signatures: frozenset[str] = frozenset()
    parts: int = 0  # passes over a part of the picture, which are not gathered


@dataclass
class AttentionMaps:
    """What runs on a LAVI_ATTENTION wire: the attention to one context, of the samplings that came last.

    context: [1 T C]. samplings: the latest last, one of each node and its inputs.
    """

    context: Tensor
    tokens: ContextTokens
    samplings: list[Sampling] = field(default_factory=list)
    now: Sampling = field(default_factory=Sampling)

    def __str__(self) -> str:
        return f"attention to {self.context.shape[1]} vectors of context, of {len(self.samplings)} samplings"

    def sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The host's OUTER_SAMPLE: a sampling begins, what the same node gathered before is forgotten."""
        now = self.now = Sampling((noise.shape[-2], noise.shape[-1]), current_signatures=current_signatures())
        self.samplings = [other for other in self.samplings if other.current_signatures != now.current_signatures]
        latents = executor(noise, *args, **kwargs)
        now.sums = {
            grid: (total.to(comfy.model_management.intermediate_device()), count)
            for grid, (total, count) in now.sums.items()
        }
        self.samplings = [*self.samplings, now][-KEPT:]
        return latents

    def apply(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The host's APPLY_MODEL: one pass, watched where the context is in its batch."""
        options = transformer_options or {}
        rows = self._rows(c_crossattn, len(options.get("cond_or_uncond", [0])))
        with ExitStack() as hooks:
            if rows is not None and tuple(x.shape[-2:]) != self.now.size:
                self.now.parts += 1
            elif rows is not None:
                self._watch(executor.class_obj.diffusion_model, rows, hooks)
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _rows(self, batch: Tensor | None, chunks: int) -> slice | None:
        """The rows of a batch of ``chunks`` conditionings that hear our context, which the host may have repeated."""
        if batch is None or batch.ndim != 3 or batch.shape[1] % self.context.shape[1]:
            return None
        ours = self.context.repeat(1, batch.shape[1] // self.context.shape[1], 1)[0].to(batch)
        size = batch.shape[0] // chunks
        for start in range(0, batch.shape[0], size):
            if batch.shape[2] == ours.shape[1] and torch.equal(batch[start], ours):
                return slice(start, start + size)
        return None

    def _watch(self, network: nn.Module, rows: slice, hooks: ExitStack) -> None:
        kind = kind_of(network)
        for name, module in network.named_modules():
            if name.rpartition(".")[2] == kind.path:
                heads, seen = getattr(module, kind.heads), []
                query, key = module.get_submodule(kind.query), module.get_submodule(kind.key)

                def take_query(_: nn.Module, __: Any, q: Tensor, seen: list[Tensor] = seen) -> None:
                    seen[:] = [q]

                def take_key(_: nn.Module, __: Any, k: Tensor, seen: list[Tensor] = seen, heads: int = heads) -> None:
                    if seen:
                        self._add(seen.pop(), k, heads, rows)

                hooks.callback(query.register_forward_hook(take_query).remove)
                hooks.callback(key.register_forward_hook(take_key).remove)

    def _add(self, q: Tensor, k: Tensor, heads: int, rows: slice) -> None:
        """q: [B N D]; k: [B R*T D] or, with the values behind it, [B R*T 2D], the batch perhaps folded into R*T."""
        width, length = q.shape[-1], self.context.shape[1]
        k = k.reshape(q.shape[0], -1, k.shape[-1])[..., :width]
        grid = self._grid(q.shape[1])
        if k.shape[1] % length or grid is None:
            return  # tokens of another node were added
        found = torch.stack([_attention(one, other, heads) for one, other in zip(q[rows], k[rows], strict=True)])
        found = found.unflatten(-1, (-1, length)).sum(-2)  # [B N T]
        found = found.transpose(1, 2).unflatten(-1, grid)
        total, count = self.now.sums.get(grid, (torch.zeros_like(found), 0))
        self.now.sums[grid] = (total + found, count + 1)

    def _grid(self, places: int) -> tuple[int, int] | None:
        """Height and width of a layer with so many places: the latents', halved some times and rounded up."""
        height, width = self.now.size
        while height * width > places:
            height, width = -(-height // 2), -(-width // 2)
        return (height, width) if height * width == places else None

    def maps(self, upstream_signatures: list[str] | None = None) -> Tensor:
        """Mean attention of each place to each vector of the context. -> [B T H W] float32, CPU, at the latents' size.

        behind: signatures of nodes, the first of which that sampled is drawn; None = the latest sampling. Raises
        ValueError where nothing was gathered.
        """
        found = self.samplings[::-1]
        if upstream_signatures is not None:
            found = [
                sampling
                for signature in upstream_signatures
                for sampling in found
                if signature in sampling.current_signatures
            ]
        drawn = found[0] if found else Sampling()
        if not drawn.sums:
            why = (
                "it is limited to an area, which cannot be drawn: watch one for the whole picture"
                if drawn.parts
                else "connect the watched MODEL to the sampler of these pictures, and this conditioning to its "
                "positive or negative, or watch what Concat and the like made of it; where they are connected so, "
                "change its seed, for it to sample again"
            )
            raise ValueError(f"no attention to the watched conditioning was seen: {why}")
        layers = sum(count for _, count in drawn.sums.values())
        scaled = [F.interpolate(total, drawn.size, mode="bilinear") for total, _ in drawn.sums.values()]
        return torch.stack(scaled).sum(0) / layers


def _attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt d), its mean over the heads. [N D], [M D] -> [N M] float32"""
    q, k = (part.float().unflatten(-1, (heads, -1)).transpose(0, 1) for part in (q, k))
    mean = torch.zeros(q.shape[1], k.shape[1], device=q.device)
    for one, other in zip(q, k, strict=True):
        mean += (one @ other.T * q.shape[-1] ** -0.5).softmax(-1) / heads
    return mean


def watch(model: ModelPatcher, conditioning: Any) -> tuple[ModelPatcher, AttentionMaps]:
    """A clone that gathers, and where to. Raises ValueError for a network without cross-attention."""
    kind_of(model.model.diffusion_model)
    maps = AttentionMaps(*find_context_tokens(conditioning))
    if any(token.kind == "own" for token in maps.tokens.tokens):
        raise ValueError(
            "this bridge's adapter gives tokens of its own, none of which stands for a word: attention maps are drawn "
            "of bridges that go token by token; take the node out"
        )
    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, maps.sample)
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, maps.apply)
    return watched, maps


class WatchAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeWatchAttention",
            display_name="Watch Attention (LaVi-Bridge)",
            description="Notes, while the model samples, which token of a prompt each place of the picture attends to. "
            "The picture stays the same to the bit. For Bridge Attention Maps.",
            search_aliases=["cross attention", "attention map", "daam", "heatmap"],
            inputs=[
                io.Model.Input("model", tooltip="The model that goes to the sampler, behind Apply Bridge to Model."),
                io.Conditioning.Input(
                    "conditioning", tooltip="From Bridge Text Encode: the prompt to watch, positive or negative."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="A clone that is watched, for the sampler."),
                AttentionWire.Output(display_name="attention", tooltip="For Bridge Attention Maps."),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, conditioning: Any) -> io.NodeOutput:
        return io.NodeOutput(*watch(model, conditioning))
