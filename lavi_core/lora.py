"""Low-rank deltas (arXiv 2106.09685): by module path, checked before use, and every use reversible."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .peft_config import HEADS, check_plain
from .quantized.modules import Quantized
from .quantized.unpacking import Unpacking

log = logging.getLogger(__name__)

# Parts of larger models beside the trunk that turns tokens into states, by the names that transformers gives them.
OTHER_PARTS = {
    *("decoder", "vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder", "audio_tower"),
    *("multi_modal_projector", "mm_projector", "connector", "qformer"),
    *("talker", "token2wav", "mtp", "depth_decoder", "code2wav", "audio_encoder"),
}


class Delta(NamedTuple):
    """delta W = scale * up @ down, for one linear map or convolution of shape [out in (kh kw)]."""

    down: Tensor  # [r in (kh kw)]
    up: Tensor  # [out r (1 1)]
    scale: float


LoRA = Mapping[str, Delta]  # module path -> Delta


class Applied:
    """A LoRA in place. ``remove()`` takes it away again; removing twice is harmless. ``active``: not yet removed."""

    def __init__(self, undo: list[Callable[[], None]]):
        self._undo = undo

    @property
    def active(self) -> bool:
        return bool(self._undo)

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()


def is_site(module: nn.Module) -> bool:
    """Whether a delta can be added to ``module``: a linear map (GPT-2's transposed one too) or a plain convolution."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return _is_linear(module) or is_transposed(module)


def check(model: nn.Module, lora: LoRA) -> None:
    """Raise ValueError, naming both sides of the first mismatch, unless every delta fits a module of ``model``."""
    modules = dict(model.named_modules())
    for path, delta in lora.items():
        module = modules.get(path)
        if module is None:
            raise ValueError(f"the LoRA has a delta for {path}, {type(model).__name__} has no such module")
        if not is_site(module):
            raise ValueError(f"the LoRA has a delta for {path}, which is a {type(module).__name__}, not a linear map")
        down, up = shapes(module, delta.down.shape[0])
        if (tuple(delta.down.shape), tuple(delta.up.shape)) != (down, up):
            raise ValueError(
                f"the LoRA's delta for {path} has shapes {tuple(delta.down.shape)} and {tuple(delta.up.shape)}, "
                f"{type(model).__name__} needs {down} and {up}"
            )


def rebase(model: nn.Module, lora: LoRA) -> LoRA:
    """The same deltas by the paths of ``model``, where the LoRA was trained on a larger model that holds it.

    A LoRA of a causal LM names "model.layers.0...", its trunk alone "layers.0...". Deltas of what is not in the trunk
    (a decoder, a vision tower, a head) are left out and named in the log. What does not fit otherwise is left to
    ``check`` to refuse.
    """
    modules = {name for name, _ in model.named_modules()}
    found: dict[str, Delta] = {}
    left: list[str] = []
    for path, delta in lora.items():
        parts = path.split(".")
        cuts = (i for i in range(len(parts)) if ".".join(parts[i:]) in modules and not OTHER_PARTS & set(parts[:i]))
        cut = next(cuts, None)
        if cut is None and (OTHER_PARTS | HEADS) & set(parts):
            left.append(path)
        elif (place := ".".join(parts[cut or 0 :])) in found:
            raise ValueError(
                f"the LoRA has two deltas for {place} of {type(model).__name__}, one of them by the name {path}: it "
                "was trained on a model of several parts; save the one for the language model by itself"
            )
        else:
            found[place] = delta
    if left and not found:
        raise ValueError(f"the LoRA adapts no part of {type(model).__name__}, its first delta is for {left[0]}")
    if left:
        log.warning("%d of %d deltas of the LoRA are of no use here, being of %s", len(left), len(lora), _names(left))
    return found


def _names(paths: list[str]) -> str:
    """The parts of a larger model that these modules lie in."""
    parts = (next(part for part in path.split(".") if part in OTHER_PARTS | HEADS) for path in paths)
    return ", ".join(sorted(set(parts)))


@torch.no_grad()
def merge(model: nn.Module, lora: LoRA, strength: float = 1.0) -> Applied:
    """Add the deltas to the weights. The originals are kept, so that ``remove()`` restores them to the bit; of several
    merges the last is removed first.

    A weight that is kept quantised stays as it is: there the delta is live, as by ``attach``.
    Raises ValueError as ``check`` does, and for weights that are streamed or packed by another library: use ``attach``.
    """
    check(model, lora)
    undo: list[Callable[[], None]] = []
    for path, delta in lora.items() if strength else ():
        module = model.get_submodule(path)
        if isinstance(module, Quantized | Unpacking):
            undo.append(module.register_forward_hook(_live(delta, strength * delta.scale)).remove)
            continue
        original = module.weight
        assert isinstance(original, nn.Parameter)
        change = _dense(delta, original.device).mul_(strength)
        change = change.T if is_transposed(module) else change
        if original.is_meta:
            Applied(undo).remove()
            raise ValueError(f"the weights of {path} are streamed from disk and take no merge; keep the LoRA live")
        if change.shape != original.shape or not original.is_floating_point():
            Applied(undo).remove()
            raise ValueError(f"{path} is quantised ({type(module).__name__}) and takes no merge; keep the LoRA live")
        merged = (original.float() + change).to(original.dtype)
        module.weight = nn.Parameter(merged, requires_grad=original.requires_grad)
        undo.append(lambda module=module, original=original: _restore(module, original))
    return Applied(undo)


def attach(model: nn.Module, lora: LoRA, strength: float = 1.0) -> Applied:
    """Add each delta's output to its module's output by a forward hook; weights are untouched. No dropout.

    Raises ValueError as ``check`` does.
    """
    check(model, lora)
    undo: list[Callable[[], None]] = []
    for path, delta in lora.items() if strength else ():
        hook = model.get_submodule(path).register_forward_hook(_live(delta, strength * delta.scale))
        undo.append(hook.remove)
    return Applied(undo)


def from_peft(folder: str | Path) -> LoRA:
    """Read a folder that peft's ``save_pretrained`` wrote; ``rebase`` it where it was trained on a model with a head.

    Raises ValueError for a file that is missing, and for what is no plain LoRA, see ``peft_config.py``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, so it is not a LoRA saved by peft as safetensors")
    try:
        config = dict(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
        alpha, pattern = float(config["lora_alpha"]), dict(config.get("alpha_pattern") or {})
        for key in pattern:
            re.compile(key)
        state = load_file(str(folder / "adapter_model.safetensors"))
    except (ValueError, TypeError, KeyError, re.error, SafetensorError) as error:
        raise ValueError(
            f"{folder} is damaged or no LoRA of peft ({type(error).__name__}: {str(error)[:100]}); save it again"
        ) from error
    check_plain(config, folder)
    if not state:
        raise ValueError(f"{folder} holds no tensor in its adapter_model.safetensors; save it again")
    return from_peft_state(state, alpha=alpha, alpha_pattern=pattern, rslora=bool(config.get("use_rslora")))


def from_peft_state(
    state: Mapping[str, Tensor], *, alpha: float, alpha_pattern: Mapping[str, float] | None = None, rslora: bool = False
) -> LoRA:
    """peft's LoRA state dict (``get_peft_model_state_dict``) -> deltas. Ranks are read from the tensors.

    scale = alpha / r, or alpha / sqrt(r) with rslora (arXiv 2312.03732). alpha_pattern: regex of a module path's end ->
    alpha, as in peft. Raises ValueError for a tensor that is no half of a LoRA pair.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.(?:[^.]+\.)?weight", key)
        if found is None and HEADS & set(key.split(".")):
            log.warning("%s is of a head, which is of no use here", key)
            continue
        if found is None:
            raise ValueError(f"{key} is not one half of a LoRA pair")
        halves.setdefault(found[1], {})[found[2]] = tensor
    lora = {}
    for path, pair in halves.items():
        if len(pair) != 2:
            raise ValueError(f"the LoRA of {path} has only its {'down' if 'A' in pair else 'up'} matrix")
        if min(pair["A"].ndim, pair["B"].ndim) < 2 or not pair["A"].shape[0]:
            raise ValueError(f"the LoRA of {path} has halves of {tuple(pair['A'].shape)} and {tuple(pair['B'].shape)}")
        rank = pair["A"].shape[0]
        own = next((a for p, a in (alpha_pattern or {}).items() if re.match(rf"(.*\.)?({p})$", path)), alpha)
        lora[path] = Delta(pair["A"].detach(), pair["B"].detach(), own / (math.sqrt(rank) if rslora else rank))
    return lora


def _is_linear(module: nn.Module) -> bool:
    """nn.Linear, or a class with its fields that keeps its weight packed (ComfyUI's); told by these, not imported."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) or (
        all(hasattr(module, field) for field in ("in_features", "out_features"))
        and isinstance(weight, Tensor)
        and weight.ndim == 2
    )


def is_transposed(module: nn.Module) -> bool:
    """transformers' Conv1D, a linear map with its weight as [in out]; told by its fields, not imported."""
    weight = getattr(module, "weight", None)
    return not isinstance(module, nn.Linear) and hasattr(module, "nf") and hasattr(module, "nx") and weight is not None


def shapes(module: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of down and up in a delta of this rank for a site."""
    if isinstance(module, nn.Conv2d):
        return (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
    ins, outs = (module.nx, module.nf) if is_transposed(module) else (module.in_features, module.out_features)
    assert isinstance(ins, int) and isinstance(outs, int)
    return (rank, ins), (outs, rank)


def _dense(delta: Delta, device: torch.device) -> Tensor:
    """scale * up @ down in float32. -> [out in (kh kw)]"""
    down, up = (t.detach().to(device, torch.float32) for t in (delta.down, delta.up))
    return ((up.flatten(1) @ down.flatten(1)) * delta.scale).reshape(up.shape[0], *down.shape[1:])


def _restore(module: nn.Module, original: nn.Parameter) -> None:
    """Put the original parameter back, where and in the dtype that the module has meanwhile been moved to."""
    now = module.weight
    assert isinstance(now, Tensor)
    if (now.device, now.dtype) != (original.device, original.dtype):
        original = nn.Parameter(original.detach().to(now.device, now.dtype), requires_grad=original.requires_grad)
    module.weight = original


def _live(delta: Delta, scale: float) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # I-BERT's maps give the scale of integers beside
            return hook(module, args, output[0]), *output[1:]
        x: Tensor = args[0]
        down, up = delta.down.to(x.device, x.dtype), delta.up.to(x.device, x.dtype)
        if isinstance(module, nn.Conv2d):
            h = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
            return output + scale * F.conv2d(h, up)
        return output + scale * F.linear(F.linear(x, down), up)

    return hook
