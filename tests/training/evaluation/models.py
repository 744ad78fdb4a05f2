"""The metrics' models, tiny: transformers' own classes with random weights, in folders as they are published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lavi_bridge.training.evaluation.metric_weights import checksum
from lavi_bridge.training.evaluation.metrics.detector import Box, Detector, Kind

TEXT = """a an the and of is on in to left right above below next red green blue yellow circle square cat dog
person photo yes no ? . , wooden big running"""
WORDS = TEXT.split()


def words(special: Sequence[str] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")):
    """A BERT-like tokenizer of whole words, lower case, marks at both ends."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    pad, unknown, start, end = special
    table = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(WordLevel(table, unk_token=unknown))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, table[start]), (end, table[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, unk_token=unknown, bos_token=start, eos_token=end
    )


def write_clip(folder: Path, width: int = 16) -> Path:
    """A CLIP of pictures of 32 pixels with embeddings of ``width``."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(1)
    tokenizer = words(("<pad>", "<unk>", "<start>", "<end>"))
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = common | {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=text, vision_config=common | {"image_size": 32, "patch_size": 8}, projection_dim=width
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def write_blip(folder: Path) -> Path:
    """BLIP for questions; [DEC] and [ENC] are the two last of its vocabulary."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessorPil

    torch.manual_seed(2)
    tokenizer = words()
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = common | {"vocab_size": len(tokenizer) + 2, "encoder_hidden_size": 32, "max_position_embeddings": 32}
    text |= {"bos_token_id": len(tokenizer), "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=common | {"image_size": 96, "patch_size": 48})
    config.text_config.is_decoder = True
    model = BlipForQuestionAnswering(config)
    for parameter in model.parameters():  # BLIP's own 0.02 would make all answers alike
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


def write_detr(folder: Path, labels: Sequence[str] = ("person", "circle", "square")) -> Path:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessorPil, ResNetConfig

    torch.manual_seed(3)
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
    sizes["out_features"] = ["stage4"]
    plain: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    config = DetrConfig(
        **plain,
        backbone_config=ResNetConfig(layer_type="basic", **sizes),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=6,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = DetrForObjectDetection(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    return folder


def write_owl(folder: Path) -> Path:
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessorPil

    torch.manual_seed(4)
    tokenizer = words(("<pad>", "<unk>", "<start>", "<end>"))
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = common | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 3, "pad_token_id": 0}
    config = OwlViTConfig(
        text_config=text, vision_config=common | {"image_size": 32, "patch_size": 8}, projection_dim=32
    )
    OwlViTForObjectDetection(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    OwlViTImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    processor = {"processor_class": "OwlViTProcessor", "image_processor_type": "OwlViTImageProcessor"}
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | processor))
    return folder


def fake_detector(boxes: Mapping[str, Box]) -> Detector:
    """It sees ``boxes`` in any picture, and knows no other nouns."""
    kind = Kind(
        model="",
        processor="",
        look=lambda detector, images, nouns: [[boxes.get(noun) for noun in one] for one in nouns],
        knows=lambda detector, noun: noun in boxes,
    )
    return Detector(model=None, processor=None, name="fake", kind=kind)


def write_weights(path: Path, roles: Mapping[str, Path]) -> Path:
    """The TOML file that names ``roles``, with their checksums."""
    tables = (
        f"[{role}]\npath = {json.dumps(str(place))}\nsha256 = {json.dumps(checksum(place))}\n"
        for role, place in roles.items()
    )
    path.write_text("\n".join(tables))
    return path
