"""A frozen pretrained language model as a text encoder: prompts -> tokens -> hidden states."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .. import fingerprint
from ..conditioning import HiddenStates
from ..config import LanguageConfig
from ..lora import Applied, is_site
from ..prompt import PromptRecipe
from ..quantized.storage import STORAGES, requantize, tell_remains
from .buffers import fit_tables
from .facts import config_facts, stretched_beyond, token_facts, whole_attention_up_to
from .family import LanguageFamily
from .finite import first_overflow, is_finite, refusal
from .folder import left_beside
from .foreign import check_reads_text, told_plainly
from .hidden_states import last_states, read_states
from .loading import find_source, load_trunk, verify
from .probe import entries_agree, ignores_padding, outputs_agree, probe_ids
from .tokens import TokenBatch, pad_id, tokenize
from .weight_loading import Progress

log = logging.getLogger(__name__)

_LENGTHS = ("num_hidden_layers", "encoder_layers", "num_layers", "n_layer", "n_layers")
_POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")


class TextEncoder(nn.Module):
    """model: the trunk, without LM head or decoder. lora: the deltas that a bridge has put into it, if any. files: what
    its weights were read from; () = it was not loaded from files.

    weights_print: what gives fingerprint and magnitudes of weights that are not in memory as they are in their files.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        family: LanguageFamily,
        model_id: str,
        weights_print: Callable[[], tuple[str | None, list[float] | None]] | None = None,
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.lora: Applied | None = None
        self.files: tuple[Path, ...] = ()
        self._ignores_padding: dict[str, bool] = {}
        self._layers_differ: dict[str, str | None] = {}  # why its layers' inputs, or outputs, are not its states
        self.parameters_taken = frozenset(inspect.signature(model.forward).parameters)
        trunk: Any = model.config
        self._stretched = stretched_beyond(trunk)
        check_reads_text(model, trunk, self.parameters_taken, model_id)
        if weights_print is None:
            weights, sizes = fingerprint.weights_fingerprint(model), fingerprint.magnitudes(model)
        else:
            weights, sizes = weights_print()
        self.config = LanguageConfig(
            model_id=model_id,
            family=family.name,
            hidden_size=int(trunk.hidden_size),
            num_layers=len(self.layers()),
            vocab_size=int(trunk.vocab_size),
            fingerprint=fingerprint.join(fingerprint.vocabulary_fingerprint(tokenizer), weights),
            facts=config_facts(trunk) | token_facts(tokenizer) | ({} if sizes is None else {"weights": sizes}),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        stream: bool = False,
        weights: str = "stored",
        progress: Progress | None = None,
        config: str | Path | None = None,
        tokenizers: Mapping[str, Path] | None = None,
    ) -> TextEncoder:
        """From a Hugging Face folder (safetensors alone), a .gguf or a lone .safetensors file; frozen, in eval mode.

        dtype: that of the computation; None = as stored (float32 for GGUF). weights: how they lie in memory, a row of
        ``quantized.storage.STORAGES``: "stored" leaves quantised ones as they are, to be dequantised when they are
        used; "dense" dequantises them now; "8-bit" and "4-bit" quantise the others, so that a LoRA stays live.
        stream: weights are read from their files layer by layer at each pass and never held (accelerate; CPU only, and
        a LoRA stays live). progress: told the bytes read and those in all; it may raise to stop.
        config: for a lone file, a folder with its config.json and tokenizer; None = the one beside it with its name, or
        what its shapes tell, with a tokenizer out of ``tokenizers`` ("clip", "t5" -> folder).
        Raises ValueError with reason and way out.
        """
        if stream and torch.device(device).type != "cpu":
            raise ValueError(f"a streamed language model runs on the CPU, not on {device}; load it whole")
        if stream and Path(path).is_file():
            raise ValueError(
                f"{Path(path).name} is one file, only a folder of safetensors can be streamed; load it whole"
            )
        source = find_source(Path(path), None if config is None else Path(config), tokenizers)
        if (beside := left_beside(source.path)) is not None:
            log.warning("%s", beside)
        model = load_trunk(source, dtype, stream, weights, progress)
        known = source.tokenizer, source.family, model_id(source.path)
        packed = bool(STORAGES[weights].linear)
        # a streamed model's print is that of its files, and one that was quantised here keeps the one it had before
        encoder = cls(model, *known, source.print if stream or packed else None).eval()
        encoder.files = tuple([source.path] if source.files is None else source.files)
        if STORAGES[weights].linear:
            requantize(encoder.model, STORAGES[weights])  # what is not read tensor by tensor, row by row
            tell_remains(encoder.model, weights, encoder.config.model_id)
        if encoder.dtype.itemsize < 4:
            ids = probe_ids(encoder.config.vocab_size, torch.device("cpu"))
            fit_tables(encoder.model, encoder.dtype, lambda: encoder.model(input_ids=ids))
        return encoder if stream else encoder.to(device)

    @classmethod
    def skeleton(
        cls,
        path: str | Path,
        *,
        config: str | Path | None = None,
        tokenizers: Mapping[str, Path] | None = None,
    ) -> TextEncoder:
        """On the meta device, from config and tokenizer alone: sizes, sites and tokens, no states.

        Its fingerprint is that of its files, of which slices are read; None where there are none.
        config, tokenizers: see ``load``. Raises ValueError with the reason and the way out.
        """
        source = find_source(Path(path), None if config is None else Path(config), tokenizers, whole=False)
        known = source.tokenizer, source.family, model_id(source.path)
        return cls(source.empty(), *known, source.print).eval()

    @staticmethod
    def verify(path: str | Path) -> None:
        """Raise ValueError, with the sentence of ``load``, for a path that it would refuse, without loading it."""
        verify(find_source(Path(path)))

    @property
    def computes_on(self) -> torch.device:
        """The device; of a streamed model, whose weights are in their files, the CPU. (ComfyUI's memory management sets
        an attribute ``device`` of the models it holds, so that name is taken.)"""
        device = next(self.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """That of the computation, whatever the weights are stored in."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def positions(self) -> int | None:
        """How many tokens the model has positions for; None = it counts relative ones (T5)."""
        named = (getattr(self.model.config, name, None) for name in _POSITIONS)
        limit = next((n for n in named if isinstance(n, int)), None)
        reserved = self.family.reserved_positions or self._reserved_positions()
        return limit - reserved if isinstance(limit, int) and limit > reserved else None

    def _reserved_positions(self) -> int:
        """Of a table of positions that has a padding row, as RoBERTa's: the rows up to that one."""
        tables = (m for name, m in self.model.named_modules() if name.endswith("position_embeddings"))
        rows = (getattr(table, "padding_idx", None) for table in tables)
        return next((row + 1 for row in rows if isinstance(row, int)), 0)

    def tokenize(self, prompts: Sequence[str], recipe: PromptRecipe) -> TokenBatch:
        """See ``tokens.tokenize``. Raises ValueError too for more tokens than the model has positions for."""
        tokens = tokenize(self.tokenizer, prompts, recipe)
        positions, length = self.positions, tokens.ids.shape[1]
        if positions is not None and length > positions:
            raise ValueError(
                f"{length} tokens were asked for, {self.config.model_id} has {positions} positions; lower max_length"
            )
        if int(tokens.ids.max()) >= self.config.vocab_size:
            raise ValueError(
                f"the tokenizer of {self.config.model_id} gave token {int(tokens.ids.max())}, its embedding has "
                f"{self.config.vocab_size} rows; the tokenizer belongs to another model"
            )
        return tokens

    def forward(self, tokens: TokenBatch, recipe: PromptRecipe) -> HiddenStates:
        """Hidden states of the tokens, on the tokens' device; the template's are cut where the recipe says so.

        Differentiable. Only the layers that ``recipe.hidden_states`` needs are run. Raises ValueError, where no
        gradient is asked for, for states that are not finite: what is not trained on is remembered or drawn with.
        """
        if not isinstance(tokens.ids, FakeTensor):  # these have no values
            asked = recipe.padding == "longest" or recipe.padding_side == "left"  # else a GPU would wait to be asked
            self.check_recipe(recipe, padded=asked and not bool(tokens.mask.all()))
        ids, mask = self._stretched_out(tokens, recipe)
        inputs = self._inputs(ids, mask if recipe.language_mask else None, recipe.padding_side == "left")
        with nullcontext() if isinstance(tokens.ids, FakeTensor) else told_plainly(self.config.model_id, self.dtype):
            states = read_states(lambda: self.model(**inputs), self.layers(), recipe.hidden_states)
        stacked = self.config.num_layers if recipe.hidden_states == "learned_mean" else recipe.stacked
        expected = (*ids.shape, self.config.hidden_size * stacked)
        if states.shape == expected:
            states = states[:, : tokens.ids.shape[1]]
        else:
            raise ValueError(
                f"the hidden states {recipe.hidden_states!r} of {self.config.model_id} have shape "
                f"{tuple(states.shape)}, not {expected}: take other hidden_states, or another language model"
            )
        mask = tokens.mask if recipe.adapter_mask else torch.ones_like(tokens.mask)
        hidden = HiddenStates(states, mask) if tokens.keep is None else _cut(states, mask, tokens.keep)
        hidden = hidden._replace(queries=tokens.queries)
        unchecked = torch.is_grad_enabled() or isinstance(states, FakeTensor)  # the latter has no values
        return hidden if unchecked else self._finite(hidden, inputs, recipe)

    def _finite(self, hidden: HiddenStates, inputs: dict[str, Tensor], recipe: PromptRecipe) -> HiddenStates:
        """``hidden``, whose masked states are zeros if they are not finite: nobody attends to them."""
        if is_finite(hidden.states):
            return hidden
        if recipe.vision_mask and is_finite(hidden.states[hidden.mask]):
            return hidden._replace(states=torch.where(hidden.mask.unsqueeze(-1), hidden.states, 0))
        raise refusal(self.config.model_id, self.dtype, first_overflow(lambda: self.model(**inputs), self.layers()))

    def _stretched_out(self, tokens: TokenBatch, recipe: PromptRecipe) -> tuple[Tensor, Tensor]:
        """Ids and mask, with the padding that was trimmed off where it shapes the states though it is masked."""
        width = recipe.max_length - tokens.ids.shape[1]
        trims = recipe.padding == "max_length" and recipe.language_mask and recipe.padding_side == "right"
        if width <= 0 or not trims or isinstance(tokens.ids, FakeTensor) or self.may_trim(recipe):
            return tokens.ids, tokens.mask
        return F.pad(tokens.ids, (0, width), value=pad_id(self.tokenizer, recipe)), F.pad(tokens.mask, (0, width))

    def _inputs(self, ids: Tensor, mask: Tensor | None, left: bool) -> dict[str, Tensor]:
        """mask: None = the model is given none. left: padding is on the left."""
        inputs = {"input_ids": ids}
        if mask is not None:
            inputs["attention_mask"] = mask.long()
            if left and not bool(mask.all()):
                inputs |= self._positions(mask)
        return inputs

    def may_trim(self, recipe: PromptRecipe) -> bool:
        """Whether masked padding on the right may be left away: the states are the same without it."""
        stretches = self._stretched is not None and recipe.max_length > self._stretched
        return not stretches and self.ignores_padding("right")

    def ignores_padding(self, side: Literal["left", "right"]) -> bool:
        """Whether masked padding on this side leaves the states of real tokens as they are. Known of the families in
        the table; of any other model it is found out, once, by a short pass."""
        if self.family.name != "generic":
            return True
        if side not in self._ignores_padding:

            def run(ids: Tensor, mask: Tensor) -> Tensor:
                return last_states(self.model(**self._inputs(ids, mask, side == "left")))

            ids = probe_ids(self.config.vocab_size, self.computes_on)
            with eval_mode(self.model), told_plainly(self.config.model_id, self.dtype):
                self._ignores_padding[side] = ignores_padding(
                    run, ids, pad_id(self.tokenizer, PromptRecipe()), side == "left"
                )
        return self._ignores_padding[side]

    def check_recipe(self, recipe: PromptRecipe, padded: bool = True) -> None:
        """Raise ValueError for a recipe that gives wrong states with this model: of one that no row knows, found out by
        short passes, once. They want the whole model: to be called before layers are dropped. padded: whether there
        is padding."""
        name, left = self.config.model_id, recipe.padding_side == "left"
        stretched, company = self._stretched, recipe.padding == "longest" or left
        if company and padded and stretched is not None and recipe.max_length > stretched:
            raise ValueError(
                f"{name} turns the positions of a prompt otherwise in a batch of more than {stretched} tokens, "
                f"max_length is {recipe.max_length}; lower it, or set padding = 'max_length' on the right"
            )
        whole = whole_attention_up_to(self.model)
        if whole is not None and recipe.max_length > whole:
            raise ValueError(
                f"{name} attends to blocks in a prompt of more than {whole} tokens, and to all of it once a shorter "
                f"one was read, max_length is {recipe.max_length}; lower it"
            )
        own_pad = getattr(self.model.config, "pad_token_id", None)
        counts = left and padded and self.family.positions == "own" and self._reserved_positions() > 0
        if counts and pad_id(self.tokenizer, recipe) != own_pad:
            raise ValueError(
                f"{name} counts its positions from the tokens that are not {own_pad}, padding is "
                f"{pad_id(self.tokenizer, recipe)} here; set padding_side = 'right', or the pad_token of the model"
            )
        if self.family.name != "generic":
            return
        if recipe.language_mask:
            if left and padded and not self.ignores_padding("left"):
                raise ValueError(
                    f"{name} gives tokens other states where padding lies on their left; set padding_side = 'right'"
                )
            if not left and recipe.padding == "longest" and not self.ignores_padding("right"):
                raise ValueError(
                    f"the states of {name} depend on how much padding follows, though it is masked; set padding = "
                    "'max_length', so that it is always the same"
                )
        if recipe.hidden_states == "last":
            return
        part = "outputs" if isinstance(recipe.hidden_states, str) else "inputs"
        if part not in self._layers_differ:
            self._layers_differ[part] = self._probe_layers(part)
        if self._layers_differ[part] is not None:
            raise ValueError(
                f"hidden_states = {recipe.hidden_states!r} cannot be had of {name} ({self._layers_differ[part]}); set "
                "hidden_states = 'last', or take another language model"
            )

    def _probe_layers(self, part: Literal["inputs", "outputs"]) -> str | None:
        ids, layers = probe_ids(self.config.vocab_size, self.computes_on), self.layers()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def read(index: int) -> Tensor:
            return read_states(lambda: self.model(**inputs), layers, index)

        with eval_mode(self.model), told_plainly(self.config.model_id, self.dtype):
            why = entries_agree(self.model, read, ids, len(layers))
            return outputs_agree(self.model, layers, ids) if why is None and part == "outputs" else why

    def _positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Position ids that begin at the first real token of each row."""
        if self.family.positions == "own":
            return {}
        if "position_ids" not in self.parameters_taken:
            raise ValueError(
                f"{self.config.model_id} ({self.family.name}) numbers its positions by itself from the left, so it "
                'cannot be padded there; set padding_side = "right"'
            )
        return {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}

    def layers(self) -> nn.ModuleList:
        """The list of the trunk's layers: where its family says, else the outermost list of the configured length."""
        if self.family.layers:
            found = self.model.get_submodule(self.family.layers)
            assert isinstance(found, nn.ModuleList)
            return found
        configured = [getattr(self.model.config, name, None) for name in _LENGTHS]
        lengths = {length for length in configured if isinstance(length, int)}
        lists = [(name.count("."), m) for name, m in self.model.named_modules() if isinstance(m, nn.ModuleList)]
        fitting = [pair for pair in lists if len(pair[1]) in lengths] or lists
        if not fitting:
            raise ValueError(f"no list of layers was found in {type(self.model).__name__}")
        return min(fitting, key=lambda pair: (pair[0], -len(pair[1])))[1]

    def lora_sites(self) -> list[str]:
        """Paths, inside ``model``, of the linear maps that LoRA adapts, in traversal order."""
        pattern = re.compile(self.family.lora_sites)
        sites = [name for name, m in self.model.named_modules() if is_site(m) and pattern.fullmatch(name)]
        if not sites:
            raise ValueError(f"no LoRA sites were found in {type(self.model).__name__} by {self.family.lora_sites}")
        return sites


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and in the mode it had afterwards: some are in training mode by themselves."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


def _cut(states: Tensor, mask: Tensor, keep: Tensor) -> HiddenStates:
    """Drop the positions that are not kept. A row that keeps fewer than the others is filled up, unmasked, from its own
    dropped ones."""
    length = int(keep.sum(1).max())
    order = (~keep).long().argsort(dim=1, stable=True)[:, :length]  # [B length]
    kept = torch.gather(states, 1, order.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
    return HiddenStates(kept, torch.gather(mask & keep, 1, order))


def model_id(path: Path) -> str:
    """The name a person knows a model by: the file's or folder's, a hub repository's where the path is a hub cache."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return path.parents[1].name.removeprefix("models--").replace("--", "/")
    if path.is_dir() and (path.name == "model" or path.name.startswith("text_encoder")):
        return f"{path.parent.name}/{path.name}"
    return path.stem if path.is_file() else path.name
