"""What a safetensors file without a bridge's header is, by the names of its tensors, and where it belongs."""

from __future__ import annotations

from collections.abc import Collection

_IMPORT = "lavi-bridge import writes a bridge of the folder it came in"
_IMPORT_FILE = "Load Bridge reads it as it is, and lavi-bridge import writes a bridge of it"
_STATES = "a bridge is told the states of one language model and the tokens of its prompt"
# (what it is, signs: parts of names that its file has all of, the way); the first whose signs are there is taken
KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("an ELLA connector", ("connector.latents", "connector.perceiver_blocks."), _IMPORT_FILE),
    ("an LLM-to-SDXL adapter (RouWei)", ("compression_queries", "wide_attention_blocks."), _IMPORT_FILE),
    (
        "an adapter as LaVi-Bridge's authors released them",
        ("norm1.weight", "norm2.weight", "ff2.net.2.weight"),
        _IMPORT,
    ),
    (
        "an adapter of qwen-sdxl-adapter",
        ("latent_queries", ".cross_attn.to_kv.", "ctx_proj.", "pool_proj."),
        _IMPORT_FILE,
    ),
    ("DistillT5", ("final_projection.0.weight", "final_projection.3.weight"), _IMPORT_FILE),
    (
        "Anima's connector for a second encoder (anima_v2_connector)",
        ("anima_v2_connector.", "semantic_resampler."),
        f"which asks with what Anima's own adapter has made, while {_STATES}: leave it in its vision model",
    ),
    (
        "Anima's connector for a second encoder",
        ("semantic_attentions.", "layer_mix_logits"),
        f"which asks with what Anima's own adapter has made, while {_STATES}: use it in its own node pack",
    ),
    (
        "AnimaT5Free's conditioner",
        ("conditioner.c0.W", "conditioner.segmenter."),
        _IMPORT_FILE,
    ),
    (
        "ai-toolkit's llm_adapter",
        ("llm_adapter.context_embedder.",),
        "whose matrix stands in the place of the vision model's own context_embedder, which a bridge leaves as it is: "
        "use it in ai-toolkit",
    ),
    (
        "ai-toolkit's te_adapter",
        ("te_adapter.adapter_modules.", ".to_k_adapter."),
        "which puts key and value maps of its own into each attention of the vision model: merge it there, as "
        "ai-toolkit's testing/merge_in_text_encoder_adapter.py does",
    ),
    (
        "Anima's llm_adapter",
        ("embed.weight", ".norm_cross_attn.", ".cross_attn.k_norm."),
        _IMPORT_FILE,
    ),
    (
        "a seeded resampler of gguf-trainer",
        ("adapter.query", "adapter.t5_embed."),
        _IMPORT_FILE,
    ),
    (
        "a Ming-Image or Qwen3.5 adapter of gguf-trainer",
        ("adapter.slot_query", "adapter.seed_embed."),
        "which asks with another tokenizer's ids and speaks to a vision model that is not known here: use it in ggk",
    ),
    (
        "a resampler of gguf-trainer",
        ("adapter.query", "adapter.blocks.0.ln_kv."),
        "which speaks to LLaDA-Image, a vision model that is not known here: use it in ggk",
    ),
    (
        "a token-aligned adapter of gguf-trainer",
        ("adapter.skip.", "adapter.blocks.0.ln_self."),
        "which speaks to MageFlow, Qwen-Image 2.1 or FLUX.3, vision models that are not known here: use it in ggk",
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
