"""The module order that gives the authors' unnamed LoRA tensors their names: that of the libraries of their time.

Stated, not asked of the installed libraries: these may declare a class's attributes in another order, and a query
matrix taken for a key matrix has the right shape.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..registry import Registry

Order = tuple[str, ...]  # attribute names, siblings in the order in which their class declares them

LANGUAGE_ORDERS: Registry[Order] = Registry(  # by language family; as in transformers 4.38
    "language family in the authors' LoRA lists",
    {
        "t5": ("encoder", "block", "layer", "SelfAttention", "q", "k", "v", "o"),
        "clip": ("encoder", "layers", "self_attn", "k_proj", "v_proj", "q_proj", "out_proj"),
        "bert": ("encoder", "layer", "attention", "self", "query", "key", "value", "output", "dense"),
        "roberta": ("encoder", "layer", "attention", "self", "query", "key", "value", "output", "dense"),
        "llama": ("layers", "self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
    },
)

VISION_ORDERS: Registry[Order] = (
    Registry(  # by diffusers class; as in diffusers 0.24, and in 0.16 of the published files
        "vision model in the authors' LoRA lists",
        {
            "UNet2DConditionModel": (
                *("down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "transformer_blocks"),
                *("attn1", "attn2", "ff", "net", "proj", "to_q", "to_k", "to_v", "to_out"),
                *("conv1", "time_emb_proj", "conv2", "conv_shortcut"),
            ),
            "PixArtTransformer2DModel": ("transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out"),
        },
    )
)


def in_order(paths: Iterable[str], order: Order) -> list[str]:
    """Module paths, depth first: siblings as ``order`` names them, list entries by number.

    Raises ValueError for a path with a name that ``order`` lacks.
    """
    rank = {name: i for i, name in enumerate(order)}

    def place(path: str) -> list[int]:
        parts = path.split(".")
        unknown = next((part for part in parts if not part.isdigit() and part not in rank), None)
        if unknown is not None:
            raise ValueError(f"where {unknown} of {path} stands in the authors' LoRA lists is not known")
        return [int(part) if part.isdigit() else rank[part] for part in parts]

    return sorted(paths, key=place)
