"""The base's tokenizer: CLIP's byte-level BPE, its merges learnt from the world's own captions."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from fromfew.world.scenes import random_scene

LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"

EXTRA = (
    "a photo of one my the cool nice weird large small close up cropped good bright dark clean dirty rendition "
    "painting rendering depiction illustration portrait person woman man face photo style in of on with wearing "
    "eating holding toy statue floating standing sitting lying next to behind inside under hat glasses subject object"
)
"""Words of the published prompt templates that the grammar itself does not use."""


def train_tokenizer(folder: Path, captions: int = 20_000, size: int = 1200) -> CLIPTokenizer:
    """Learn the merges and write ``vocab.json`` and ``merges.txt``; returns the tokenizer.

    Args:
        folder: receives the tokenizer's files.
        captions: how many captions to learn from.
        size: tokens at most, with 512 of them for single bytes (so any prompt can be written).
    """
    lines = [random_scene(np.random.default_rng([3, i])).caption for i in range(captions)] + [EXTRA] * 50
    core = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    learnt = json.loads(core.to_str())["model"]
    # CLIP's order: bytes, bytes that end a word, merges, then the two marks with the largest ids.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet)]
    tokens += [t for a, b in merges if (t := a + b) not in set(tokens)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines_out = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines_out) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH, pad_token=END
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
