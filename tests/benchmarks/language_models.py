"""Which language models of the installed transformers say through TextEncoder what they say by themselves, as a page.

    python tests/benchmarks/language_models.py -o lavi_core/language/README.md

Every model_type that reads text is built tiny with random weights (sizes: tests/lavi_core/language/tiny_sizes.py),
saved with a tokenizer, loaded, and compared with transformers' own class, for every option of a recipe and every way to
load (tests/lavi_core/language/examination.py). One core, no network, about a second a family.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import as_package  # noqa: F401 (makes the package lavi_bridge)
from language_page import Row, page
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.lavi_core.conftest import write_tokenizer
from lavi_bridge.tests.lavi_core.language.examination import Outcome, examine, examine_uses, tried
from lavi_bridge.tests.lavi_core.language.tiny_families import tiny_model

SECONDS = 60  # that one family may take
TABLES = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "TEXT_ENCODING", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")


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
