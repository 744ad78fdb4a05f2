"""The closed-form start: the adapter's last linear map is solved for, so that it gives the own encoder's states.

Everything before that map stays as it was drawn, so it is the whole adapter of kind "linear", and of the others a map
of fixed random features; the mlp is given a linear path beside them first. Where a LayerNorm comes last, the map is
solved for normalised targets, and the norm's weights are those of a regression of every channel. Sums are kept in
float64; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-12
EPS = 1e-6


class Seen(NamedTuple):
    """Of some tokens, in one pass. features [N F]: what the last map was given; rest [N C]: what is added to what it
    gives before the last norm; output [N C]: before that norm; target [N C]."""

    features: Tensor
    rest: Tensor
    output: Tensor
    target: Tensor


class Moments:
    """Sums over tokens, from which both solutions follow, in float64."""

    def __init__(self) -> None:
        self.count, self.sums = 0, []

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [N F], y [N C]"""
        x, y = x.double(), y.double()
        new = [x.sum(0), y.sum(0), x.t() @ x, x.t() @ y]
        self.count += len(x)
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means [F] and [C], and the sums of products of what is left: [F F] and [F C]."""
        x, y, xx, xy = self.sums
        x, y = x / self.count, y / self.count
        return x, y, xx - self.count * torch.outer(x, x), xy - self.count * torch.outer(x, y)


def ridge(moments: Moments, penalty: float) -> tuple[Tensor, Tensor]:
    """W [C F], b [C] of the least |W x + b - y|^2 + penalty sum_j n var(x_j) |w_j|^2: ridge regression of standardised
    features, with an intercept, which is not penalised."""
    x, y, xx, xy = moments.centred()
    scale = _deviations(xx)
    system = xx / torch.outer(scale, scale)
    system.diagonal().add_(penalty)
    w = torch.linalg.solve(system, xy / scale[:, None]) / scale[:, None]
    return w.t(), y - x @ w


def procrustes(moments: Moments, penalty: float = 0.0) -> tuple[Tensor, Tensor]:
    """W [C F], b [C]: the orthogonal map of standardised features that is nearest to the centred targets (Schoenemann
    1966; of two widths a partial isometry), then of every channel a least-squares scale and offset."""
    x, y, xx, xy = moments.centred()
    scale = _deviations(xx)
    left, _, right = torch.linalg.svd(xy / scale[:, None], full_matrices=False)
    w = (left @ right) / scale[:, None]
    w = w * ((w * xy).sum(0) / (w * (xx @ w)).sum(0).clamp(min=TINY))
    return w.t(), y - x @ w


STARTS: dict[str, Callable[[Moments, float], tuple[Tensor, Tensor]]] = {"ridge": ridge, "procrustes": procrustes}


def fit(
    kind: str, penalty: float, linear: nn.Linear, norm: nn.LayerNorm | None, passes: Callable[[], Iterable[Seen]]
) -> None:
    """Set ``linear``, and ``norm`` behind it. passes: goes once over all tokens, whenever it is called."""
    moments = Moments()
    middle = deviation = None
    if norm is not None:
        targets = Moments()
        for seen in passes():
            targets.add(seen.target[:, :0], torch.cat([seen.target, seen.target.square()], dim=1).double())
        mean, square = (targets.sums[1] / targets.count).chunk(2)
        middle, deviation = mean, (square - mean.square()).clamp(min=TINY).sqrt()
    for seen in passes():
        target = seen.target.double()
        if middle is not None and deviation is not None:
            target = F.layer_norm((target - middle) / deviation, target.shape[-1:], eps=EPS)
        moments.add(seen.features, target - seen.rest)
    weight, bias = STARTS[kind](moments, penalty)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    if norm is not None:
        _fit_channels(norm, passes())


def fit_middle(kind: str, penalty: float, linear: nn.Linear, passes: Callable[[], Iterable[Seen]]) -> None:
    """Set the first rows of a map before the last one to the targets' principal directions, as many as it has room for,
    together of unit variance; the others stay as they were drawn."""
    targets, moments = Moments(), Moments()
    for seen in passes():
        targets.add(seen.target, seen.target[:, :0])
        moments.add(seen.features, seen.target)
    mean, _, products, _ = targets.centred()
    rows = min(linear.out_features, len(mean))
    values, vectors = torch.linalg.eigh(products)
    directions = vectors[:, -rows:] / (values[-rows:].mean() / targets.count).clamp(min=TINY).sqrt()
    x, y, xx, xy = moments.sums
    moments.sums = [x, (y - moments.count * mean) @ directions, xx, (xy - torch.outer(x, mean)) @ directions]
    weight, bias = STARTS[kind](moments, penalty)
    with torch.no_grad():
        linear.weight[:rows] = weight.to(linear.weight)
        linear.bias[:rows] = bias.to(linear.bias)


def _fit_channels(norm: nn.LayerNorm, passes: Iterable[Seen]) -> None:
    """The norm's weight and bias: of every channel the regression of the target on what is normalised."""
    sums: list[Tensor] = []
    count = 0
    for seen in passes:
        x, y = F.layer_norm(seen.output.double(), seen.output.shape[-1:], eps=norm.eps), seen.target.double()
        new = [x.sum(0), y.sum(0), x.square().sum(0), (x * y).sum(0)]
        sums, count = [a + b for a, b in zip(sums, new, strict=True)] if sums else new, count + len(x)
    x, y, xx, xy = (total / count for total in sums)
    weight = (xy - x * y) / (xx - x * x).clamp(min=TINY)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(y - weight * x)


@contextmanager
def watched(linear: nn.Linear, norm: nn.LayerNorm | None) -> Iterator[dict[str, Tensor]]:
    """Inside, a forward pass leaves here what the map was given ("features") and gave ("given"), and what the norm
    was given ("output")."""
    found: dict[str, Tensor] = {}

    def of_map(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found["features"], found["given"] = inputs[0], output

    def of_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found["output"] = inputs[0]

    hooks = [linear.register_forward_hook(of_map)]
    if norm is not None:
        hooks.append(norm.register_forward_pre_hook(of_norm))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _deviations(products: Tensor) -> Tensor:
    """Root of each feature's own sum of squares [F]; 1 of one that never varies, which then gets no weight."""
    own = products.diagonal()
    return torch.where(own > TINY * own.max().clamp(min=TINY), own, torch.ones_like(own)).clamp(min=TINY).sqrt()
