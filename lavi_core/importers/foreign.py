"""Files of other projects' adapters as bridges: which they are, by their tensors' names and shapes, and the table."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import adapters
from ..checkpoint import BridgeCheckpoint
from ..config import AdapterConfig, BridgeConfig, VisionConfig
from ..files import read_safetensors, reading
from ..foreign_files import what_it_is
from ..language import TextEncoder
from ..language.gguf_file import gguf_plain, gguf_shapes, is_gguf
from ..language.query_tokenizer import QueryTokenizer, check_queries
from ..language.tokens import cut_tokens
from ..prompt import PromptRecipe
from ..registry import Registry
from .anima import ANIMA
from .anima_t5free import ANIMA_T5FREE
from .dialect import Dialect, Preset, Shapes
from .distill_t5 import DISTILL_T5
from .ella import ELLA
from .gguf_trainer import GGUF_TRAINER
from .key_map import joined, theirs_of
from .pickles import read_pickle
from .qwen_sdxl import QWEN_SDXL
from .rouwei import ROUWEI, ROUWEI_TURBO, ROUWEI_UNFUSED, ROUWEI_UNFUSED_O

FOREIGN: Registry[Dialect] = Registry(
    "foreign format",
    {
        "ella": ELLA,
        "rouwei": ROUWEI,
        "rouwei_unfused": ROUWEI_UNFUSED,
        "rouwei_unfused_o": ROUWEI_UNFUSED_O,
        "rouwei_turbo": ROUWEI_TURBO,
        "qwen_sdxl": QWEN_SDXL,
        "distill_t5": DISTILL_T5,
        "anima": ANIMA,
        "gguf_trainer": GGUF_TRAINER,
        "anima_t5free": ANIMA_T5FREE,
    },
)


def dialect_of(path: str | Path) -> str | None:
    """The row of ``FOREIGN`` that a file is of, from its header alone; None for any other file."""
    return _found(_shapes(Path(path)))


def presets(path: str | Path) -> tuple[str, ...]:
    """Names of the presets of a foreign file: the one that its shapes tell, or all that there are to choose from."""
    shapes = _shapes(Path(path))
    row = FOREIGN[_named(shapes)]
    fitting = _fitting(row.own(shapes), row)
    return fitting if len(fitting) == 1 else tuple(row.presets)


def read_foreign_config(
    path: str | Path,
    preset: str | None = None,
    *,
    encoder: TextEncoder | None = None,
    vision: VisionConfig | None = None,
    heads: int | None = None,
    prompt: Mapping[str, Any] | None = None,
) -> BridgeConfig:
    """What ``read_foreign`` gives as its config; the header alone is read."""
    return _config(_shapes(Path(path)), preset, encoder, vision, heads, prompt or {})[0]


def read_foreign(
    path: str | Path,
    preset: str | None = None,
    *,
    encoder: TextEncoder | None = None,
    vision: VisionConfig | None = None,
    heads: int | None = None,
    prompt: Mapping[str, Any] | None = None,
    query_tokenizer: str | Path | None = None,
) -> BridgeCheckpoint:
    """A file of a row of ``FOREIGN`` as a bridge; tensors keep their dtypes.

    preset: a row of the format's presets, for what the file does not say; None = the only one, or the one whose
    published sizes the file has. encoder, vision: of the models that it is for, whose widths are checked; the weights
    are not read, so the former may be on the meta device. Without them the bridge records what the preset says, with no
    fingerprint, and is checked by the width. heads, prompt: values in place of the preset's. query_tokenizer: of an
    adapter that asks with the ids of a second tokenizer, the tokenizer.json or its folder.

    The presets' ``max_length`` is of what is heard: with an encoder's tokenizer at hand, the tokens of a template that
    are cut from the states are added to it, counted by tokenising.

    Raises ValueError, in one sentence, for a file of no known format, a tensor that is missing, left over or of another
    shape, a preset or tokenizer that is needed and not named, and for models of other widths.
    """
    shapes = _shapes(Path(path))
    config, names = _config(shapes, preset, encoder, vision, heads, prompt or {})
    queries = _queries(shapes, config, query_tokenizer)
    wanted = [name for theirs in names.values() for name in theirs]
    return BridgeCheckpoint(config, joined(_tensors(Path(path), wanted), names), query_tokenizer=queries)


def _queries(shapes: Shapes, config: BridgeConfig, path: str | Path | None) -> str | None:
    """The text of what the adapter asks with: of the second tokenizer, whose ids it knows, or of the file's own."""
    row = FOREIGN[_named(shapes)]
    if row.query_tokenizer is None:
        if path is not None:
            raise ValueError(f"{shapes.where} is {row.what}, which asks with no second tokenizer: leave out {path}")
        return json.dumps(_texts(shapes, row)) if row.texts else None
    if path is None:
        raise ValueError(
            f"{shapes.where} is {row.what}, which asks with the ids of a second tokenizer, {row.query_tokenizer}, that "
            "the file does not hold: name its tokenizer.json (--query-tokenizer, adapter.query_tokenizer)"
        )
    queries = QueryTokenizer.load(path)
    check_queries(config.adapter, queries)
    return queries.json


def _texts(shapes: Shapes, row: Dialect) -> dict[str, str]:
    """What a file of a row with ``texts`` says in words, by part. Raises ValueError for a file without."""
    absent = next((name for name in row.texts.values() if name not in shapes), None)
    if absent is not None:
        raise ValueError(
            f"{shapes.where} is {row.what} without {absent}, by which prompts are cut into its rows: take the text "
            "encoder's file, which holds both"
        )
    found = _tensors(Path(shapes.where), row.texts.values())
    odd = next((name for name, tensor in found.items() if tensor.dtype != torch.uint8 or tensor.ndim != 1), None)
    if odd is not None:
        raise ValueError(f"{odd} of {shapes.where} is no text in bytes; fetch it again")
    try:
        return {part: bytes(found[name].numpy()).decode() for part, name in row.texts.items()}
    except UnicodeDecodeError as error:
        raise ValueError(f"the texts in {shapes.where} are not UTF-8 ({error}); fetch it again") from None


def _config(
    shapes: Shapes,
    preset: str | None,
    encoder: TextEncoder | None,
    vision: VisionConfig | None,
    heads: int | None,
    changed: Mapping[str, Any],
) -> tuple[BridgeConfig, dict[str, tuple[str, ...]]]:
    name = _named(shapes)
    row = FOREIGN[name]
    texts = _texts(shapes, row) if row.texts else {}
    prefix, shapes = row.prefix(shapes), row.own(shapes)
    chosen, said = _preset(shapes, row, preset)
    if row.told is not None:
        said = row.told(said, texts)
    adapter = row.adapter(shapes, said.heads if heads is None else heads)
    names = _checked(shapes, row, adapter)
    if encoder is not None and encoder.config.hidden_size * said.prompt.stacked != adapter.in_width:
        raise ValueError(
            f"{shapes.where} is {row.what} for a language model of width {adapter.in_width} ({said.model_id}), "
            f"{encoder.config.model_id} has {encoder.config.hidden_size}: name the former's folder"
        )
    published = row.vision(adapter)
    if vision is not None and vision.context_width != adapter.out_width:
        raise ValueError(
            f"{shapes.where} is {row.what} for a vision model of context width {adapter.out_width} "
            f"({published.model_id}), {vision.model_id} has {vision.context_width}: name another vision model"
        )
    provenance: dict[str, Any] = {"imported": row.what, "format": name, "file": Path(shapes.where).name}
    provenance |= {"preset": chosen, "preset_source": said.source}
    if heads is not None or changed:
        provenance["changed"] = dict(changed) | ({} if heads is None else {"heads": heads})
    language = said.language(adapter.in_width // said.prompt.stacked) if encoder is None else encoder.config
    config = BridgeConfig(
        language=language,
        prompt=replace(_prompt(said, adapter.positions, encoder), **changed),
        adapter=adapter,
        vision=published if vision is None else replace(vision, other_pooled=published.other_pooled),
        provenance=provenance,
    )
    return config, {ours: tuple(f"{prefix}{their}" for their in theirs) for ours, theirs in names.items()}


def _preset(shapes: Shapes, row: Dialect, name: str | None) -> tuple[str, Preset]:
    known = Registry(f"preset of {row.what}", row.presets)
    if name is not None:
        return name, known[name]
    fitting = _fitting(shapes, row)
    if len(fitting) != 1:
        raise ValueError(
            f"{shapes.where} is {row.what}, and does not say how prompts become its states: name a preset, "
            f"{' or '.join(known)}"
        )
    return fitting[0], known[fitting[0]]


def _fitting(shapes: Shapes, row: Dialect) -> tuple[str, ...]:
    """Presets that may be taken unasked: those of the published sizes; of one alone, whatever the sizes."""
    known = {name: one for name, one in row.presets.items() if not one.if_named}
    fitting = tuple(name for name, one in known.items() if one.fits(row.adapter(shapes, one.heads)))
    return fitting or (tuple(known) if len(known) == 1 else ())


def _prompt(preset: Preset, positions: int | None, encoder: TextEncoder | None) -> PromptRecipe:
    """positions: the most states that the adapter hears; None = any number."""
    recipe = preset.prompt
    if positions is not None:
        recipe = replace(recipe, max_length=min(recipe.max_length, positions))
    if encoder is None:
        return recipe
    if preset.own_side:
        own = getattr(encoder.tokenizer, "init_kwargs", {}).get("padding_side", encoder.tokenizer.padding_side)
        recipe = replace(recipe, padding_side=own)
    return replace(recipe, max_length=recipe.max_length + cut_tokens(encoder.tokenizer, recipe))


def _checked(shapes: Shapes, row: Dialect, config: AdapterConfig) -> dict[str, tuple[str, ...]]:
    """Our names -> theirs, once every shape was looked at."""
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in adapters.build(config).state_dict().items()}
    names = theirs_of(wanted, row.keys)
    for ours, theirs in names.items():
        shape = (wanted[ours][0] // len(theirs), *wanted[ours][1:]) if wanted[ours] else ()
        for name in theirs:
            if shapes[name] != shape:
                raise ValueError(
                    f"{name} of {shapes.where} has shape {list(shapes[name])}, {row.what} of its widths has "
                    f"{list(shape)}; fetch it again"
                )
    taken = {name for theirs in names.values() for name in theirs}
    leftover = sorted(name for name in shapes.keys() - taken if not name.startswith(row.elsewhere))
    if leftover:
        raise ValueError(
            f"{shapes.where} is {row.what}, but {len(leftover)} of its tensors have no place in one, first "
            f"{leftover[0]}: it was made by another version of that project, which is not known here"
        )
    return names


def _found(shapes: Shapes) -> str | None:
    return next((name for name, row in FOREIGN.items() if row.is_of(shapes)), None)


def _named(shapes: Shapes) -> str:
    found = _found(shapes)
    if found is None:
        known = what_it_is(shapes) or f"of no known kind; known: {', '.join(row.what for row in FOREIGN.values())}"
        raise ValueError(f"{shapes.where} is {known}")
    return found


def _shapes(path: Path) -> Shapes:
    """From the header of a safetensors or GGUF file; a pickle is opened for its tensors alone."""
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        with reading(path), safe_open(str(path), "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    elif is_gguf(path):
        shapes = gguf_shapes(path)
    else:
        shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(path).items()}
    return Shapes(shapes, str(path))


def _tensors(path: Path, wanted: Collection[str] | None = None) -> dict[str, Tensor]:
    """wanted: read no others; None = all."""
    if path.suffix == ".safetensors":
        return read_safetensors(path, wanted)
    if is_gguf(path):
        return gguf_plain(path, wanted)
    state = read_pickle(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not the state dict of an adapter")
    return {str(name): tensor.detach() for name, tensor in state.items()}
