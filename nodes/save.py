"""Save Bridge: a bridge as it is heard in this graph, in the pack's own format.

The host's savers of a CLIP write the language model without the adapter, so they are refused (see ``clip_tokens``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from comfy_api.latest import io

from . import lora
from .bridge import ConnectedBridge
from .notice import notice, take_back
from .schema import BridgeWire, schema
from .vision import keys_of
from .window import WINDOW


def deltas(patcher: ModelPatcher, paths: Mapping[Any, str], of: str, within: str = "") -> dict[str, Any]:
    """The patches of a model as the core's deltas, several at one place as one of their ranks together.

    paths: the host's weight key, or (key, part of a fused weight), -> module path. of: the model, for messages. within:
    how its keys begin: a CLIP of two encoders is patched in both.
    Raises ValueError for a patch that is no plain LoRA, or lies where a bridge has no name for.
    """
    from ..lavi_core.lora import Delta

    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for key, patches in ((key, some) for key, some in patcher.patches.items() if key.startswith(within)):
        for strength, value, strength_model, offset, function in patches:
            path = paths.get(key if offset is None else (key, offset))
            weights = value.weights if isinstance(value, WeightAdapterBase) and value.name == "lora" else None
            if path is None or weights is None or function is not None or strength_model != 1.0:
                raise ValueError(
                    f"{of} is patched at {key} with more than LoRAs that a bridge can hold (a merge of models, LoCon, "
                    "DoRA): take those out, or give the model before them"
                )
            up, down, alpha, *more = weights
            if any(part is not None for part in more):
                raise ValueError(f"{of} has a LoRA at {key} that is no plain one (LoCon, DoRA): take it out")
            factor = strength * (1.0 if alpha is None else float(alpha) / down.shape[0])
            found.setdefault(path, []).append((down.float(), up.float() * factor))
    joined = {path: zip(*parts, strict=True) for path, parts in found.items()}
    return {
        path: Delta(torch.cat(list(downs)), torch.cat(list(ups), dim=1), 1.0) for path, (downs, ups) in joined.items()
    }


def saved(bridge: ConnectedBridge, model: ModelPatcher | None) -> Any:
    """The core's BridgeCheckpoint: the adapter, and the LoRAs with their strengths; without a ``model`` the bridge's
    own vision LoRA as it was trained. Raises ValueError, see ``deltas``."""
    from ..lavi_core.checkpoint import BridgeCheckpoint
    from ..lavi_core.lora import is_site
    from ..lavi_core.vision import VISION_TARGETS
    from ..lavi_core.vision.keys import apart

    shell = bridge.clip.cond_stage_model
    trunk, prefix = shell.encoder.model, shell.language.prefix
    sites = {f"{prefix}{path}.weight": path for path, module in trunk.named_modules() if is_site(module)}
    language = deltas(bridge.patcher, sites, shell.encoder.config.model_id, prefix)
    language = {path: lora.turned(trunk.get_submodule(path), delta) for path, delta in language.items()}
    vision = dict(bridge.vision_lora)
    if model is not None:
        if (window := model.get_attachment(WINDOW)) is not None:
            raise ValueError(
                f"the LoRA acts from {window[0]:g} to {window[1]:g} of the sampling in this model, which a bridge file "
                "does not hold: set start_percent to 0 and end_percent to 1 in Apply Bridge to Model"
            )
        found = deltas(model, {key: name for name, key in keys_of(model, bridge).items()}, "this model")
        vision = apart(found, bridge.vision_lora, VISION_TARGETS[bridge.config.vision.target].keys)
        if bridge.vision_lora and not vision:
            notice(
                f"the saved bridge has no LoRA for its vision model, since this model has not that of {bridge.name}: "
                "connect the MODEL of Apply Bridge to Model, or none for the LoRA as it was trained"
            )
    sizes = {"language_lora": _size(language), "vision_lora": _size(vision)}
    provenance = {**bridge.config.provenance, "saved from": bridge.name}
    config = replace(bridge.config, **sizes, provenance=provenance)
    queries = None if shell.queries is None else shell.queries.json
    return BridgeCheckpoint(config, _narrow(shell.adapter.state_dict()), _halved(language), _halved(vision), queries)


def _halved(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same deltas, see ``_narrow``."""
    parts = _narrow({(path, part): getattr(delta, part) for path, delta in found.items() for part in ("down", "up")})
    return {path: delta._replace(down=parts[path, "down"], up=parts[path, "up"]) for path, delta in found.items()}


def _narrow(tensors: Mapping[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
    """In 16 bits where that loses nothing: what was loaded from a half-precision file and not scaled."""
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in numbers.values()):
            return {**tensors, **{name: tensor.to(dtype) for name, tensor in numbers.items()}}
    return dict(tensors)


def _size(found: Mapping[str, Any]) -> Any:
    from ..lavi_core.config import LoRAConfig

    if not found:
        return None
    delta = next(iter(found.values()))
    rank = delta.down.shape[0]
    return LoRAConfig(rank=rank, alpha=delta.scale * rank)


class SaveBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeSave",
            display_name="Save Bridge (LaVi-Bridge)",
            description="Writes a bridge as it is heard here, LoRAs and their strengths included, as one bridge file.",
            search_aliases=["save clip", "save checkpoint", "merge", "export"],
            inputs=[
                BridgeWire.Input("bridge", tooltip="From Load Bridge; LoRAs added to its language model are included."),
                io.String.Input(
                    "filename_prefix",
                    default="lavi_bridges/bridge",
                    tooltip="Where in the output folder. Move the file to models/lavi_bridges to load it.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="From Apply Bridge to Model: its LoRA and strength. None: the bridge's own, as trained.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bridge: ConnectedBridge, filename_prefix: str, model: ModelPatcher | None = None) -> io.NodeOutput:
        take_back()
        checkpoint = saved(bridge, model)
        folder, name, counter, *_ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{folder}/{name}_{counter:05}_.safetensors"
        checkpoint.save(file)
        return io.NodeOutput(file)
