"""One wait, measured by the host's Python in the host's own library; see ``waits.py``.

    python waits_inside.py HOST BASE PACK OUT < "task"

OUT gets CPU seconds of one thread, so that other work on the machine is not counted.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nodes" / "inside"))
library = importlib.import_module("host_library")  # readies the host

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import modeling_gguf_pytorch_utils  # noqa: E402, F401  (its import is not what is waited for)

bridge_ = importlib.import_module("hyphen-pack.nodes.bridge")
language_ = importlib.import_module("hyphen-pack.nodes.language")
prompt_syntax = importlib.import_module("hyphen-pack.nodes.prompt_syntax")

FILE = Path(library.BASE) / "models" / "LLM" / "model.gguf"
PROMPT = "a red circle left of a blue square, two elephants " * 200  # of 10 words each


def read() -> None:
    FILE.read_bytes()
    kind = transformers.PreTrainedTokenizerFast
    kind.from_pretrained(str(FILE.parent), gguf_file=FILE.name, local_files_only=True)


def timed(function: Callable[..., Any], *args: Any) -> float:
    began = time.process_time()
    function(*args)
    return time.process_time() - began


task = json.load(sys.stdin)
torch.set_num_threads(1)
with torch.inference_mode():
    if task == "bytes":
        seconds = timed(read)
    elif task == "load":
        seconds = timed(language_.LanguageModel.load, FILE, torch.float32)
    else:
        model = language_.LanguageModel.load(FILE, torch.float32)
        bridge = bridge_.ConnectedBridge.load("model.safetensors", model, 1.0, False)
        bridge.encode("a circle")
        way = {"whole": "full length", "chunk": "chunk"}[task]
        seconds = timed(bridge.encode, PROMPT, prompt_syntax.PromptOptions(long_prompts=way))
Path(library.OUT).write_text(json.dumps(seconds))
