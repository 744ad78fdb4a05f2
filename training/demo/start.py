"""Makes the demo's small vision model before its training: a random network, a scheduler, a pretrained text encoder.

``python -m lavi_bridge.training.demo.start RECIPE.toml``. The demo's text encoder (a two-layer BERT over the words of
training captions) is first taught to read: from the state of every word it must tell what the object that the word
belongs to looks like and where it stands. Stable Diffusion's encoder, too, was taught by another task before the U-Net
met it.
"""

from __future__ import annotations

import json
import logging
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...lavi_core.config import from_dict
from ...lavi_core.files import write_text
from ...lavi_core.language import TextEncoder
from ...lavi_core.prompt import PromptRecipe
from ..models import progress
from ..shapebench import CATEGORIES, VOCABULARIES, Scene, Vocabulary, caption, sample_scene, words

log = logging.getLogger(__name__)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True, kw_only=True)
class TextEncoderSection:
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_length: int
    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class StartRecipe:
    """unet, transformer: arguments of diffusers' UNet2DConditionModel or PixArtTransformer2DModel, one of the two,
    beside four latent channels and a 16 x 16 grid. text_encoder: None = the vision model is trained with another's.
    """

    output: str
    vocabulary: str
    latent_scale: float
    shift: float
    seed: int
    unet: dict[str, Any] | None = None
    transformer: dict[str, Any] | None = None
    text_encoder: TextEncoderSection | None = None

    def __post_init__(self) -> None:
        if (self.unet is None) == (self.transformer is None):
            raise ValueError("a start has one network, [unet] or [transformer], this one has both or neither")


def tokenizer(vocabulary: Vocabulary, max_length: int):
    """A word-level tokenizer over the words of training captions: any other word is [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    table = {word: i for i, word in enumerate((*SPECIAL, *words(vocabulary)))}
    core = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    core.post_processor = processors.BertProcessing(("[SEP]", table["[SEP]"]), ("[CLS]", table["[CLS]"]))  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def reading_task(scene: Scene, text: str, vocabulary: Vocabulary) -> list[list[int]]:
    """For every word, [colour, shape, texture, side, count] of its object; -100 where there is nothing to tell."""
    sides = ("none", *(r.name for r in vocabulary.relations))
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    kinds = (vocabulary.colors, vocabulary.shapes, vocabulary.textures)
    colors, shapes, textures = ([concept.name for concept in kind] for kind in kinds)
    joints = ["and", *(name for r in vocabulary.relations for name in (r.name, *r.synonyms))]
    taken = text.split()
    second = len(taken)
    if scene.category != "count" and len(scene.objects) == 2:
        joint = max((j for j in joints if f" {j} " in f" {text} "), key=len)
        first = len(text[: f" {text} ".index(f" {joint} ")].split())
        second = first + len(joint.split())
    rows = []
    for place in range(len(taken)):
        late = place >= second
        thing = scene.objects[1 if late else 0]
        side = "none"
        if scene.relation:
            side = opposite[scene.relation] if late else scene.relation
        rows.append(
            [
                colors.index(thing.color),
                shapes.index(thing.shape),
                textures.index(thing.texture) if scene.names_texture else -100,
                sides.index(side),
                (len(scene.objects) if scene.category == "count" else 1) - 1,
            ]
        )
    return rows


def teach(recipe: StartRecipe, folder: Path) -> None:
    """Build the text encoder, teach it to read, and save it as a Hugging Face folder."""
    from transformers import BertConfig, BertModel

    section, vocabulary = recipe.text_encoder, VOCABULARIES[recipe.vocabulary]
    assert section is not None
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    tokens = tokenizer(vocabulary, section.max_length)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=section.hidden_size,
        num_hidden_layers=section.num_hidden_layers,
        num_attention_heads=section.num_attention_heads,
        intermediate_size=section.intermediate_size,
        max_position_embeddings=section.max_length,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    encoder = TextEncoder.load(folder)
    encoder.requires_grad_(True).train()
    sizes = (len(vocabulary.colors), len(vocabulary.shapes), len(vocabulary.textures), 5, len(vocabulary.counts))
    heads = nn.Linear(section.hidden_size, sum(sizes))
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=section.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, section.learning_rate, section.steps, pct_start=0.1)
    prompt = PromptRecipe(max_length=section.max_length)
    bar = progress.bar(range(section.steps), desc="text encoder")
    for _ in bar:
        texts, labels = [], torch.full((section.batch_size, section.max_length, len(sizes)), -100)
        for row in range(section.batch_size):
            scene = sample_scene(rng, CATEGORIES[int(rng.integers(len(CATEGORIES)))], vocabulary, "train")
            text = caption(scene, rng, "train", vocabulary)
            texts.append(text)
            task = torch.tensor(reading_task(scene, text, vocabulary))
            labels[row, 1 : 1 + len(task)] = task  # [CLS] comes first
        logits = heads(encoder(encoder.tokenize(texts, prompt), prompt).states)
        parts = zip(logits.split(sizes, -1), labels.unbind(-1), strict=True)
        losses = [nn.functional.cross_entropy(part.flatten(0, 1), label.flatten()) for part, label in parts]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    encoder.model.save_pretrained(folder)  # type: ignore[operator]


def build(recipe: StartRecipe) -> Path:
    """Write the whole starting point and return its folder."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    folder = Path(recipe.output) / "vision"
    torch.manual_seed(recipe.seed)
    name, network = ("unet", unet(recipe.unet)) if recipe.unet else ("transformer", transformer(recipe.transformer))
    network.save_pretrained(folder / name)
    config = json.loads((folder / name / "config.json").read_text())
    config |= {"latent_scale": recipe.latent_scale, "model_id": f"lavi-bridge/shapes-{name}"}
    write_text(folder / name / "config.json", json.dumps(config, indent=2))
    FlowMatchEulerDiscreteScheduler(shift=recipe.shift).save_pretrained(folder / "scheduler")
    if recipe.text_encoder:
        teach(recipe, folder / "text_encoder")
    return folder


def unet(arguments: dict[str, Any]) -> Any:
    """Two levels of resolution, cross-attention at the coarser one."""
    from diffusers import UNet2DConditionModel

    sizes: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        **sizes,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def transformer(arguments: Any) -> Any:
    """PixArt's, which predicts no variance here."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(sample_size=16, in_channels=4, out_channels=4, **arguments)


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (path,) = sys.argv[1:] if argv is None else argv
    log.info("wrote %s", build(from_dict(StartRecipe, tomllib.loads(Path(path).read_text()))))


if __name__ == "__main__":
    main()
