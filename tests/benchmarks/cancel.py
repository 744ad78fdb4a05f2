"""How soon a prompt ends after the user's cancel, while a language model is read and while it runs; on a real host.

Needs aiohttp.

python tests/benchmarks/cancel.py --host ~/comfy/ComfyUI --gguf FILE.gguf
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import as_package  # noqa: F401 (makes the package lavi_bridge)
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.nodes import vision_models as vm
from lavi_bridge.tests.nodes.host import Place, Server
from lavi_bridge.tests.nodes.tiny import bridge, language_model

LAYERS, WIDTH = 12, 2048


def write_models(base: Path, gguf: Path) -> None:
    """A random Llama of 1 GB in bfloat16, the GGUF file, and a bridge for each."""
    import transformers

    models = base / "models"
    for name in ("LLM", "lavi_bridges", "diffusers"):
        (models / name).mkdir(parents=True)
    folder = language_model(models / "LLM" / "big", "llama")
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    config.update({"hidden_size": WIDTH, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 16})
    config.update({"intermediate_size": 5632, "num_hidden_layers": LAYERS})
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.LlamaModel(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    del model
    vision = vm.unet(models / "diffusers" / "tiny-flow", vm.FLOW, vm.TINY, vm.SCALE)
    (models / "LLM" / "file.gguf").symlink_to(gguf)
    for name, path in (("big", folder), ("file", models / "LLM" / "file.gguf")):
        bridge(models / "lavi_bridges" / f"{name}.safetensors", TextEncoder.load(path), vision)


def graph(model: str, name: str, dtype: str, text: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LaViBridgeLoadLanguageModel", "inputs": {"model": model, "dtype": dtype}},
        "2": {
            "class_type": "LaViBridgeLoad",
            "inputs": {
                "language_model": ["1", 0],
                "bridge": f"{name}.safetensors",
                "language_lora": 0.0,
                "allow_other_model": False,
            },
        },
        "3": {
            "class_type": "LaViBridgeTextEncode",
            "inputs": {"bridge": ["2", 0], "text": text, "long_prompts": "full length"},
        },
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }


def search(name: str) -> dict[str, Any]:
    """The language model is looked for, whose vocabulary is read for that."""
    inputs = {"bridge": f"{name}.safetensors", "language_lora": 0.0, "dtype": "float32"}
    return {
        "1": {"class_type": "LaViBridgeLoadWithModel", "inputs": inputs},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
    }


async def run(server: Server, prompt: dict[str, Any], cancel_at: str | None, after: float) -> str:
    """Queue it; ``after`` seconds into node ``cancel_at`` press cancel. -> a line of what happened."""
    import aiohttp

    url = f"http://127.0.0.1:{server.port}"
    steps, ended, pressed, began = [], "", 0.0, time.monotonic()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId=me") as socket:
        await session.post(f"{url}/prompt", json={"prompt": prompt, "client_id": "me"})

        async def press() -> None:
            nonlocal pressed
            await asyncio.sleep(after)
            pressed = time.monotonic()
            await session.post(f"{url}/interrupt")

        pressing = None
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            kind, data = told["type"], told["data"]
            if kind == "executing" and data["node"] == cancel_at and cancel_at is not None and pressing is None:
                pressing = asyncio.create_task(press())
            if kind == "progress" and data.get("node") == "1":
                steps.append(data["value"] / data["max"])
            if kind in ("execution_success", "execution_interrupted", "execution_error"):
                ended = kind
                break
    now = time.monotonic()
    words = f"{ended} after {now - began:.1f} s, {len(set(steps))} steps of the bar up to {max(steps, default=0):.0%}"
    return f"{words}, {now - pressed:.2f} s after the cancel" if pressed else words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_models(base, args.gguf.resolve())
        server = Server(Place(args.host, args.host / ".venv" / "bin" / "python"), base)
        try:
            for title, prompt, at, after in (
                ("looking for a model", search("file"), "1", 0.3),
                ("reading a folder", graph("big", "big", "float32", "a"), "1", 1.5),
                ("the same, quantised", graph("big", "big", "8-bit", "a"), "1", 3.0),
                ("reading a GGUF file", graph("file.gguf", "file", "float32", "a"), "1", 2.0),
                ("a pass", graph("big", "big", "float32", "a red circle " * 30), "3", 1.0),
                ("the next run", graph("file.gguf", "file", "float32", "a"), None, 0.0),
                ("the next run, folder", graph("big", "big", "8-bit", "a"), None, 0.0),
            ):
                print(f"{title}: {asyncio.run(run(server, prompt, at, after))}", flush=True)
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/queue", timeout=30) as reply:
                print(json.load(reply))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
