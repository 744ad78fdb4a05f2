"""Which language models of the installed transformers say through TextEncoder what they say by themselves, as a page.

    python tests/benchmarks/language_models.py -o lavi_core/language/README.md

Every model_type that reads text is built tiny with random weights (sizes: tests/lavi_core/language/tiny_families.py),
saved with a tokenizer, loaded, and compared with transformers' own class, for every option of a recipe and every way to
load (tests/lavi_core/language/examination.py). One core, no network, about ten seconds a dozen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: F401 (makes the package lavi_bridge)
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.lavi_core.conftest import write_tokenizer
from lavi_bridge.tests.lavi_core.language.examination import Outcome, examine, examine_uses, tried
from lavi_bridge.tests.lavi_core.language.tiny_families import tiny_model

SECONDS = 60  # that one family may take
TABLES = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "TEXT_ENCODING", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
# What a check is called on the page, and those of them that belong together.
NAMES = {
    "last": "last",
    "longer": "last",
    "padded right": "padding to max_length",
    "unmasked": "no mask",
    "batch": "in a batch",
    "in company": "padding to the longest",
    "padded left": "padding on the left",
    "last_before_norm": "last_before_norm",
    "normalized_mean": "normalized_mean",
    "all positions": "all positions",
    "whole model": "beside the whole model",
    "bf16": "bfloat16",
    "8-bit": "8-bit",
    "streamed": "streamed",
    "fingerprint": "fingerprint before loading",
    "LoRA": "LoRA",
}


class Row(NamedTuple):
    """Of one family. trunk: the class that reads the prompt; "" = it was not loaded, for the reason in outcomes."""

    model_type: str
    trunk: str
    outcomes: dict[str, Outcome]

    @property
    def kind(self) -> str:
        """The worst that was found."""
        kinds = {outcome.kind for outcome in self.outcomes.values()}
        if not self.trunk:
            return next(iter(kinds))
        return next((kind for kind in ("wrong", "raw", "refused") if kind in kinds), "right")


def families() -> list[str]:
    """Every model_type that transformers has a text model for, or another model with a vocabulary and input_ids."""
    from transformers.models.auto import modeling_auto as auto

    texts = {kind for table in TABLES for kind in getattr(auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {})}
    return sorted(texts | {kind for kind in auto.MODEL_MAPPING_NAMES if kind not in texts and _reads_text(kind)})


def _reads_text(model_type: str) -> bool:
    import inspect

    import transformers as hf

    try:
        config: Any = hf.CONFIG_MAPPING[model_type]()
        if not hasattr(config.get_text_config(), "vocab_size"):
            return False
        forward = hf.MODEL_MAPPING[type(config)].forward
    except Exception:  # a package that is missing, parts that the config must be given
        return False
    return "input_ids" in inspect.signature(forward).parameters


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def row(model_type: str, vocabulary: Path, size: int, work: Path, head: bool) -> Row:
    """vocabulary: a folder with a tokenizer of ``size`` tokens. head: saved with its head, as publishers save it."""
    folder = work / model_type
    made: dict[str, Any] = {}

    def build() -> float:
        made["model"] = tiny_model(model_type, size, head)
        return 0.0

    def load() -> float:
        shutil.copytree(vocabulary, folder)
        made["model"].save_pretrained(folder)
        made["encoder"] = TextEncoder.load(folder)
        return 0.0

    try:
        with _in_time():
            built = tried(build)
            if built.kind != "right":
                return Row(model_type, "", {"build": Outcome("unbuilt", built.why)})
            loaded = tried(load)
            if loaded.kind != "right":
                return Row(model_type, "", {"load": loaded})
            encoder: TextEncoder = made["encoder"]
            outcomes = examine(encoder, folder)
            if outcomes["last"].kind == "right":
                outcomes |= examine_uses(encoder, folder)
            return Row(model_type, type(encoder.model).__name__, outcomes)
    except Exception as error:  # the time is up, or transformers itself cannot be asked
        return Row(model_type, "", {"load": Outcome("unbuilt", f"{type(error).__name__}: {error}")})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def page(rows: list[Row]) -> str:
    import torch
    import transformers

    counts = Counter(row.kind for row in rows if row.trunk)
    loaded = [row for row in rows if row.trunk]
    reads = [row for row in loaded if row.outcomes["last"].kind == "right"]
    unbuilt = [row for row in rows if row.kind == "unbuilt"]
    return (
        "\n".join(
            [
                *_HEAD.format(
                    command="python tests/benchmarks/language_models.py -o lavi_core/language/README.md",
                    torch=torch.__version__.partition("+")[0],
                    transformers=transformers.__version__,
                    tokenizers=importlib.metadata.version("tokenizers"),
                    tried=len(rows),
                    built=len(rows) - len(unbuilt),
                    read=len(reads),
                    all_right=sum(row.kind == "right" for row in reads),
                    refusing=sum(row.kind == "refused" for row in reads),
                    wrong=counts["wrong"],
                    raw=sum(any(o.kind == "raw" for o in row.outcomes.values()) for row in rows),
                    refused=sum(row.outcomes["last"].kind == "refused" for row in loaded)
                    + sum(row.kind == "refused" for row in rows if not row.trunk),
                    unbuilt=len(unbuilt),
                ).splitlines(),
                "",
                "| model_type | reads by | right | refused, or **wrong** |",
                "|---|---|---|---|",
                *(_line(row) for row in reads),
                "",
                "## Refused whole",
                "",
                "| model_type | why |",
                "|---|---|",
                *(_reason(row) for row in rows if row not in reads and row not in unbuilt),
                "",
                "## Not built tiny",
                "",
                "Their classes ask for packages that are not installed here, or their sizes are not those of one rule.",
                "",
                "| model_type | why |",
                "|---|---|",
                *(_reason(row) for row in unbuilt),
            ]
        )
        + "\n"
    )


_HEAD = """# Language models: right, refused, wrong

Every family of transformers {transformers} that reads text, tiny and random, beside transformers' own class (torch
{torch}, CPU). Written by

```bash
{command}
```

{tried} families were tried and {built} built; {read} of them are read as transformers reads them: {all_right} in every
way below, {refusing} with something refused in a sentence. {refused} are refused whole. **Wrong: {wrong}. Raw errors
of a library: {raw}.** {unbuilt} could not be built.

"All" is: the last states of a short and a long prompt, alone, in a batch, padded on the right to max_length with
and without the mask, to the longest, and on the left; every entry by its number and -2; last_before_norm;
normalized_mean; a prompt that takes all positions; bfloat16; 8-bit weights (within 10 %, or as rounded weights say);
streamed from disk; the fingerprint that is read from the files; a live LoRA beside a merged one. The trunk of a model
of text and pictures is compared with the whole model, given text."""


def _line(row: Row) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for name, outcome in row.outcomes.items():
        if outcome.kind in ("refused", "wrong", "raw"):
            groups.setdefault((outcome.kind, _short(outcome.why, row.model_type)), []).append(NAMES.get(name, name))
    notes = []
    for (kind, why), names in groups.items():
        entries = [name for name in names if name.startswith("entry")]
        shown = list(dict.fromkeys(["single entries" if name in entries else name for name in names]))
        said = f"{', '.join(shown)}: {why}"
        notes.append(said if kind == "refused" else f"**{kind}** {said}")
    right = "all but" if notes else "all"
    return f"| {row.model_type} | {row.trunk} | {right} | {'; '.join(notes)} |"


def _reason(row: Row) -> str:
    outcome = next(o for o in row.outcomes.values() if o.kind != "right")
    mark = "**raw** " if outcome.kind == "raw" else ""
    return f"| {row.model_type} | {mark}{_short(outcome.why, row.model_type)} |"


def _short(why: str, name: str) -> str:
    """A sentence for a cell: without the model's name, a folder and the way out."""
    words = re.sub(r"^hidden_states = \S+ cannot be had of \S+ \((.*)\); set .*$", r"\1", why)
    words = re.sub(
        r"the hidden states '?-?\w+'? of (\S+) have shape (\(.*?\)), not (\(.*?\)).*", r"shape \2, not \3", words
    )
    words = re.sub(r"^transformers cannot load \S+: ", "", words)
    words = words.replace(f"{name} (generic) ", "").replace(f"the states of {name}", "states").removeprefix(f"{name} ")
    words = words.partition("; ")[0].replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")
    return words if len(words) <= 160 else f"{words[:157].rstrip()}..."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", help="comma-separated model_types; default: every one that reads text")
    parser.add_argument("--bare", action="store_true", help="saved without its head")
    parser.add_argument("--record", type=Path, help="a file of every outcome, one a line, in columns")
    parser.add_argument("-o", "--output", type=Path, help="the page; default: printed")
    args = parser.parse_args()
    import transformers
    from tqdm import tqdm

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    names = args.families.split(",") if args.families else families()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        vocabulary = Path(work) / "tokenizer of the tests"
        vocabulary.mkdir()
        size = len(write_tokenizer(vocabulary))
        for name in (bar := tqdm(names, mininterval=1)):
            bar.set_description(name[:24])
            rows.append(row(name, vocabulary, size, Path(work), not args.bare))
            if args.record:
                with args.record.open("a", encoding="utf-8") as record:
                    record.writelines(
                        "\t".join((name, rows[-1].trunk, k, *o)) + "\n" for k, o in rows[-1].outcomes.items()
                    )
            if rows[-1].kind in ("wrong", "raw"):
                bar.write(f"{name}: {rows[-1].kind}", file=sys.stderr)
    text = page(rows)
    print(text) if args.output is None else args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
