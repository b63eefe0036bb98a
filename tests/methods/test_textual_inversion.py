import torch

from fromfew.io.tensors import read_tensors
from fromfew.method import find
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 2e-2}


def test_no_row_of_any_embedding_table_moves():
    bb = tiny("sdxl")
    tables = {key: encoder.embedding.weight.clone() for key, encoder in bb.text_encoders.items()}
    find("textual-inversion")(**QUICK).learn(bb, few_photos())
    for key, encoder in bb.text_encoders.items():
        assert torch.equal(encoder.embedding.weight, tables[key])


def test_the_file_holds_vectors_times_width_numbers(tmp_path):
    bb = tiny("sdxl")
    concept = find("textual-inversion")(**QUICK, vectors=3).learn(bb, few_photos())
    held = read_tensors(concept.save(tmp_path / "c") / "concept.safetensors")
    widths = sum(encoder.width for encoder in bb.text_encoders.values())
    assert sum(value.numel() for value in held.values()) == 3 * widths


def test_without_the_word_predictions_are_the_bases_bit_for_bit():
    bb = tiny("sd15")
    concept = find("textual-inversion")(**QUICK).learn(bb, few_photos())
    plain = predict(bb, prompt="a dog")
    with bb.attach(concept):
        assert torch.equal(predict(bb, prompt="a dog"), plain)
        assert not torch.equal(predict(bb, prompt="a <v>"), plain)


def test_a_word_begins_as_the_noun():
    bb, refs = tiny("sd15"), few_photos()
    method = find("textual-inversion")(**QUICK)
    word = method.parts(bb, refs, torch.Generator().manual_seed(0)).word
    encoder = bb.text_encoders["one"]
    assert torch.equal(word.vectors["one"][0], encoder.embedding.weight[word.carriers(encoder.tokenizer)[0]])
    assert word.start == "cat"


def test_an_anchor_keeps_the_vectors_nearer_to_where_they_began():
    bb, refs = tiny("sd15"), few_photos()
    far = []
    for anchor in (0.0, 10.0):
        method = find("textual-inversion")(**{**QUICK, "steps": 15}, anchor=anchor)
        began = method.parts(bb, refs, torch.Generator().manual_seed(0)).word.vectors["one"]
        far.append((method.learn(bb, refs).parts.word.vectors["one"] - began).norm())
    assert far[1] < far[0]


def test_the_photos_own_loss_falls_more_than_that_of_other_photos():
    from fromfew.fit import generator, look

    bb, refs = tiny("sd15"), few_photos()
    method = find("textual-inversion")(**{**QUICK, "steps": 40}, vectors=2)
    parts = method.parts(bb, refs, generator(0))
    stage = next(iter(method.stages(bb, refs, parts)))
    before = look(bb, parts, stage, seed=1, count=6)
    after = look(bb, method.learn(bb, refs).parts, stage, seed=1, count=6)
    assert after < before * 0.995
