"""Two contexts one after the other: order, masks, pooled vectors, strengths; what a config refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning, stack
from lavi_bridge.lavi_core.config import LanguageConfig, OwnEncoderConfig
from lavi_bridge.lavi_core.own_encoder import at_strength, together
from lavi_bridge.lavi_core.prompt import PromptRecipe

OWN = OwnEncoderConfig(
    encoders=(
        LanguageConfig(model_id="a", family="clip", hidden_size=2, num_layers=1, vocab_size=9, fingerprint=None),
        LanguageConfig(model_id="b", family="clip", hidden_size=1, num_layers=1, vocab_size=9, fingerprint=None),
    ),
    prompt=PromptRecipe(max_length=2),
)
SAID = Conditioning(torch.ones(2, 3, 3), torch.tensor([[True, True, False], [True, False, False]]), torch.ones(2, 4))
HEARD = Conditioning(torch.full((2, 2, 3), 2.0, dtype=torch.bfloat16))


def test_one_after_the_other() -> None:
    before, after = (together(SAID, HEARD, replace(OWN, place=place)) for place in ("before", "after"))
    assert before.context[0, :, 0].tolist() == [2, 2, 1, 1, 1] and after.context[0, :, 0].tolist() == [1, 1, 1, 2, 2]
    assert before.context.dtype == torch.float32
    assert before.mask is not None and before.mask.tolist()[1] == [True, True, True, False, False]
    assert after.mask is not None and after.mask.tolist()[1] == [True, False, False, True, True]
    assert before.pooled is SAID.pooled
    assert together(replace(SAID, mask=None), HEARD, OWN).mask is None
    theirs = together(SAID, replace(HEARD, pooled=torch.zeros(2, 4)), OWN).pooled
    assert theirs is not None and not theirs.any()


def test_an_ear_too_few_or_too_many_is_refused() -> None:
    assert together(SAID, None, None) is SAID
    with pytest.raises(ValueError, match=r"trained beside the vision model's own text encoder \(a and b\)"):
        together(SAID, None, OWN)
    with pytest.raises(ValueError, match="trained to be heard alone"):
        together(SAID, HEARD, None)


def test_strength_is_a_line_from_the_empty_prompt_as_long_as_it_is() -> None:
    empty = Conditioning(torch.tensor([[[0.0], [1.0], [9.0]]]), torch.tensor([[True, True, False]]), torch.zeros(1, 1))
    told = Conditioning(torch.full((2, 4, 1), 2.0), None, torch.ones(2, 1))
    found = at_strength(told, empty, 0.5)
    assert found.context[1, :, 0].tolist() == [1, 1.5, 1.5, 1.5]  # past the end the last one that is heard
    assert found.pooled is not None and found.pooled.tolist() == [[0.5], [0.5]]
    assert at_strength(told, empty, 1.0) is told
    assert at_strength(told, empty, 0.0).context[0, :, 0].tolist() == [0, 1, 1, 1]


def test_batches_of_other_lengths_are_one_batch() -> None:
    found = stack([SAID, replace(HEARD, context=HEARD.context.float(), pooled=torch.zeros(2, 4))])
    assert found.context.shape == (4, 3, 3) and found.mask is not None and found.pooled is not None
    assert found.mask.sum(1).tolist() == [2, 1, 2, 2] and found.pooled.sum(1).tolist() == [4, 4, 0, 0]
    assert not found.context[2:, 2].any()
    assert stack([replace(SAID, mask=None)] * 2).mask is None
