"""The small network by which AnimaT5Free cuts a word that its lexicon does not know."""

from __future__ import annotations

from torch import Tensor, nn

LETTERS, LETTER_WIDTH, CUT_WIDTH, REACH = 257, 32, 64, 5


class Segmenter(nn.Module):
    """Bytes of a text -> the logit of each that a row begins at it: convolutions that reach wider and wider."""

    def __init__(self) -> None:
        super().__init__()
        widths, reaches = (LETTER_WIDTH, CUT_WIDTH, CUT_WIDTH, CUT_WIDTH), (1, 2, 4, 8)
        layers: list[nn.Module] = []
        for width, wide in zip(widths, reaches, strict=True):
            layers += [nn.Conv1d(width, CUT_WIDTH, REACH, dilation=wide, padding=wide * (REACH // 2)), nn.GELU()]
        self.emb = nn.Embedding(LETTERS, LETTER_WIDTH)
        self.conv = nn.Sequential(*layers)
        self.out = nn.Conv1d(CUT_WIDTH, 1, 1)

    def forward(self, letters: Tensor) -> Tensor:
        """[B L] long -> [B L]"""
        return self.out(self.conv(self.emb(letters).transpose(1, 2))).squeeze(1)
