"""One of each part that learned words are made of, for the contract of parts."""

from fromfew.fit import generator
from fromfew.parts.box import Box
from fromfew.parts.text_prefix import TextPrefix
from fromfew.parts.word import Word
from fromfew.parts.word_mapper import WordMapper
from fromfew.parts.word_table import WordTable

WORDS = {
    "word": lambda bb: Word.learned(bb, "<v>", "cat", 2, generator(0)),
    "word_table": lambda bb: WordTable.of(bb, Word.learned(bb, "<v>", "cat", 2, generator(0)), "stage", 5),
    "word_mapper": lambda bb: WordMapper.learned(bb, "<v>", "cat", generator(0), hidden=8, frequencies=8).eval(),
    "text_prefix": lambda bb: TextPrefix.learned(bb, "<v>", generator(0), count=1, last=None, bias=1.0, spread=1.0),
    "box": lambda bb: Box("<v>", (0.0, 0.0, 0.5, 1.0)),
}
ONLY = {"word_mapper": ("sd15", "sdxl"), "text_prefix": ("sd15", "sdxl")}  # read text apart, by CLIP alone
