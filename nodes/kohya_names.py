"""Names under which the host's LoRA loaders look for kohya's ("lora_te_...") in a language model that is ours.

They make these from the names that their own text encoders' weights have (``comfy.lora.model_lora_keys_clip``), so ours
have such a name as well; what is patched by it is patched where the weight is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import nn

from .notice import notice

MERGED = "lavi_merged"  # the attachment of one that a merger's notice was given for
NAMES = "lavi_kohya_names"  # the attachment of a CLIP's patcher: the name that the host looks for -> the weight's key


def _clip(path: str) -> str:
    return f"clip_l.transformer.text_model.{path.removeprefix('text_model.')}"


def _t5(path: str) -> str:
    return f"t5xxl.transformer.{path}"


def _alone(path: str) -> str:
    """As of an encoder that is the only one of its CLIP: known to the host since 0.33, before it all stay unknown."""
    return f"model.transformer.model.{path}"


HOST_NAMES: Mapping[str, Callable[[str], str]] = {"clip": _clip, "t5": _t5, "mt5": _t5, "umt5": _t5}


def kohya_names(trunk: nn.Module, family: str, prefix: str) -> dict[str, str]:
    """The host's name of each linear map's weight -> its key. GPT-2's maps, which keep their weight turned, have none:
    the loader names them as not found instead of patching them the wrong way round."""
    from ..lavi_core.lora import is_site, is_transposed

    name_of = HOST_NAMES.get(family, _alone)
    sites = [path for path, module in trunk.named_modules() if is_site(module) and not is_transposed(module)]
    return {f"{name_of(path)}.weight": f"{prefix}{path}.weight" for path in sites}


class _ByEitherName(ModelPatcher):
    def add_patches(self, patches: Mapping[Any, Any], *args: Any, **kwargs: Any) -> Iterable[Any]:
        if any(isinstance(patch, list) for patch in patches.values()) and not self.get_attachment(MERGED):
            self.set_attachments(MERGED, True)  # the host's mergers of CLIPs add weight by weight
            notice(
                "the language models of two CLIPs are merged here, not their adapters: that of the first bridge stays"
            )
        names = self.get_attachment(NAMES) or {}
        landed = super().add_patches({names.get(key, key): patch for key, patch in patches.items()}, *args, **kwargs)
        found = set(landed)
        return [key for key in patches if names.get(key, key) in found]


@cache
def _kind(kind: type) -> type:
    return type(kind.__name__, (_ByEitherName, kind), {})


def hear_kohya(patcher: ModelPatcher, names: Mapping[str, str]) -> None:
    """Let a patcher, and its clones, be patched by either name."""
    patcher.set_attachments(NAMES, dict(names))
    patcher.__class__ = _kind(type(patcher))
