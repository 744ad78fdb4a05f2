"""How long the paper's own run takes, what it holds and what it moves, on so many GPUs.

    python tests/benchmarks/plan.py [--images-per-second MEASURED] [--gpus 1 8 64]

T5-Large and SD 1.4 at 512 pixels, a million pairs, 50,000 steps of 256. Weights, FLOPs and what a backward pass keeps
are counted on the models at true size, on torch's meta device: no weights, no GPU, a minute on a laptop. Speed is the
one that was measured (the trainer's log has images/s), or else FLOPs at an assumed share of a GPU's rate.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import as_package  # noqa: E402, F401  (registers the checkout as lavi_bridge)
import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import true_sizes  # noqa: E402
from lavi_bridge.lavi_core import adapters  # noqa: E402
from lavi_bridge.lavi_core.conditioning import HiddenStates  # noqa: E402
from lavi_bridge.lavi_core.config import AdapterConfig  # noqa: E402
from lavi_bridge.lavi_core.vision import VISION_TARGETS  # noqa: E402
from lavi_bridge.training.models.trainable import prepare  # noqa: E402
from lavi_bridge.training.recipe import LanguageSection, VisionSection  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

PAIRS, STEPS, BATCH = 1_000_000, 50_000, 256
TOKENS, LATENT = 77, (4, 64, 64)
JPEG = 100e3  # bytes of a picture of 512 pixels, assumed
SCALING = {1: 1.0, 8: 0.95, 64: 0.9}  # of the speed of as many single GPUs, assumed


@dataclass(frozen=True)
class Counted:
    """Of one image: FLOPs of a forward pass, of a training step without checkpointing and of the VAE's encoder; bytes
    that the backward pass keeps in bf16, without and with checkpointing. Of the pair: weights.
    """

    forward: float
    step: float
    kept: float
    kept_checkpointed: float
    encoding: float
    frozen: int
    trained: int


class Whole(nn.Module):
    """What a training step runs, on the meta device. In bf16 throughout: autocast has none there."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            config: Any = transformers.AutoConfig.for_model(**true_sizes.LANGUAGE["t5-large"])
            self.language: Any = transformers.T5EncoderModel(config)
            unet: dict[str, Any] = true_sizes.VISION["sd14"]
            self.network: Any = diffusers.UNet2DConditionModel.from_config(unet)
            self.adapter = adapters.build(AdapterConfig(kind="mlp", in_width=1024, inner_width=896, out_width=768))
            sites = [name for name, _ in self.language.named_modules() if name.split(".")[-1] in ("q", "k", "v", "o")]
            prepare(self.language, LanguageSection(model=""), sites)
            prepare(self.network, VisionSection(model="", vae=""), VISION_TARGETS["unet"].sites(self.network))
        self.to(torch.bfloat16).train()

    def forward(self, ids: torch.Tensor, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        states = self.language(ids).last_hidden_state
        heard = self.adapter(HiddenStates(states, torch.ones_like(ids, dtype=torch.bool)))
        return self.network(x, timesteps, encoder_hidden_states=heard.context).sample


PLAIN = nn.functional.scaled_dot_product_attention


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, **options: Any) -> Any:
    """A GPU's kernel for the U-Net's attention; on the meta device torch takes one that keeps the whole matrix."""
    if attn_mask is not None:  # T5's, of 77 tokens
        return PLAIN(query, key, value, attn_mask, **options)
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


@patch.object(nn.functional, "scaled_dot_product_attention", flash)
def count() -> Counted:
    model = Whole()
    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    x = torch.zeros(1, *LATENT, dtype=torch.bfloat16, device="meta")
    timesteps = torch.zeros(1, dtype=torch.long, device="meta")
    numbers = []
    for checkpointed in (False, True):
        if checkpointed:
            model.language.gradient_checkpointing_enable({"use_reentrant": False})
            model.network.enable_gradient_checkpointing()
        kept = {p.untyped_storage()._cdata: p.untyped_storage() for p in model.parameters()}
        weights = len(kept)

        def keep(tensor: torch.Tensor, kept: dict[int, torch.UntypedStorage] = kept) -> torch.Tensor:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage())
            return tensor

        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model(ids, x, timesteps).sum()
            forward = counter.get_total_flops()
            if not checkpointed:
                loss.backward()
        numbers.append((forward, counter.get_total_flops(), sum(s.nbytes() for s in list(kept.values())[weights:])))
    with torch.device("meta"):
        sizes: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
        sizes |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        vae: Any = diffusers.AutoencoderKL.from_config(sizes)
        with FlopCounterMode(display=False) as encoder, torch.no_grad():
            vae.encode(torch.zeros(1, 3, 512, 512))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    (forward, step, kept_bytes), (_, _, checkpointed_bytes) = numbers
    return Counted(forward, step, kept_bytes, checkpointed_bytes, encoder.get_total_flops(), frozen, trained)


def table(counted: Counted, speed: float, encoded: float, gpus: list[int]) -> str:
    """speed, encoded: pictures a second of one GPU, trained on and put through the VAE."""
    gradients, resident = counted.trained * 4, counted.frozen * 2 + counted.trained * 16
    lines = ["| | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in gpus) + " |", "|---" * (len(gpus) + 1) + "|"]

    def line(name: str, value: Any) -> None:
        lines.append(f"| {name} | " + " | ".join(value(n) for n in gpus) + " |")

    def total(n: int) -> float:
        return speed * n * SCALING.get(n, 0.9)

    line("images/s", lambda n: f"{total(n):,.0f}")
    line("days for 12.8 M images", lambda n: f"{STEPS * BATCH / total(n) / 86400:.2g}")
    line("latent cache: hours to fill", lambda n: f"{PAIRS / (encoded * n) / 3600:.2g}")
    line("images at a time, accumulation", lambda n: f"{min(32, BATCH // n)}, {max(1, BATCH // n // 32)}")
    part = {n: min(32, BATCH // n) for n in gpus}
    line("memory of a GPU: weights, gradients, moments", lambda n: f"{resident / 1e9:.1f} GB")
    line("kept for the backward pass", lambda n: f"{part[n] * counted.kept / 1e9:.0f} GB")
    line("the same, checkpointed", lambda n: f"{part[n] * counted.kept_checkpointed / 1e9:.1f} GB")
    line("gradients: a GPU sends a step", lambda n: f"{2 * (n - 1) / n * gradients / 1e6:.0f} MB")
    line("latents read", lambda n: f"{total(n) * latent_bytes() / 1e6:.0f} MB/s")
    return "\n".join(lines)


def latent_bytes() -> int:
    return torch.Size(LATENT).numel() * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, help="of one GPU, measured; else computed from FLOPs")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tflops", type=float, default=989, help="bf16 matrix rate of a GPU (default: H100 SXM's)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of it that is reached (assumed)")
    args = parser.parse_args()
    counted = count()
    rate = args.tflops * 1e12 * args.utilisation
    speed = args.images_per_second or rate / counted.step
    kind = "measured" if args.images_per_second else f"{args.utilisation:.0%} of {args.tflops:g} TFLOP/s, computed"
    print(f"{counted.frozen / 1e6:,.1f} M frozen and {counted.trained / 1e6:,.2f} M trained weights")
    print(f"FLOPs of an image: {counted.forward / 1e12:.3f} T forward, {counted.step / 1e12:.3f} T a step, ", end="")
    print(f"{counted.encoding / 1e12:.3f} T through the VAE's encoder")
    print(f"state: {counted.trained * 12 / 1e6:.0f} MB; gradients: {counted.trained * 4 / 1e6:.0f} MB")
    print(f"latents of {PAIRS:,} images: {PAIRS * latent_bytes() / 1e9:.1f} GB; images: {PAIRS * JPEG / 1e9:.0f} GB\n")
    print(f"One GPU: {speed:.1f} images/s ({kind})\n\n{table(counted, speed, rate / counted.encoding, args.gpus)}")


if __name__ == "__main__":
    main()
