"""The base class of adapters: hidden states in, conditioning out; a learned mean before, a pooled head beside."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from ..conditioning import Conditioning, HiddenStates, asked
from ..config import AdapterConfig
from .layer_mean import LayerMean

OPTIONS = (
    "tokens",
    "depth",
    "narrow_depth",
    "heads",
    "outer_norms",
    "timestep_channels",
    "positions",
    "vocabulary",
)  # of AdapterConfig, that only some kinds have
ASKS = {"ids": "the token ids of a second tokenizer", "rows": "the rows that a prompt is cut into"}


class Adapter(nn.Module):
    """A kind of adapter says how states become a context: token by token (``context``), or all of a prompt's together
    (``attend``), or with a pooled vector of its own making (``gather``); the rest is here.

    hears_timestep: the context is another at each timestep, so ``forward`` has to be given one. own_tokens: what it
    gives are tokens of its own, ``config.tokens`` of them, all to be attended; it hears real tokens alone, whatever the
    prompt recipe says of the vision model's mask. asks: the tokens of its own are one for each of ``hidden.queries``,
    the "ids" of a second tokenizer or the "rows" that a prompt is cut into, and its mask is where there is one; "" = it
    takes none. own_pooled: the pooled vector is made by
    ``gather``, not by the head that other kinds have. options: those of ``OPTIONS`` that it has, with their defaults;
    None = from the widths, see ``adapters.configure``.
    """

    hears_timestep = False
    own_tokens = False
    asks: Literal["", "ids", "rows"] = ""
    own_pooled = False
    options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, config: AdapterConfig):
        super().__init__()
        check_options(config.kind, self.options, {name: getattr(config, name) for name in OPTIONS}, whole=True)
        self.config = config
        self.layer_mean = None if config.layers is None else LayerMean(config.layers)
        width = None if self.own_pooled else config.pooled_width
        self.pooled = None if width is None else PooledHead(config.in_width, width)

    def context(self, states: Tensor) -> Tensor:
        """Token by token. [B T D] -> [B T C]"""
        raise NotImplementedError

    def attend(self, hidden: HiddenStates, timestep: Tensor | None) -> Tensor:
        """All tokens of a prompt together. states [B T D], mask [B T] -> [B T C], of own tokens [B N C], N = Q where it
        ``asks``.

        timestep: as ``forward`` has it, never None where ``hears_timestep``.
        """
        return self.context(hidden.states)

    def gather(self, hidden: HiddenStates, timestep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What ``attend`` makes, and the pooled vector [B P] where there is one."""
        return self.attend(hidden, timestep), None if self.pooled is None else self.pooled(hidden)

    def last_map(self) -> tuple[nn.Linear, nn.LayerNorm | None]:
        """The last linear map, which a closed-form start sets, and the LayerNorm behind it. What is normalised, or
        given, is that map's output plus what does not depend on it. Raises ValueError for a kind that has none."""
        raise ValueError(
            f"the adapter {self.config.kind!r} has no linear map that could be solved for: leave out align.start, or "
            "take another adapter.kind"
        )

    def open_linear_path(self) -> nn.Linear | None:
        """Rearrange fresh weights so that the last map is also given a linear image of the states; -> the map in the
        middle that makes it, which is to be set first. None of kinds that need no such path."""
        return None

    def set_dropout(self, share: float) -> None:
        """In training mode, of what each block adds, or in the middle of the kinds that work token by token. No bridge
        records it. Raises ValueError for a kind that has nothing to drop."""
        layers = [module for module in self.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise ValueError(
                f"adapter.dropout is {share}, the adapter {self.config.kind!r} has nothing in its middle that could be "
                "dropped: leave it out, or take another kind"
            )
        for layer in layers:
            layer.p = share

    def forward(self, hidden: HiddenStates, timestep: Tensor | None = None) -> Conditioning:
        """states: [B T D], or [B T L*D] where the config has ``layers``; float32.

        timestep: [B], or [] for all, of any number type: what the vision model itself is told in training, 0 (data) to
        1000 (noise). Of DDPM models the index of the noise level (ELLA, arXiv 2403.05135, hears that one), of flows
        1000 times the share of noise, not rounded. Kinds that do not hear it leave it alone. Raises ValueError where
        one is needed, and for states without the queries that it asks with.
        """
        if self.hears_timestep and timestep is None:
            raise ValueError(
                f"the adapter {self.config.kind!r} gives another context at each timestep and was told none: give the "
                "timestep (0 to 1000), at every step of a sampler"
            )
        if self.asks and hidden.queries is None:
            raise ValueError(
                f"the adapter {self.config.kind!r} asks with {ASKS[self.asks]} and was given none: give the queries too"
            )
        if self.layer_mean is not None:
            hidden = hidden._replace(states=self.layer_mean(hidden.states))
        context, pooled = self.gather(hidden, timestep)
        mask = None if self.own_tokens else hidden.mask
        if self.asks and hidden.queries is not None:
            mask = asked(hidden.queries)
        return Conditioning(context, mask, pooled)


def check_options(kind: str, known: Mapping[str, Any], given: Mapping[str, Any], whole: bool = False) -> None:
    """Raise ValueError for a value of ``given`` that is not None and whose name the kind does not know, or that is less
    than 1. whole: also for one that it knows and is not given."""
    for name, value in given.items():
        if value is not None and name not in known:
            has = f"has {', '.join(known)}" if known else "has none of the kind"
            raise ValueError(
                f"adapter.{name} is {value}, the adapter {kind!r} {has}: leave it out, or take another kind"
            )
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"adapter.{name} must be at least 1, got {value}")
        if value is None and name in known and whole:
            raise ValueError(f"adapter.{name} is not given, the adapter {kind!r} is not built without it")


class PooledHead(nn.Module):
    """LayerNorm -> mean over the real tokens -> Linear, for vision models that take a pooled vector (SDXL).

    The mean is masked: padding must not thin out a short prompt.
    """

    def __init__(self, in_width: int, pooled_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=1e-5)
        self.proj = nn.Linear(in_width, pooled_width)

    def forward(self, hidden: HiddenStates) -> Tensor:  # [B P]
        weight = hidden.mask.unsqueeze(-1).to(hidden.states.dtype)
        total = (self.norm(hidden.states) * weight).sum(1)
        return self.proj(total / weight.sum(1).clamp(min=1))
