"""What a safetensors file without a bridge's header is, by the names of its tensors, and where it belongs."""

from __future__ import annotations

from collections.abc import Collection

_IMPORT = "lavi-bridge import writes a bridge of the folder it came in"
_NOT_YET = "which is not read yet: take a bridge of this pack's format"
# (what it is, signs: parts of names that its file has all of, the way); the first whose signs are there is taken
KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("an ELLA connector", ("connector.latents", "connector.perceiver_blocks."), _NOT_YET),
    ("an LLM-to-SDXL adapter (RouWei)", ("compression_queries", "wide_attention_blocks."), _NOT_YET),
    (
        "an adapter as LaVi-Bridge's authors released them",
        ("norm1.weight", "norm2.weight", "ff2.net.2.weight"),
        _IMPORT,
    ),
    ("a LoRA", (".lora_A.",), "which belongs in models/loras"),
    ("a LoRA", ("lora_down.",), "which belongs in models/loras"),
    ("a LoRA", (".lora.down.",), "which belongs in models/loras"),
    ("a whole checkpoint", ("model.diffusion_model.", "first_stage_model."), "which belongs in models/checkpoints"),
    ("a vision model", ("input_blocks.0.", "output_blocks.0."), "which belongs in models/diffusion_models"),
    ("a vision model", ("down_blocks.0.", "up_blocks.0.", "time_embedding."), "which belongs in models/diffusers"),
    ("a vision model", ("transformer_blocks.0.", "pos_embed"), "which belongs in models/diffusion_models"),
    ("a VAE", ("decoder.conv_in.", "decoder.conv_out."), "which belongs in models/vae"),
    ("a VAE (TAESD)", ("taesd_decoder.",), "which belongs in models/vae"),
    ("a text encoder", ("self_attn.q_proj.",), "which belongs in models/text_encoders"),
    ("a text encoder", ("SelfAttention.q.",), "which belongs in models/text_encoders"),
    ("a text encoder", ("attention.self.query.",), "which belongs in models/text_encoders"),
)


def what_it_is(names: Collection[str]) -> str:
    """ "an ELLA connector, which ...", for a message; "" for a file of no known kind. names: of all its tensors."""
    found = ((what, way) for what, signs, way in KINDS if all(any(sign in name for name in names) for sign in signs))
    what, way = next(found, ("", ""))
    return f"{what}, {way}" if what else ""
