"""Each row of the table against the gguf package's numpy, on random bytes, to the bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from lavi_bridge.lavi_core.quantized.formats import FORMATS, PIECE, PLAIN
from lavi_bridge.lavi_core.quantized.storage import quantize

FLOATS8 = ("F8_E4M3", "F8_E5M2")  # formats of safetensors, not of GGUF


def golden(name: str, blocks: torch.Tensor) -> torch.Tensor:
    """[rows bytes] -> [rows columns] by the gguf package."""
    import gguf

    with np.errstate(all="ignore"):  # random bytes make infinite scales
        return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[name]))


def random_blocks(name: str, rows: int, blocks: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    shape = (rows, blocks * FORMATS[name].bytes)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in FLOATS8])
def test_a_format_is_that_of_the_gguf_package(name):
    import gguf

    row = FORMATS[name]
    assert (row.values, row.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random_blocks(name, 64, 40)
    ours, theirs = row.dense(blocks), golden(name, blocks)
    assert ours.shape == theirs.shape == (64, 40 * row.values)
    finite = torch.isfinite(theirs)
    assert finite.float().mean() > 0.5
    assert torch.equal(ours[finite].view(torch.int32), theirs[finite].view(torch.int32))  # the sign of a zero too
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(row.dense(blocks, dtype)[finite], theirs.to(dtype)[finite])


@pytest.mark.parametrize("dtype", list(PLAIN))
def test_a_plain_dtype_is_its_own_blocks(dtype):
    values = torch.randn(6, 8).to(dtype)
    blocks = values.view(torch.uint8).reshape(6, -1)
    assert torch.equal(PLAIN[dtype].dense(blocks), values.float())
    assert PLAIN[dtype].nbytes(6, 8) == blocks.numel()


def test_rows_are_decoded_piece_by_piece():
    columns = 2**19
    blocks = random_blocks("Q8_0", 3 * PIECE // columns + 1, columns // 32) & 0x3F  # finite scales
    assert torch.equal(FORMATS["Q8_0"].dense(blocks), golden("Q8_0", blocks))


def test_rows_are_whole_blocks():
    assert FORMATS["Q4_1"].nbytes(3, 64) == 3 * 2 * 20 and FORMATS["F16"].nbytes(5) == 10
    with pytest.raises(ValueError, match="rows of 100 values are no whole blocks of 32, which Q4_1 needs"):
        FORMATS["Q4_1"].nbytes(3, 100)
    with pytest.raises(ValueError, match="unknown block format 'IQ1_S'; known: F32, F16"):
        FORMATS["IQ1_S"]


def test_without_the_gguf_package_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"8-bit and 4-bit need the gguf package, .*: pip install gguf, or take bf16"):
        quantize(torch.zeros(2, 32), FORMATS["Q8_0"])


def test_numpy_is_the_golden_side():
    assert np.float32(golden("F16", torch.tensor([[0, 60]], dtype=torch.uint8)).item()) == 1.0
