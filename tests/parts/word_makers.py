"""One of each part that learned words are made of, for the contract of parts."""

import torch

from fromfew.fit import generator
from fromfew.parts.box import Box
from fromfew.parts.layout import Layout
from fromfew.parts.regions import RegionText
from fromfew.parts.residual import Residual
from fromfew.parts.text_prefix import TextPrefix
from fromfew.parts.word import Word
from fromfew.parts.word_mapper import WordMapper
from fromfew.parts.word_table import WordTable


def left(name):
    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    return {name: mask}


WORDS = {
    "word": lambda bb: Word.learned(bb, "<v>", "cat", 2, generator(0)),
    "word_table": lambda bb: WordTable.of(bb, Word.learned(bb, "<v>", "cat", 2, generator(0)), "stage", 5),
    "word_mapper": lambda bb: WordMapper.learned(bb, "<v>", "cat", generator(0), hidden=8, frequencies=8).eval(),
    "text_prefix": lambda bb: TextPrefix.learned(bb, "<v>", generator(0), count=1, last=None, bias=1.0, spread=1.0),
    "residual": lambda bb: Residual.of(bb, "<v>", "cat"),
    "layout": lambda bb: Layout.of(left("cat"), scale=2.0),
    "regions": lambda bb: RegionText.of(left("region")),
    "box": lambda bb: Box("<v>", (0.0, 0.0, 0.5, 1.0)),
}
# Those that read text apart from the picture, and by CLIP alone.
ONLY = {"word_mapper": ("sd15", "sdxl"), "text_prefix": ("sd15", "sdxl"), "residual": ("sd15", "sdxl")}
