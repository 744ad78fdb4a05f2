"""How a prompt becomes tokens: the recipe that a bridge was trained with and that inference must repeat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

PROMPT = "{prompt}"
WEIGHT = re.compile(r"\([^()]*[^\s\d()]:\s*(?:\d?\.\d+|[0-4])\s*\)")  # (word:1.2), not (at 10:30)
WhichStates = Literal["last", "last_before_norm", "normalized_mean", "learned_mean"] | int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PromptRecipe:
    """Everything between a prompt and the hidden states that reach the adapter, recorded in the bridge.

    template: text around the prompt with exactly one ``{prompt}`` (a rendered chat template, an instruction, a suffix).
    max_length: tokens kept, template and special tokens included.
    padding: "max_length" pads every prompt to ``max_length``; "longest" pads to the longest of the batch.
        Where one of the models attends to padding, "longest" makes a prompt depend on its company: recipes for training
        refuse it, and a bridge that was trained so is given one prompt at a time.
    padding_side: where padding goes, whatever the tokenizer's own default is.
    pad_token: a token's text; None = the tokenizer's pad token, else its unknown token, else its end token.
    add_special_tokens: whether the tokenizer adds its own begin and end tokens.
    language_mask: the language model is given the attention mask (the authors' SD runs give none: padding is attended).
    vision_mask: the vision model attends to real tokens alone (the authors' PixArt runs).
    adapter_mask: an adapter in which tokens hear one another hears real ones alone; else padding too (ELLA at its fixed
        length). Of adapters that work token by token it says nothing.
    hidden_states: "last" = the output after the final norm; "last_before_norm" = the last layer's output before it
        (Qwen-Image's and Flux.2's); an int = that entry of the model's hidden states
        (0 = embeddings, negative counts from the end, before the final norm except for the last entry);
        a list of such numbers = those entries side by side, on the width (Flux.2 hears Qwen3's 9, 18 and 27);
        "normalized_mean" = the mean over all layers' outputs, each layer-normalised first (arXiv 2506.08210);
        "learned_mean" = the same with weights that the adapter learns (arXiv 2512.15560), which is handed all of them.
    cut_template: tokens of the template are cut from the states, "before" = those before the prompt alone; how many is
        computed by tokenising, never stored.
    strip: white space around a prompt is taken off, as chat templates do.
    no_token: of a prompt that has none, as the empty one of a tokenizer without special tokens: "padding" = one padding
        token stands for it; "masked" = all of its padding is masked (qwen-sdxl-adapter's empty prompt).
    """

    template: str = PROMPT
    max_length: int = 77
    padding: Literal["max_length", "longest"] = "max_length"
    padding_side: Literal["right", "left"] = "right"
    pad_token: str | None = None
    add_special_tokens: bool = True
    language_mask: bool = True
    vision_mask: bool = False
    adapter_mask: bool = True
    hidden_states: WhichStates = "last"
    cut_template: bool | Literal["before"] = False
    strip: bool = False
    no_token: Literal["padding", "masked"] = "padding"

    def __post_init__(self) -> None:
        if self.template.count(PROMPT) != 1:
            raise ValueError(f"a prompt template holds {PROMPT} exactly once, this one does not: {self.template!r}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1 token, got {self.max_length}")
        if self.hidden_states == ():
            raise ValueError(
                "hidden_states is an empty list: name the hidden states that are heard, such as [9, 18, 27]"
            )

    @property
    def stacked(self) -> int:
        """How many hidden states lie side by side on the width of the adapter's input."""
        return len(self.hidden_states) if isinstance(self.hidden_states, tuple) else 1

    @property
    def varies_with_batch(self) -> bool:
        """Whether what is given on for a prompt depends on the prompts beside it: on padding to the longest of the
        batch that one of the models attends to."""
        return self.padding == "longest" and not (self.language_mask and self.vision_mask and self.adapter_mask)

    def render(self, prompt: str) -> str:
        """The text that is tokenised. A plain replacement: braces inside the prompt mean nothing."""
        return self.template.replace(PROMPT, prompt)


def shortened(text: str, most: int = 80) -> str:
    """A prompt for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
