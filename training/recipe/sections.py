"""The tables of a recipe: every key of the TOML file with its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Training = Literal["frozen", "lora", "full"]


@dataclass(frozen=True, kw_only=True)
class LanguageSection:
    """model: a local folder or .gguf file, or a name that ``models/named.py`` knows. train: "lora" is the paper's;
    "full" trains every weight (a vision model's own small encoder); "frozen" is the "w/o LoRA" ablation: what the model
    says is then computed before the first step and kept on disk, beside the latents, up to ``states_gb`` (0 = not at
    all, and the model stays in memory). Several layers take as many times the room.
    """

    model: str
    train: Training = "lora"
    rank: int = 32
    alpha: float = 32.0
    dropout: float = 0.1
    learning_rate: float = 5e-6
    states_gb: float = 20.0


@dataclass(frozen=True, kw_only=True)
class AdapterSection:
    """kind: a row of ``lavi_core.adapters.ADAPTERS``. inner_width: None = the authors' rule, (in + out) / 2; of kinds
    with attention the width of what is given. tokens, depth, heads: see ``AdapterConfig``, None = the kind's own
    default; refused for a kind that does not have them.

    from_: a bridge, or another project's adapter, whose adapter is trained on; it says all of the
    above and the whole of [prompt], which may be left out and must not say otherwise. Its LoRA is taken over where it
    has the run's rank, alpha and sites, which is said where not.
    preset: of another project's file, for what it does not say, see ``lavi_core/importers/README.md``.
    query_tokenizer: a tokenizer.json or its folder, whose ids "token_queries" asks with; a bridge that a run starts
    from has its own.

    dropout: of what each block adds, of ``mlp`` and ``projection`` in their middle; None = the kind's own, 0.1 of these
    two as their authors had it, none of the others. In alignment and training alone, no bridge records it.
    layer_learning_rate: of the weights of ``prompt.hidden_states = "learned_mean"``, numbers before a softmax;
    freeze_layer_weights: the step from which on they stay as they are, after alignment; None = never.
    """

    kind: str = "mlp"
    inner_width: int | None = None
    tokens: int | None = None
    depth: int | None = None
    heads: int | None = None
    from_: str = ""
    preset: str | None = None
    query_tokenizer: str = ""
    dropout: float | None = None
    learning_rate: float = 1e-4
    layer_learning_rate: float = 1e-2
    freeze_layer_weights: int | None = None

    def options(self) -> dict[str, int | None]:
        return {"tokens": self.tokens, "depth": self.depth, "heads": self.heads}


@dataclass(frozen=True, kw_only=True)
class VisionSection:
    """model: a folder in diffusers' layout (``unet/`` or ``transformer/``, and ``scheduler/``). vae: a diffusers VAE
    folder or a TAESD ``.safetensors``. target: a row of ``lavi_core.vision.VISION_TARGETS``; None = the model's
    config.json tells. embedded_guidance: what a guidance-distilled network (Flux.1 dev) is told in training, where 1 is
    the plain flow; no other network hears it.
    """

    model: str
    vae: str
    target: str | None = None
    train: Training = "lora"
    rank: int = 32
    alpha: float = 32.0
    dropout: float = 0.1
    learning_rate: float = 1e-4
    embedded_guidance: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """kind: "tsv" reads ``image path<TAB>caption`` lines, paths relative to the file; "folder" pairs each image with
    its .txt; "jsonl" reads a Hugging Face image folder's ``metadata.jsonl``; "webdataset" reads tars of images with a
    .txt or .json each, one after the other, local or piped (``data/{000..009}.tar``, ``pipe:curl -s https://...``);
    "shapebench" draws ``count`` pictures.

    caption_column: where a .json or metadata.jsonl has the caption; empty = "text", or "caption" where there is none.
    caption_lines: of a caption of several lines, in a .txt or a metadata.jsonl: "all" = they are one text; "first" = it
    alone is read; "any" = they are several captions of the picture, of which each epoch draws one, by ``seed``.
    resolution: side of the square that pictures are scaled to cover and cropped to, at the centre, small ones too.
    buckets: instead of the square, the shape nearest to the picture's own of those whose area is at most resolution^2,
    whose sides are multiples of ``bucket_step`` and at most ``bucket_ratio`` to one another.
    flip: half of the pictures are mirrored, drawn anew each epoch by ``seed``: it belies "left of", the authors do it.
    validation: pictures held out, never trained on. mix: weights of the ShapeBench categories, all alike if empty.
    cache: folder of the latents, which runs may share; empty = ``latents/`` in the run's output.
    """

    kind: Literal["tsv", "folder", "jsonl", "webdataset", "shapebench"]
    path: str = ""
    caption_column: str = ""
    caption_lines: Literal["all", "first", "any"] = "all"
    resolution: int = 512
    buckets: bool = False
    bucket_step: int = 64
    bucket_ratio: float = 2.0
    flip: bool = False
    validation: int = 0
    cache: str = ""
    count: int = 0
    vocabulary: str = "small"
    mix: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("resolution", "bucket_step"):
            if (value := getattr(self, key)) < 8 or value % 8:
                raise ValueError(f"data.{key} must be a multiple of 8 pixels, which make one latent, got {value}")
        if self.buckets and self.bucket_step > self.resolution:
            raise ValueError(
                f"data.bucket_step {self.bucket_step} is more than data.resolution {self.resolution}; take a smaller "
                "step"
            )
        if self.bucket_ratio < 1:
            raise ValueError(
                f"data.bucket_ratio is the longer side over the shorter, at least 1, got {self.bucket_ratio}"
            )
        if self.caption_lines != "all" and self.kind in ("webdataset", "shapebench"):
            raise ValueError(
                f"data.caption_lines is {self.caption_lines!r}, but data.kind = {self.kind!r} reads captions whole: "
                'leave it out, or take "folder" or "jsonl"'
            )
        if self.seed < 0:
            raise ValueError(f"data.seed is a number from 0 on, got {self.seed}")
        if self.validation < 0:
            raise ValueError(f"data.validation is a number of pictures, got {self.validation}")


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """kind: a row of ``loop/optimizers.py``: "adamw" (fused), "adamw8bit", "paged_adamw8bit" (both bitsandbytes),
    "schedule_free". schedule: "constant", "cosine" (to zero) or "linear" (to zero), all after ``warmup`` optimiser
    steps of linear increase; "schedule_free" takes "constant" alone. clip_norm: the norm that the gradients are brought
    down to; 0 = they stay as they are.

    bad_steps: what becomes of a step whose loss or gradient norm is not finite, or whose loss is more than
    ``explosion`` times the running mean (0 = any finite loss is taken): "stop" the run, or "skip" the batch.
    """

    kind: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    bad_steps: Literal["stop", "skip"] = "stop"
    explosion: float = 100.0

    def __post_init__(self) -> None:
        if self.clip_norm < 0:
            raise ValueError(f"optimizer.clip_norm is a norm, or 0 for no clipping, got {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class LossSection:
    """timesteps: how noise levels are drawn, "uniform" or "logit_normal" (arXiv 2403.03206), before a flow's shift.
    weighting: a row of ``loop/loss_weighting.py``: "none" (the paper's), "min_snr" (arXiv 2303.09556, ``gamma``) or
    "debiased" (arXiv 2310.08442). offset_noise: this much of one number a picture and channel is added to the noise,
    so that overall brightness is learnt (0.05 to 0.1; 0 = none).
    """

    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    weighting: str = "none"
    gamma: float = 5.0
    offset_noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ValidationSection:
    """The loss on ``data.validation`` held-out examples, every ``every`` steps (0 = never): each at the middle of
    ``bins`` equal parts of the noise levels, with noise that is always the same, without caption dropout.

    text: the loss also with each other's captions and with empty ones, which takes three times as long, and the size
    and spread of the context, beside those of the vision model's own text encoder (``text_encoder/`` in its folder).
    """

    every: int = 0
    bins: int = 10
    batch_size: int = 8
    text: bool = True


@dataclass(frozen=True, kw_only=True)
class AlignSection:
    """A head start without pictures, see ``loop/alignment.py``. teacher: the vision model's own text encoder, or the
    folder of its pipeline, whose two CLIPs are then heard side by side (SDXL), or whose T5 with its CLIP's pooled
    vector (Flux.1).

    start: "ridge" or "procrustes" = the adapter's last linear map is solved for on so many ``captions``, see
    ``loop/closed_form.py``; "" = it stays as it was drawn. ridge: the penalty, as a share of each feature's variance.
    steps: of training on the teacher's states, after that; 0 = none, as in the paper. boost: times the learning rates
    of adapter and language model. padding: what padding tokens are to say: "padding" = what the teacher's do; "ends" =
    in turn the states of the caption's first and last word, for a decoder-only model, which has read the whole caption
    only there.

    prediction_steps: the first so many of the run's own steps have another target: what the vision model itself
    predicts, without its LoRA, under the teacher, so that no caption has to describe its picture. As many as ``steps``
    = nothing else.
    """

    start: Literal["", "ridge", "procrustes"] = ""
    captions: int = 2048
    ridge: float = 1e-3
    steps: int = 0
    prediction_steps: int = 0
    teacher: str = ""
    batch_size: int = 64
    boost: float = 1.0
    padding: Literal["padding", "ends"] = "padding"

    @property
    def asked(self) -> bool:
        return bool(self.start or self.steps)


@dataclass(frozen=True, kw_only=True)
class OwnEncoderSection:
    """Two ears: the vision model hears its own text encoder beside the bridge, one context after the other on the
    tokens. The encoder stays as it is; ``sample`` and ComfyUI then need it too.

    model: the folder of a CLIP, a T5 or a BERT, or a pipeline's, whose two CLIPs are then heard side by side (SDXL);
    "" = the bridge is heard alone. place: of its tokens, before or after the bridge's.

    ``caption_dropout`` is of both at once. dropout: the share of the other captions that the own encoder is not told,
    and language_dropout: that the language model is not told; each hears the empty one then, while the other ear hears
    the caption, so that each can also be used by itself. states_gb: as ``language.states_gb``; what the own encoder
    says is computed once and kept in any case, whether the language model is frozen or not.
    """

    model: str = ""
    place: Literal["before", "after"] = "before"
    dropout: float = 0.2
    language_dropout: float = 0.1
    states_gb: float = 20.0


@dataclass(frozen=True, kw_only=True)
class SampleSection:
    """Sample pictures during training: every ``every`` steps (0 = never), with fixed prompts and seed.

    bench: this many prompts of each ShapeBench category are drawn and judged as well.
    """

    every: int = 0
    prompts: tuple[str, ...] = ()
    bench: int = 0
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
