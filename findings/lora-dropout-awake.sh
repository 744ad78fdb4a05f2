#!/usr/bin/env bash
# diffusers: a LoRA that was trained with dropout goes on dropping after load_lora_weights: no two pictures are alike.
#
# Guess: a pipeline is for inference; from_pretrained gave its networks in eval(), so a LoRA loaded into them computes
#   the same at each call, as one does that peft's or transformers' own loaders bring in.
# Seen (diffusers 0.42.1, peft 0.21.2): the file's header records lora_dropout, the loader builds nn.Dropout modules
#   from it, and a new module is in train mode. Nobody calls eval() after that. The network's own .training goes on
#   saying False, no pipeline puts it right, and with one seed each call draws another picture. Files without the header
#   (kohya's, older ones) do not have it. The text encoder's half is quiet: transformers' load_adapter ends in eval().
# Why it matters: the original LaVi-Bridge trains its LoRAs with a dropout of 0.1, and most trainers offer one. What is
#   drawn is the trained network plus noise; comparisons at a fixed seed (strengths, language models, ComfyUI) measure
#   the dropout.
# Instead: pipe.unet.eval() (or pipe.transformer.eval()) after every load_lora_weights and load_lora_adapter; or save
#   the header with lora_dropout 0. fuse_lora() leaves it out too.
# Source: diffusers/loaders/peft.py, load_lora_adapter: inject_adapter_in_model and no eval();
#   diffusers/training_utils.py, _collate_lora_metadata: what the training scripts give save_lora_weights.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    diffusers==0.42.1 peft==0.21.2

HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - "$work/lora" <<'PYTHON'
import importlib.metadata, sys
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import logging
from peft import LoraConfig, get_peft_model_state_dict

folder = sys.argv[1]
logging.set_verbosity_error()
logging.disable_progress_bar()

def pipeline():
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    made = StableDiffusionPipeline(vae, None, None, network, DDIMScheduler(), None, None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made

torch.manual_seed(1)
words = torch.randn(1, 5, 16)

def drawn(pipe):
    return pipe(prompt_embeds=words, negative_prompt_embeds=torch.zeros_like(words), num_inference_steps=5, height=64,
                width=64, output_type="latent", generator=torch.Generator().manual_seed(7)).images

def apart(pipe):
    """How far two pictures of one seed are from each other, relative to their size."""
    one, two = drawn(pipe), drawn(pipe)
    return float((one - two).norm() / one.norm())

trained = pipeline()
trained.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, lora_dropout=0.1, target_modules=["to_q", "to_k", "to_v"],
                                    init_lora_weights=False))
trained.unet.eval()
StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(trained.unet),
                                          **_collate_lora_metadata({"unet": trained.unet}))
loaded = pipeline()
loaded.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
after = apart(loaded)
awake = sorted({module.training for module in loaded.unet.modules() if isinstance(module, torch.nn.Dropout)})
says = loaded.unet.training
loaded.unet.eval()
quiet = apart(loaded)
same = float((drawn(loaded) - drawn(trained)).norm() / drawn(trained).norm())
print("versions:", *(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "peft", "torch")))
print("guess:    one seed, one picture")
print("seen:     another picture at each call, until unet.eval() is called")
print(f"output:   two pictures of one seed, relative distance: {after:.3f} after loading, {quiet:.1e} after eval()")
print(f"          after loading unet.training is {says}, dropout modules have training in {awake}")
print(f"          after eval() it draws what was trained: {same:.1e}")
if after < 1e-3 or says or quiet > 1e-6 or same > 1e-5:
    sys.exit("No longer so: a LoRA loaded by diffusers does not drop, or the network says that it trains.")
PYTHON
