"""The figures that the paper reports (arXiv 2403.07860, the authors' own slides), as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...lavi_core.registry import Registry

# (row of the paper, our metric, category of its prompts). Which aesthetic head the paper took is not said, and its
# spatial and 3-in-1 scores are UniDet's.
ROWS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("Short - FID", ("fid",), "short"),
    ("Short - Aesthetics", ("aesthetic-v1", "aesthetic-v2"), "short"),
    ("Short - CLIP Score", ("clip-score",), "short"),
    ("Long - Aesthetics", ("aesthetic-v1", "aesthetic-v2"), "long"),
    ("Long - CLIP Score", ("clip-score",), "long"),
    ("Comp - Color", ("blip-vqa",), "color"),
    ("Comp - Shape", ("blip-vqa",), "shape"),
    ("Comp - Texture", ("blip-vqa",), "texture"),
    ("Comp - Spatial", ("spatial",), "spatial"),
    ("Comp - Non-Spatial", ("clip-score",), "non_spatial"),
    ("Comp - Complex", ("3-in-1",), "complex"),
)


@dataclass(frozen=True)
class Reported:
    """columns: name -> a figure for each of ROWS, as printed."""

    title: str
    columns: Mapping[str, tuple[str, ...]]


def _columns(text: str) -> dict[str, tuple[str, ...]]:
    head, *rows = (line.split("|") for line in text.strip().splitlines())
    return {name.strip(): tuple(row[i].strip() for row in rows) for i, name in enumerate(head)}


PAPER: Registry[Reported] = Registry(
    "table of the paper",
    {
        "language": Reported(
            "language models, with the U-Net of Stable Diffusion 1.4",
            _columns("""
CLIP   | T5-Small | T5-Base | T5-Large | Llama-2
23.57  | 22.98    | 22.62   | 23.11    | 21.80
5.609  | 5.813    | 5.888   | 5.881    | 5.883
0.3102 | 0.3122   | 0.3149  | 0.3156   | 0.3172
6.003  | 6.206    | 6.284   | 6.305    | 6.355
0.3120 | 0.3111   | 0.3179  | 0.3193   | 0.3231
0.3578 | 0.3368   | 0.3856  | 0.3889   | 0.4859
0.3752 | 0.2962   | 0.3266  | 0.3552   | 0.4285
0.4506 | 0.3728   | 0.4132  | 0.4524   | 0.5055
0.1296 | 0.1456   | 0.1569  | 0.1582   | 0.1914
0.3009 | 0.2984   | 0.3054  | 0.3068   | 0.3106
0.2985 | 0.2728   | 0.3055  | 0.3072   | 0.3094
"""),
        ),
        "vision": Reported(
            "vision models, with T5-Large",
            _columns("""
U-Net (LDM) | U-Net (SD) | Transformer (PixArt)
25.94       | 23.11      | 23.02
5.703       | 5.881      | 6.145
0.3126      | 0.3156     | 0.3172
6.122       | 6.305      | 6.406
0.3189      | 0.3193     | 0.3210
0.4099      | 0.3889     | 0.3689
0.3724      | 0.3552     | 0.3316
0.5046      | 0.4524     | 0.4553
0.1550      | 0.1582     | 0.1725
0.3004      | 0.3068     | 0.3098
0.3060      | 0.3072     | 0.3014
"""),
        ),
        "ablation": Reported(
            "ablations",
            _columns("""
SD     | CLIP+U-Net | w/o Adapter | w/o LoRA | T5+U-Net
20.32  | 23.57      | 23.81       | 22.35    | 23.11
5.899  | 5.609      | 5.807       | 5.829    | 5.881
0.3132 | 0.3102     | 0.3147      | 0.3107   | 0.3156
6.120  | 6.003      | 6.131       | 6.273    | 6.305
0.3171 | 0.3120     | 0.3106      | 0.3097   | 0.3193
0.3570 | 0.3578     | 0.3550      | 0.2485   | 0.3889
0.3563 | 0.3752     | 0.3044      | 0.2944   | 0.3552
0.4028 | 0.4506     | 0.4001      | 0.3190   | 0.4524
0.1225 | 0.1296     | 0.1651      | 0.0956   | 0.1582
0.3104 | 0.3009     | 0.3065      | 0.2998   | 0.3068
0.3042 | 0.2985     | 0.2878      | 0.2687   | 0.3072
"""),
        ),
    },
)
