"""No device by name: where a tensor lies is decided by the host, or by whoever calls, never by a line here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("lavi_core", "nodes")
NAME = re.compile(r"(cpu|cuda|mps|xpu|npu|mlu|hip|hpu|vulkan|xla|privateuseone)(:\d+)?")
# ... but where files and pictures are, or where a library that knows no devices takes over. By file and function.
CPU_IS_MEANT = {
    ("lavi_core/checkpoint.py", "_storable"): "a tensor on its way to a file",
    ("lavi_core/exporters/released.py", "_halves"): "tensors on their way to a file",
    ("lavi_core/files.py", "write_safetensors"): "a tensor on its way to a file",
    ("lavi_core/fingerprint.py", "_sample_fingerprint"): "the bytes are hashed by the standard library",
    ("lavi_core/importers/pickles.py", "read_pickle"): "a file is read into memory, whatever device wrote it",
    ("lavi_core/language/encoder.py", "load"): "files are read into memory; the caller names another device",
    ("lavi_core/language/encoder.py", "computes_on"): "weights that are read from their files at each pass",
    ("lavi_core/language/streaming.py", ""): "weights that are read from their files at each pass",
    ("lavi_core/quantized/storage.py", "quantize"): "numpy packs the blocks, once, when a model is loaded",
    ("nodes/attention_maps.py", "draw"): "pictures are drawn on, by a library for pictures",
    ("nodes/lora.py", "content"): "the bytes are hashed by the standard library",
}


def named(tree: ast.AST, function: str = "") -> Iterator[tuple[str, int, str]]:
    """(function, line, device) of each name of a device: as a text, as ``.cuda()``, as ``torch.cuda``."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        word = node.value if isinstance(node, ast.Constant) else node.attr if isinstance(node, ast.Attribute) else None
        if isinstance(word, str) and NAME.fullmatch(word):
            yield function, node.lineno, word
        yield from named(node, inside)


def found() -> list[tuple[str, str, int, str]]:
    files = [file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))]
    assert len(files) > 20
    return [
        (file.relative_to(ROOT).as_posix(), *where)
        for file in files
        for where in named(ast.parse(file.read_text(encoding="utf-8")))
    ]


def test_no_device_is_named():
    wrong = [
        f"{file}:{line} names {device}, in {function}"
        for file, function, line, device in found()
        if device != "cpu" or (file, function) not in CPU_IS_MEANT
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_needed():
    assert set(CPU_IS_MEANT) <= {(file, function) for file, function, _, _ in found()}


@pytest.mark.parametrize(
    "line",
    [
        'x.to("cuda:1")',
        "torch.device('mps')",
        'f(device="cpu")',
        "x.cpu()",
        "x.cuda(0)",
        "torch.cuda.empty_cache()",
        "torch.backends.mps.is_available()",
        'def f(device: str = "cpu"): ...',
        'wanted = "xpu" if there else None',
    ],
)
def test_a_name_would_be_found(line: str):
    assert len(list(named(ast.parse(line)))) == 1


def test_words_about_devices_are_no_names():
    assert not list(named(ast.parse('"""On the cpu."""\nx.to(device)\ntorch.device("meta")\nlog("cuda is not here")')))
