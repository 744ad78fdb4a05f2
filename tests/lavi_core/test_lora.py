"""Low-rank deltas: equal to peft's forward, exact when removed, refused when they do not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe
from torch import nn

RECIPE = PromptRecipe(max_length=16)


def states(encoder):
    return encoder(encoder.tokenize(["a red circle", "sea"], RECIPE), RECIPE).states


def deltas(model, sites, rank=4, scale=0.5, zero=False):
    torch.manual_seed(1)
    made = {}
    for path in sites:
        m = model.get_submodule(path)
        if isinstance(m, nn.Conv2d):
            down, up = torch.randn(rank, m.in_channels, *m.kernel_size), torch.randn(m.out_channels, rank, 1, 1)
        else:
            wide, out = (m.in_features, m.out_features) if isinstance(m, nn.Linear) else (m.nx, m.nf)
            down, up = torch.randn(rank, wide), torch.randn(out, rank)
        made[path] = Delta(down * 0.2, up * (0 if zero else 0.2), scale)
    return made


def peft_model(model, sites, **config):
    import peft

    options = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.3, "init_lora_weights": False} | config
    return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=sites, **options)).eval()


@pytest.fixture(params=["llama", "t5", "gpt2"])
def encoder(request, language_folder):
    return TextEncoder.load(language_folder(request.param))


@pytest.mark.parametrize("put", [lora.merge, lora.attach])
def test_put_and_removed_to_the_bit(encoder, put):
    before, output = copy.deepcopy(encoder.model.state_dict()), states(encoder)
    applied = put(encoder.model, deltas(encoder.model, encoder.lora_sites()))
    assert not torch.allclose(states(encoder), output, atol=1e-2)
    applied.remove()
    applied.remove()
    assert all(torch.equal(before[k], v) for k, v in encoder.model.state_dict().items())
    assert torch.equal(states(encoder), output)
    assert not any(m._forward_hooks for m in encoder.modules())


@pytest.mark.parametrize("put", [lora.merge, lora.attach])
def test_zero_is_the_exact_identity(encoder, put):
    output = states(encoder)
    sites = encoder.lora_sites()
    for zero in (
        lambda: put(encoder.model, deltas(encoder.model, sites), strength=0.0),
        lambda: put(encoder.model, deltas(encoder.model, sites, zero=True)),
    ):
        applied = zero()
        assert torch.equal(states(encoder), output)
        applied.remove()


def test_merge_and_attach_agree(encoder):
    made = deltas(encoder.model, encoder.lora_sites())
    applied = lora.merge(encoder.model, made, 0.7)
    merged = states(encoder)
    applied.remove()
    lora.attach(encoder.model, made, 0.7)
    torch.testing.assert_close(states(encoder), merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_equal_to_peft(encoder, rslora, tmp_path):
    """Through the folder that peft saves; patterns of rank and alpha included."""
    sites = encoder.lora_sites()
    config = {"use_rslora": rslora, "rank_pattern": {sites[0]: 2}, "alpha_pattern": {sites[1]: 20}}
    theirs = peft_model(encoder.model, sites, **config)
    theirs.save_pretrained(tmp_path)
    loaded = lora.from_peft(tmp_path)
    assert sorted(loaded) == sorted(sites)
    assert loaded[sites[0]].down.shape[0] == 2 and loaded[sites[2]].down.shape[0] == 4
    tokens = encoder.tokenize(["a red circle", "sea"], RECIPE)
    with torch.no_grad():
        expected = theirs(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    for put in (lora.merge, lora.attach):
        applied = put(encoder.model, loaded)
        torch.testing.assert_close(states(encoder), expected, rtol=1e-4, atol=1e-5)
        applied.remove()


def test_from_a_live_peft_model(encoder):
    """The trainer's way: layers injected in place, the state taken from memory."""
    import peft

    sites = encoder.lora_sites()
    made = deltas(encoder.model, sites)
    injected = copy.deepcopy(encoder.model)
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=2, target_modules=sites), injected)
    for path, delta in made.items():
        injected.get_submodule(path).lora_A["default"].weight.data.copy_(delta.down)
        injected.get_submodule(path).lora_B["default"].weight.data.copy_(delta.up)
    back = lora.from_peft_state(peft.get_peft_model_state_dict(injected), alpha=2)
    assert list(back) == sites
    assert all(
        torch.equal(back[p].down, d.down) and torch.equal(back[p].up, d.up) and back[p].scale == 0.5
        for p, d in made.items()
    )
    raw = {k: v for k, v in injected.state_dict().items() if ".lora_" in k}
    assert back.keys() == lora.from_peft_state(raw, alpha=2).keys()


def test_early_stop_works_on_injected_layers(language_folder):
    """A peft LoRA inside the trunk, and only one layer run."""
    import peft

    encoder = TextEncoder.load(language_folder("llama"))
    sites = encoder.lora_sites()
    recipe = PromptRecipe(max_length=16, hidden_states=1)
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, init_lora_weights=False, target_modules=sites), encoder.model)
    count = []
    encoder.layers()[1].register_forward_pre_hook(lambda *_: count.append(1))
    encoder(encoder.tokenize(["sea"], recipe), recipe).states.sum().backward()
    assert not count
    grads = [n for n, p in encoder.model.named_parameters() if p.grad is not None]
    assert grads and all(n.startswith("layers.0.") and ".lora_" in n for n in grads)


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, (1, 5), padding="same")
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


def test_convolutions_equal_to_peft(tmp_path):
    torch.manual_seed(0)
    model, x = Convs().eval(), torch.randn(2, 3, 9, 9)
    theirs = peft_model(model, ["a", "b", "c"])
    theirs.save_pretrained(tmp_path)
    expected, plain = theirs(x), model(x)
    assert not torch.allclose(expected, plain, atol=1e-2)
    for put in (lora.merge, lora.attach):
        applied = put(model, lora.from_peft(tmp_path))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        applied.remove()
        assert torch.equal(model(x), plain)


def test_dilated_convolutions():
    """peft forgets a dilation in its forward, though not in its merge; here both are the same."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2)), torch.randn(1, 3, 9, 9)
    made = deltas(model, ["0"])
    applied = lora.merge(model, made)
    merged = model(x)
    applied.remove()
    lora.attach(model, made)
    torch.testing.assert_close(model(x), merged, rtol=1e-4, atol=1e-5)


def test_half_precision(language_folder):
    for dtype in (torch.float16, torch.bfloat16):
        encoder = TextEncoder.load(language_folder("llama"), dtype=dtype)
        made = deltas(encoder.model, encoder.lora_sites())
        before = copy.deepcopy(encoder.model.state_dict())
        applied = lora.merge(encoder.model, made)
        assert states(encoder).dtype == dtype
        applied.remove()
        assert all(torch.equal(before[k], v) for k, v in encoder.model.state_dict().items())
        lora.attach(encoder.model, made)
        assert states(encoder).dtype == dtype


def test_removed_after_the_model_was_cast(language_folder):
    encoder = TextEncoder.load(language_folder("llama"))
    plain = TextEncoder.load(language_folder("llama"), dtype=torch.bfloat16)
    applied = lora.merge(encoder.model, deltas(encoder.model, encoder.lora_sites()))
    encoder.to(torch.bfloat16)
    applied.remove()
    expected = plain.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in encoder.state_dict().items())


def test_inference_mode(language_folder):
    """ComfyUI runs its nodes in inference mode: weights loaded there are changed there."""
    with torch.inference_mode():
        encoder = TextEncoder.load(language_folder("llama"))
        output = states(encoder)
        applied = lora.merge(encoder.model, deltas(encoder.model, encoder.lora_sites()))
    applied.remove()
    with torch.inference_mode():
        assert torch.equal(states(encoder), output)


def test_what_does_not_fit_is_refused(language_folder):
    encoder = TextEncoder.load(language_folder("llama"))
    first = encoder.lora_sites()[0]
    good = deltas(encoder.model, [first])[first]
    cases = {
        r"a delta for layers.9.x, LlamaModel has no such module": {"layers.9.x": good},
        r"a delta for norm, which is a LlamaRMSNorm, not a linear map": {"norm": good},
        r"has shapes \(4, 31\) and \(32, 4\), LlamaModel needs \(4, 32\) and \(32, 4\)": {
            first: Delta(torch.zeros(4, 31), torch.zeros(32, 4), 1.0)
        },
        r"has shapes \(4, 32\) and \(32, 3\), LlamaModel needs \(4, 32\) and \(32, 4\)": {
            first: Delta(torch.zeros(4, 32), torch.zeros(32, 3), 1.0)
        },
    }
    before = copy.deepcopy(encoder.model.state_dict())
    for message, bad in cases.items():
        for put in (lora.check, lora.merge, lora.attach):
            with pytest.raises(ValueError, match=message):
                put(encoder.model, {first: good} | bad)
    assert all(torch.equal(before[k], v) for k, v in encoder.model.state_dict().items())
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="which is a Conv2d, not a linear map"):
        lora.check(grouped, {"0": good})


def test_quantised_weights_take_no_merge():
    class Packed(nn.Linear):
        """As bitsandbytes keeps it: the shape of a linear map, the weight packed into bytes."""

        def __init__(self):
            super().__init__(8, 8)
            self.weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)

    plain = nn.Linear(8, 8)
    model = nn.Sequential(plain, Packed())
    made = {str(i): Delta(torch.ones(2, 8), torch.ones(8, 2), 1.0) for i in range(2)}
    before = plain.weight.clone()
    with pytest.raises(ValueError, match=r"1 is quantised \(Packed\) and takes no merge; keep the LoRA live"):
        lora.merge(model, made)
    assert torch.equal(plain.weight, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "is a DoRA"),
        ({"bias": "all"}, "bias = 'all'; only bias = 'none' is read"),
        ({"peft_type": "LOHA"}, "holds a LOHA, only LoRA is read"),
    ],
)
def test_peft_folders_that_are_refused(language_folder, tmp_path, change, message):
    import json

    encoder = TextEncoder.load(language_folder("llama"))
    peft_model(encoder.model, encoder.lora_sites()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        lora.from_peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        lora.from_peft(tmp_path)


def test_peft_leftovers_are_refused(language_folder, tmp_path):
    encoder = TextEncoder.load(language_folder("llama"))
    peft_model(encoder.model, encoder.lora_sites(), modules_to_save=["norm"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds whole modules beside the LoRA \(modules_to_save\)"):
        lora.from_peft(tmp_path)
    with pytest.raises(ValueError, match="the LoRA of x has only its down matrix"):
        lora.from_peft_state({"x.lora_A.weight": torch.zeros(2, 2)}, alpha=1)


def test_peft_paths_of_a_model_with_its_head(language_folder, tmp_path):
    import transformers

    folder = language_folder("llama")
    encoder = TextEncoder.load(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    peft_model(model, ["q_proj", "v_proj"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"LlamaModel has no such module"):
        lora.check(encoder.model, lora.from_peft(tmp_path))
    rebased = lora.rebase(encoder.model, lora.from_peft(tmp_path))
    lora.check(encoder.model, rebased)
    assert lora.rebase(encoder.model, rebased) == rebased
    strange = {"x.y": next(iter(rebased.values()))}
    assert lora.rebase(encoder.model, strange) == strange and lora.rebase(encoder.model, {}) == {}
