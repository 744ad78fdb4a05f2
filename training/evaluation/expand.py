"""``lavi-bridge evaluate expand``: long prompts of short ones, by a local causal language model."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...lavi_core import fingerprint
from ...lavi_core.files import write_text
from ..models import named
from ..models.device import pick_device
from ..models.progress import bar
from .prompts import Prompt, read_prompts

LEAST, MOST = 20, 70  # words of a long prompt, as the paper's are recalled to be
NEW_TOKENS = 128
REQUEST = (
    "Expand this short image caption into one detailed description of the same picture, in {least} to {most} words. "
    "Answer with the description alone.\nCaption: {text}"
)
Writer = Callable[[str, int], str]  # (short prompt, seed) -> what the model writes


def expand(args: argparse.Namespace) -> str:
    """Write the long prompts as .jsonl (prompt, category "long", short, words, fits, seed, lm); say how many fit.

    Prompts that the file holds already are kept, but for those that did not fit and now have more tries; it is written
    after each new one. Raises ValueError for a file with long prompts of other short ones, or by another model or seed.
    """

    if args.tries < 1:
        raise ValueError(f"--tries must be at least 1, got {args.tries}")
    shorts = read_prompts(args.prompts)
    name, write = load_writer(named.language(args.lm), pick_device(args.device))
    output = Path(args.output)
    known = _known(output, name, args.seed, [prompt.text for prompt in shorts])
    rows: list[dict[str, Any]] = []
    for i, prompt in enumerate(bar(shorts, desc="expanding", unit="prompt")):
        row = known.get(prompt.text)
        kept = row is not None and (row["fits"] or row["tries"] >= args.tries)
        if row is None or not kept:
            row = lengthened(prompt, write, args.seed, args.tries) | {"lm": name}
        rows.append(row)
        if not kept:
            known[prompt.text] = row
            rest = [known[later.text] for later in shorts[i + 1 :] if later.text in known]
            _write(output, [*rows, *rest])
    _write(output, rows)
    fit = sum(row["fits"] for row in rows)
    words = sorted(row["words"] for row in rows)
    return (
        f"{output}: {len(rows)} long prompts by {name}, {fit} of {LEAST} to {MOST} words (from {words[0]} to "
        f"{words[-1]}, median {words[len(words) // 2]})"
    )


def lengthened(prompt: Prompt, write: Writer, seed: int, tries: int) -> dict[str, Any]:
    """The first of ``tries`` texts that has LEAST to MOST words, else the one nearest to that."""
    found = []
    for attempt in range(tries):
        digest = hashlib.sha256(f"{seed}:{attempt}:{prompt.text}".encode()).digest()
        text = " ".join(write(prompt.text, int.from_bytes(digest[:6], "big")).split())
        found.append(text)
        if _off(text) == 0:
            break
    text = min(found, key=_off)
    return {
        "prompt": text or prompt.text,
        "category": "long",
        "short": prompt.text,
        "words": len(text.split()),
        "fits": _off(text) == 0,
        "seed": seed,
        "tries": tries,
    }


def load_writer(source: Path, device: torch.device) -> tuple[str, Writer]:
    """(name and print of the model, what writes). source: a Hugging Face folder or a .gguf file, never a hub's name.

    Raises ValueError where it is neither."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not source.exists():
        raise ValueError(f"there is no language model at {source}; give a folder or a .gguf file")
    place = source.parent if source.is_file() else source
    options: dict[str, Any] = {"local_files_only": True}
    if source.is_file():
        options["gguf_file"] = source.name
    tokenizer: Any = AutoTokenizer.from_pretrained(place, **options)
    model: Any = AutoModelForCausalLM.from_pretrained(place, **options)
    if not source.is_file():  # a .gguf is read as float32, and transformers forbids to cast it again
        model.float()
    model.eval().to(device)

    @torch.no_grad()
    def write(text: str, seed: int) -> str:
        request = REQUEST.format(least=LEAST, most=MOST, text=text)
        if tokenizer.chat_template:
            said = [{"role": "user", "content": request}]
            request = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(request, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            ids = model.generate(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                do_sample=True,
                temperature=0.7,
                top_p=0.9,
                top_k=0,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        return tokenizer.decode(ids[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True).strip().strip('"')

    return f"{source.stem} {fingerprint.weights_fingerprint(model)[:16]}", write


def _off(text: str) -> int:
    """How many words ``text`` has too few or too many."""
    count = len(text.split())
    return max(LEAST - count, count - MOST, 0)


def _known(path: Path, lm: str, seed: int, shorts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """short prompt -> row, of an earlier call."""
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            facts = row["short"], row["lm"], row["seed"], row["tries"], row["fits"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} line {number} is none of `evaluate expand`; give another file") from None
        if facts[1:3] != (lm, seed):
            raise ValueError(f"{path} is by {facts[1]}, seed {facts[2]}, now it is {lm}, {seed}: give another file")
        if facts[0] not in shorts:
            raise ValueError(f"{path} has a long prompt of {facts[0]!r}, which is not asked for: give another file")
        found[facts[0]] = row
    return found


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
