"""A file of prompts through a bridge: token ids, hidden states and conditioning as tensors."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ....lavi_core import adapters
from ....lavi_core.adapters import ADAPTERS
from ....lavi_core.bridge import Bridge
from ....lavi_core.checkpoint import BridgeCheckpoint
from ....lavi_core.conditioning import HiddenStates
from ....lavi_core.config import AdapterConfig
from ....lavi_core.files import read_safetensors, write_safetensors
from ....lavi_core.language import TextEncoder, TokenBatch
from ....lavi_core.own_encoder import check_given
from ....lavi_core.prompt import shortened
from ....lavi_core.vision import NUM_TIMESTEPS
from .. import named, progress
from ..device import pick_device
from ..find_language import language_for
from ..own_encoder import OwnEncoder, load_ear

log = logging.getLogger(__name__)

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def encode(args: argparse.Namespace) -> str:
    """Write the tensors of ``encode_prompts``, or of ``encode_states``, to ``args.output``, whole or not at all, and
    return its path."""
    path = named.bridge(args.bridge)
    checkpoint = BridgeCheckpoint.load(path)
    if args.states is not None:
        if any(given is not None for given in (args.prompts, args.language_model, args.language_models)):
            raise ValueError("--states stands in the place of --prompts and --language-model(s): leave those out")
        write_safetensors(args.output, encode_states(checkpoint, args.states, args.timestep), {"format": "pt"})
        return args.output
    if args.prompts is None:
        raise ValueError("--prompts is needed, or --states in its place")
    prompts = read_prompts(args.prompts)
    device = pick_device("cpu" if args.stream and args.device is None else args.device)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    check_timestep(checkpoint.config.adapter.kind, args.timestep)
    ear, own = checkpoint.config.own_encoder, None
    check_given(bool(args.own_encoder), ear)
    if ear is not None:
        own = load_ear(path, ear, named.teacher(args.own_encoder), checkpoint.config.vision).to(device)
    source, dtype = language_for(path, args.language_model, args.language_models), DTYPES[args.precision]
    encoder = TextEncoder.load(source, dtype=dtype, device=device, stream=args.stream)
    bridge = Bridge.connect(checkpoint, encoder, lora="live" if args.stream else "merged")
    tensors = encode_prompts(bridge, prompts, args.batch_size, args.timestep, own)
    write_safetensors(args.output, tensors, {"format": "pt", "bridge": path.name})
    return args.output


@torch.no_grad()
def encode_prompts(
    bridge: Bridge,
    prompts: Sequence[str],
    batch_size: int = 8,
    timestep: float | None = None,
    own: OwnEncoder | None = None,
) -> dict[str, Tensor]:
    """Everything between prompts and vision model, on the CPU, a row a prompt.

    input_ids, attention_mask: [N T] int64, the template's tokens included; attention_mask is 1 for a real token.
    queries: [N Q] int64, ids of the second tokenizer, or [N R 3], the rows that a prompt is cut into (``row_refiner``),
        -1 behind a shorter prompt; of an adapter that asks with them.
    hidden_states: [N S D] float32, with the language LoRA; S = T unless the recipe cuts the template. Where the recipe
        hears several layers, they lie side by side on the width.
    context: [N S C] float32, what the vision model hears; [N adapter.tokens C] of an adapter with tokens of its own,
        [N Q C] of one that asks, and those of the own encoder before or behind them, of a bridge that was trained
        beside one.
    mask: [N S] bool, the positions of context that the vision model attends to; all of them where it is given no mask,
        but what fills up a shorter prompt that was encoded alone (``PromptRecipe.varies_with_batch``).
    pooled: [N P] float32, only where the adapter has a pooled head, or the own encoder gives one.

    timestep: for an adapter that hears it, see ``Adapter.forward``. own: see ``Bridge.adapt``, to be asked here.
    """

    recipe, ear = bridge.config.prompt, bridge.config.own_encoder
    tokens = bridge.tokenize(prompts, recipe)
    for prompt, report in zip(prompts, tokens.reports, strict=True):
        if report.cut:
            log.warning("the last %d tokens of %r are not heard: the bridge hears fewer", report.cut, shortened(prompt))
        if bridge.queries is not None and (lost := bridge.queries.cut_off(prompt)):
            log.warning("%s", lost)
    device = bridge.encoder.computes_on
    parts: dict[str, list[Tensor]] = {"hidden_states": [], "context": [], "mask": [], "pooled": []}
    batches = (_rows(tokens, slice(i, i + batch_size)) for i in range(0, len(prompts), batch_size))
    if recipe.varies_with_batch:
        batches = (bridge.tokenize([prompt], recipe) for prompt in prompts)
    with progress.bar(total=len(prompts), desc="encoding", unit="prompt") as bar:
        told = iter(prompts)
        for batch in batches:
            hidden = bridge.encoder(batch.to(device), recipe)
            some = list(islice(told, len(batch.ids)))
            beside = None if own is None or ear is None else own.heard(some, ear.prompt)
            conditioning = bridge.adapt(hidden, None if timestep is None else torch.tensor(timestep), beside)
            whole = torch.ones(conditioning.context.shape[:2], dtype=torch.bool)
            mask = whole if conditioning.mask is None else conditioning.mask
            found = {"hidden_states": hidden.states.float(), "context": conditioning.context, "mask": mask}
            if conditioning.pooled is not None:
                found["pooled"] = conditioning.pooled
            for name, tensor in found.items():
                parts[name].append(tensor.cpu())
            bar.update(len(batch.ids))
    joined = {name: _join(tensors) for name, tensors in parts.items() if tensors}
    asked = {} if tokens.queries is None else {"queries": tokens.queries}
    return {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), **asked, **joined}


@torch.no_grad()
def encode_states(checkpoint: BridgeCheckpoint, file: str | Path, timestep: float | None = None) -> dict[str, Tensor]:
    """context, mask and pooled, as ``encode_prompts`` has them, of states that a file has: hidden_states [N T D], mask
    [N T] (without one all are heard), timesteps [N] and, of an adapter that asks, queries as there. Raises ValueError
    for a file without them, or of other sizes.
    """
    found, config = read_safetensors(file), checkpoint.config
    states, mask, timesteps = (found.get(name) for name in ("hidden_states", "mask", "timesteps"))
    if states is None or states.ndim != 3 or states.shape[2] != config.adapter.state_width:
        shape = "none" if states is None else list(states.shape)
        raise ValueError(
            f"{file} has hidden_states of shape {shape}, the bridge takes [N, T, {config.adapter.state_width}]"
        )
    mask = torch.ones(states.shape[:2]) if mask is None else mask
    if mask.shape != states.shape[:2]:
        raise ValueError(f"{file} has a mask of shape {list(mask.shape)}, its states are {list(states.shape)}")
    if timesteps is None or timestep is not None:
        check_timestep(config.adapter.kind, timestep)
        timesteps = None if timestep is None else torch.tensor(timestep)
    adapter = adapters.build(config.adapter).eval()
    adapter.load_state_dict(checkpoint.adapter)
    queries = found.get("queries") if adapter.asks else None
    if queries is not None:
        _check_queries(queries, len(states), states.shape[1], config.adapter, file)
    said = adapter(HiddenStates(states.float(), mask.bool(), queries), timesteps)
    whole = torch.ones(said.context.shape[:2], dtype=torch.bool)
    masked = whole if said.mask is None or not (config.prompt.vision_mask or adapter.asks) else said.mask
    return {"context": said.context, "mask": masked} | ({} if said.pooled is None else {"pooled": said.pooled})


def _check_queries(queries: Tensor, rows: int, length: int, adapter: AdapterConfig, file: str | Path) -> None:
    shape, kind = list(queries.shape), str(queries.dtype).removeprefix("torch.")
    asks, vocabulary = ADAPTERS[adapter.kind].asks, adapter.vocabulary or 0
    wanted = [rows, *queries.shape[1:2], *([3] if asks == "rows" else [])]
    whole = not queries.is_floating_point() and queries.dtype != torch.bool
    if shape != wanted or not whole or not queries.numel():
        more = ", 3" if asks == "rows" else ""
        raise ValueError(
            f"{file} has queries of shape {shape} and {kind}, the bridge takes [{rows}, Q{more}] of whole numbers"
        )
    if asks == "rows":
        first, stop, constant = (part[queries[..., 0] >= 0] for part in queries.unbind(-1))
        ordered = (first <= stop) & (stop <= length) & (constant >= 0) & (constant < vocabulary)
        if not bool(ordered.all()):
            raise ValueError(
                f"{file} has rows that are none of its {length} states with one of the adapter's {vocabulary} constants"
            )
        return
    highest = int(queries.max())
    if highest >= vocabulary:
        raise ValueError(
            f"{file} has the query id {highest}, the adapter knows {vocabulary} ids: they are of another "
            "tokenizer than it was trained with"
        )


def check_timestep(kind: str, timestep: float | None) -> None:
    """Raise ValueError for a timestep that an adapter of this kind needs and is not given, or does not hear."""
    if ADAPTERS[kind].hears_timestep:
        if timestep is None or not 0 <= timestep <= NUM_TIMESTEPS:
            raise ValueError(
                f"this bridge's adapter ({kind}) says something else at each timestep: give --timestep, from 0 (the "
                f"picture) to {NUM_TIMESTEPS} (noise), got {timestep}"
            )
    elif timestep is not None:
        raise ValueError(f"--timestep is {timestep}, but this bridge's adapter ({kind}) does not hear it: leave it out")


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line. An empty line is the empty prompt; the newline at the end begins no further one."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of prompts {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from None
    if not text:
        raise ValueError(f"{path} is empty; it needs at least one line, which is one prompt")
    return text.removesuffix("\n").split("\n")


def _rows(tokens: TokenBatch, rows: slice) -> TokenBatch:
    keep, queries = (None if part is None else part[rows] for part in (tokens.keep, tokens.queries))
    return TokenBatch(tokens.ids[rows], tokens.mask[rows], keep, tokens.reports[rows], queries)


def _join(parts: list[Tensor]) -> Tensor:
    """One tensor of all batches. Where a template is cut, each is as long as its own longest prompt: the others are
    filled up with zeros, which no mask attends to."""
    if len({part.shape[1] for part in parts}) == 1:
        return torch.cat(parts)
    length = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * (part.ndim - 2) + (0, length - part.shape[1])) for part in parts])
