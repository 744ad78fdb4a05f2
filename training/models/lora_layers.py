"""LoRA as it is trained: few kernels a site, a backward pass of its own, one copy of the trained weights a step.

A site computes, for a frozen map W, b and the trained A (down) and B (up), s = alpha / rank (arXiv 2106.09685, eq. 3):

    h = (m * x) A'^T        m: dropout's mask, 0 or 1 / (1 - p), of each site by itself
    y = x W^T + b + h B'^T                                                                                  (1)

A' and B' are A and s B in the dtype of W, made for all sites at once (``Operands``). With the gradient g of y:

    dB' = g^T h,   dh = g B',   dA' = dh^T (m * x),   dx = g W + m * (dh A')                                 (2)

W has no gradient. Convolutions do the same with A of W's kernel, stride and padding, and B of 1 x 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...lavi_core.lora import is_site, is_transposed, shapes
from .dropout import add_dropped_, drop_out, drop_out_

# The projections of an attention that read the same tensor, by the names that libraries give them. Which really do is
# seen when they are called; a name here only means that it is worth looking.
TOGETHER = (("q", "k", "v"), ("query", "key", "value"))
DECORATIONS = re.compile("^to_|_(proj|linear|lin)$")


class LoRALayer(nn.Module):
    """A frozen map with a LoRA beside it, in the place of the map; its tensors are named as peft names them.

    Starts as the authors': A ~ N(0, 1 / rank), B = 0, float32. Drops out while ``training``.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.base_layer, self.scale, self.dropout = base, alpha / rank, dropout
        device = base.weight.device
        down, up = (nn.Parameter(torch.empty(shape, device=device)) for shape in shapes(base, rank))  # type: ignore[arg-type]
        nn.init.normal_(down, std=1 / rank)
        nn.init.zeros_(up)
        self.lora_A = nn.ModuleDict({"default": _Holder(down)})
        self.lora_B = nn.ModuleDict({"default": _Holder(up)})
        self.transposed = is_transposed(base)
        # Whether the frozen map is the sum of equation (1) and no subclass's own.
        plain = self.transposed or type(base).forward in (nn.Linear.forward, nn.Conv2d.forward)
        self.is_plain = plain and not isinstance(getattr(base, "padding", ()), str)
        self.group, self.place = Group([self]), 0
        self.bypassed = False

    @property
    def down(self) -> nn.Parameter:
        return self.lora_A["default"].weight  # type: ignore[return-value]

    @property
    def up(self) -> nn.Parameter:
        return self.lora_B["default"].weight  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The frozen map's: models ask for its dtype."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias  # type: ignore[return-value]

    @property
    def matrix(self) -> Tensor:
        """W [out in]."""
        return self.weight.t() if self.transposed else self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) if self.bypassed else self.group(self, x)

    def extra_repr(self) -> str:
        return f"rank={len(self.down)}, scale={self.scale:g}, dropout={self.dropout:g}"


class _Holder(nn.Module):
    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight


class Group:
    """Sites of one shape that are given the same tensor: computed at once when the first of them is called.

    Each result is given once. A site that is called with another tensor than the others is computed for itself.
    operands: (A' [n r in], B' [n out r]), without n where there is one site; None = made at each call.
    """

    def __init__(self, layers: Sequence[LoRALayer]):
        self.layers = list(layers)
        self.operands: tuple[Tensor, Tensor] | None = None
        self.held: dict[int, Tensor] = {}
        self.held_for: tuple[Tensor, bool] | None = None

    def __call__(self, layer: LoRALayer, x: Tensor) -> Tensor:
        if len(self.layers) == 1:
            return self._one(layer, x)
        index, asked = layer.place, torch.is_grad_enabled()
        if self.held_for is None or self.held_for[0] is not x or self.held_for[1] != asked or index not in self.held:
            self.held, self.held_for = dict(enumerate(self._all(x))), (x, asked)
        found = self.held.pop(index)
        if not self.held:
            self.held_for = None
        return found

    def forget(self) -> None:
        """Drop what was computed and not asked for."""
        self.held, self.held_for = {}, None

    def made(self) -> tuple[Tensor, Tensor]:
        """A' and B' of the sites, as ``operands`` has them."""
        if self.operands is not None:
            return self.operands
        dtype = self.layers[0].weight.dtype
        downs = [layer.down.to(dtype) for layer in self.layers]
        ups = [(layer.up * layer.scale if layer.scale != 1 else layer.up).to(dtype) for layer in self.layers]
        return (downs[0], ups[0]) if len(self.layers) == 1 else (torch.stack(downs), torch.stack(ups))

    def _one(self, layer: LoRALayer, x: Tensor) -> Tensor:
        base, p = layer.base_layer, layer.dropout if layer.training else 0.0
        down, up = self.made()
        x = x if x.dtype == down.dtype else x.to(down.dtype)
        if not layer.is_plain:
            dropped = functional.dropout(x, p)
            if isinstance(base, nn.Conv2d):
                h = functional.conv2d(dropped, down, None, base.stride, base.padding, base.dilation)
                return base(x) + functional.conv2d(h, up)
            return base(x) + functional.linear(functional.linear(dropped, down), up)
        if isinstance(base, nn.Conv2d):
            return _Convolution.apply(
                x, layer.weight, layer.bias, down, up, p, base.stride, base.padding, base.dilation
            )  # type: ignore[return-value]
        return _Linear.apply(x, layer.matrix, layer.bias, down, up, p)  # type: ignore[return-value]

    def _all(self, x: Tensor) -> tuple[Tensor, ...]:
        down, up = self.made()
        x = x if x.dtype == down.dtype else x.to(down.dtype)
        p = self.layers[0].dropout if self.layers[0].training else 0.0
        frozen = [tensor for layer in self.layers for tensor in (layer.matrix, layer.bias)]
        return _Linears.apply(x, down, up, p, *frozen)  # type: ignore[return-value]


def inject(model: nn.Module, paths: Sequence[str], rank: int, alpha: float, dropout: float) -> None:
    """Put LoRA beside the maps at these paths. Raises ValueError for a module that is no linear map or convolution."""
    odd = {type(model.get_submodule(path)).__name__ for path in paths if not _trains(model.get_submodule(path))}
    if odd:
        raise ValueError(
            f"LoRA is trained beside linear maps and convolutions, not {', '.join(sorted(odd))} of "
            f"{type(model).__name__}; set train = 'frozen' or 'full', or take another model"
        )
    parents: dict[str, dict[str, LoRALayer]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        layer = LoRALayer(model.get_submodule(path), rank, alpha, dropout)
        setattr(model.get_submodule(parent), name, layer)
        parents.setdefault(parent, {})[name] = layer
    for parent, layers in parents.items():
        for together in _together(model.get_submodule(parent), layers):
            group = Group(together)
            for place, layer in enumerate(together):
                layer.group, layer.place = group, place


class Operands(torch.autograd.Function):
    """A and s B of all sites, in the dtype of their frozen maps: one copy for all, and one for all gradients."""

    @staticmethod
    def forward(ctx: Any, groups: Sequence[Group], *trained: Tensor) -> tuple[Tensor, ...]:
        ctx.groups, ctx.trained = groups, trained
        outputs, places, scaled = [], [], {}
        for group in groups:
            down, up = (_space(group, side) for side in ("down", "up"))
            places += [*_each(group, down), *_each(group, up)]
            outputs += [down, up]
            if group.layers[0].scale != 1:
                scaled.setdefault(group.layers[0].scale, []).append(up)
        torch._foreach_copy_(places, trained)
        for scale, ups in scaled.items():
            torch._foreach_mul_(ups, scale)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        found: list[Tensor | None] = []
        scaled: dict[float, list[Tensor]] = {}
        for index, group in enumerate(ctx.groups):
            for side in (0, 1):
                grad = grads[2 * index + side]
                found += [None] * len(group.layers) if grad is None else _each(group, grad)
                if side and grad is not None and group.layers[0].scale != 1:
                    scaled.setdefault(group.layers[0].scale, []).append(grad)
        for scale, some in scaled.items():
            torch._foreach_mul_(some, scale)
        here = [(i, grad) for i, grad in enumerate(found) if grad is not None]
        gradients: list[Tensor | None] = [None] * len(found)
        if here:
            flat = ctx.trained[0].new_empty(sum(grad.numel() for _, grad in here))
            parts = [
                part.view(ctx.trained[i].shape)
                for (i, _), part in zip(here, flat.split([grad.numel() for _, grad in here]), strict=True)
            ]
            torch._foreach_copy_(parts, [grad for _, grad in here])
            for (i, _), part in zip(here, parts, strict=True):
                gradients[i] = part
        return None, *gradients


@contextmanager
def copied(*models: nn.Module) -> Iterator[None]:
    """Inside, every site of the models uses one copy of the trained weights, and gradients go back through it."""
    groups = list(dict.fromkeys(m.group for model in models for m in model.modules() if isinstance(m, LoRALayer)))
    trained = [p for group in groups for side in ("down", "up") for p in (getattr(one, side) for one in group.layers)]
    made = Operands.apply(groups, *trained) if groups else ()
    for group, down, up in zip(groups, made[::2], made[1::2], strict=True):  # type: ignore[index]
        group.operands = (down, up)
    try:
        yield
    finally:
        for group in groups:
            group.operands = None
            group.forget()


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as it was before LoRA was put in, to the bit."""
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    for layer in layers:
        layer.bypassed = True
    try:
        yield
    finally:
        for layer in layers:
            layer.bypassed = False


class _Linear(torch.autograd.Function):
    """Equations (1) and (2) of one linear map: x [... in] -> y [... out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, p: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        dropped, mask = drop_out(flat, p)
        h = torch.mm(dropped, down.t())
        y = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
        y.addmm_(h, up.t())
        ctx.save_for_backward(dropped, mask, h, weight, down, up)
        ctx.p, ctx.shape = p, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dropped, mask, h, weight, down, up = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        h_grad = torch.mm(grad, up)
        down_grad, up_grad, x_grad = torch.mm(h_grad.t(), dropped), torch.mm(grad.t(), h), None
        if ctx.needs_input_grad[0]:
            x_grad = torch.mm(grad, weight)
            if mask is None:
                x_grad.addmm_(h_grad, down)
            else:
                add_dropped_(x_grad, torch.mm(h_grad, down), mask, ctx.p)
            x_grad = x_grad.view(ctx.shape)
        return x_grad, None, None, down_grad, up_grad, None


class _Linears(torch.autograd.Function):
    """Equations (1) and (2) of n linear maps of one shape on one x [... in], each with a dropout of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, p: float, *frozen: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = frozen[::2], frozen[1::2]
        flat = x.reshape(-1, x.shape[-1])
        many = flat.expand(len(down), *flat.shape)
        dropped, mask = drop_out(many, p)
        h = torch.bmm(dropped, down.transpose(1, 2))
        y = flat.new_empty(len(down), len(flat), up.shape[1])
        for out, weight, bias in zip(y.unbind(), weights, biases, strict=True):
            assert weight is not None
            torch.mm(flat, weight.t(), out=out) if bias is None else torch.addmm(bias, flat, weight.t(), out=out)
        y.baddbmm_(h, up.transpose(1, 2))
        ctx.save_for_backward(dropped, mask, h, down, up, *weights)
        ctx.p, ctx.shape = p, x.shape
        return tuple(out.view(*x.shape[:-1], -1) for out in y.unbind())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dropped, mask, h, down, up, *weights = ctx.saved_tensors
        grad = torch.stack([one.reshape(-1, one.shape[-1]) for one in grads])
        h_grad = torch.bmm(grad, up)
        down_grad, up_grad = torch.bmm(h_grad.transpose(1, 2), dropped), torch.bmm(grad.transpose(1, 2), h)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grads = torch.bmm(h_grad, down)
            if mask is not None:
                x_grads = drop_out_(x_grads, mask, ctx.p)
            x_grad = x_grads.sum(0)
            for one, weight in zip(grad.unbind(), weights, strict=True):
                x_grad.addmm_(one, weight)
            x_grad = x_grad.view(ctx.shape)
        return x_grad, down_grad, up_grad, None, *[None] * (2 * len(weights))


class _Convolution(torch.autograd.Function):
    """Equations (1) and (2) of one convolution: x [B in h w] -> y [B out h' w']."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, p: float, *settings: Any
    ) -> Tensor:
        dropped, mask = drop_out(x, p)
        h = functional.conv2d(dropped, down, None, *settings)
        y = functional.conv2d(x, weight, bias, *settings)
        if y.is_contiguous():
            y.flatten(2).baddbmm_(up.flatten(1).expand(len(y), -1, -1), h.flatten(2))
        else:  # channels last: [B h' w' out] lies as one matrix
            y.permute(0, 2, 3, 1).view(-1, len(up)).addmm_(
                h.permute(0, 2, 3, 1).reshape(-1, len(down)), up.flatten(1).t()
            )
        ctx.save_for_backward(dropped, mask, h, weight, down, up)
        ctx.p, ctx.settings = p, settings
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dropped, mask, h, weight, down, up = ctx.saved_tensors
        grad, wanted = grads[0], ctx.needs_input_grad[0]
        h_grad, up_grad = _back(grad, h, up, ((1, 1), (0, 0), (1, 1)), (True, True))
        x_grad, down_grad = _back(h_grad, dropped, down, ctx.settings, (wanted, True))
        if wanted:
            whole = _back(grad, dropped, weight, ctx.settings, (True, False))[0]
            x_grad = whole.add_(x_grad) if mask is None else add_dropped_(whole, x_grad, mask, ctx.p)
        return x_grad, None, None, down_grad, up_grad, None, None, None, None


def _back(grad: Tensor, x: Tensor, weight: Tensor, settings: Any, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    """The gradients of a convolution's input and weight."""
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, False, (0, 0), 1, (*wanted, False))[:2]


def _space(group: Group, side: str) -> Tensor:
    """Room for A' or B' of a group, laid out as its frozen map is."""
    frozen, part = group.layers[0].weight, getattr(group.layers[0], side)
    if len(group.layers) > 1:
        return part.new_empty(len(group.layers), *part.shape, dtype=frozen.dtype)
    last = frozen.ndim == 4 and not frozen.is_contiguous()  # of 1 x 1, both are
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty_like(part, dtype=frozen.dtype, memory_format=layout)


def _each(group: Group, whole: Tensor) -> list[Tensor]:
    """The parts of the sites in what a group has together."""
    return [whole] if len(group.layers) == 1 else list(whole.unbind())


def _trains(module: nn.Module) -> bool:
    return is_transposed(module) or (isinstance(module, nn.Linear | nn.Conv2d) and is_site(module))


def _together(parent: nn.Module, layers: dict[str, LoRALayer]) -> Iterator[list[LoRALayer]]:
    """The sites of one module that are given the same tensor, if their names say what they usually do."""
    plain = {}
    for name, layer in layers.items():
        plain[DECORATIONS.sub("", name)] = layer
    crossed = getattr(parent, "is_cross_attention", False)  # diffusers': the query alone reads the picture
    for names in TOGETHER:
        alike: dict[Any, list[LoRALayer]] = {}
        for name in names[1:] if crossed else names:
            if name in plain and plain[name].is_plain and plain[name].weight.ndim == 2:
                shape = tuple(plain[name].matrix.shape), plain[name].weight.dtype
                alike.setdefault(shape, []).append(plain[name])
        yield from (some for some in alike.values() if len(some) > 1)
