import torch

from fromfew.io.tensors import read_tensors
from fromfew.method import find
from fromfew.ports.part import Parts
from fromfew.testing.contract import few_photos
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


def begun(bb, **how):
    return find("textual-inversion")(**QUICK, **how).parts(bb, few_photos(), torch.Generator().manual_seed(0)).word


def test_a_crossed_word_begins_as_what_the_encoder_makes_of_the_noun():
    bb = tiny("sdxl")
    crossed, plain = begun(bb, begin="cross", vectors=2), begun(bb, vectors=2)
    for key, encoder in bb.text_encoders.items():
        tokens = encoder.tokenizer(["cat"], return_tensors="pt", padding="max_length", max_length=77).input_ids
        with torch.no_grad():
            states = encoder.model(tokens).last_hidden_state
        assert torch.equal(crossed.vectors[key][0], states[0, 1])
        assert crossed.vectors[key].norm() > 10 * plain.vectors[key].norm()


def test_a_crossed_word_moves_a_smaller_part_of_its_length():
    bb, refs = tiny("sd15"), few_photos()
    moved = []
    for how in ({"begin": "cross", "anchor": 1e-5, "anchor_by": "distance"}, {}):
        began = begun(bb, **how).vectors["one"]
        ended = find("textual-inversion")(**QUICK, **how).learn(bb, refs).parts.word.vectors["one"]
        moved.append(float(((ended - began).norm() / began.norm()).detach()))
    assert moved[0] < moved[1] / 3


def test_a_word_begins_as_a_rare_token_or_by_chance():
    bb = tiny("sd15")
    table = bb.text_encoders["one"].embedding.weight
    rare, chance = begun(bb, begin="rare"), begun(bb, begin="random", vectors=16)
    assert torch.equal(rare.vectors["one"][0], table[rare.carriers(bb.text_encoders["one"].tokenizer)[0]])
    assert rare.start != "cat"
    assert 0.8 < chance.vectors["one"].std() / table.std() < 1.25
    assert chance.start == "cat"


def test_progressive_vectors_come_one_by_one_and_all_stay():
    bb, refs = tiny("sd15"), few_photos()
    method = find("textual-inversion")(**{**QUICK, "steps": 7}, vectors=3, progressive=True)
    word, shown, lengths = begun(bb, vectors=3), [], []

    for stage in method.stages(bb, refs, Parts(word=word)):
        shown.append(len(word.carriers(bb.text_encoders["one"].tokenizer)))
        lengths.append(stage.steps)
    assert shown == [1, 2, 3]
    assert sum(lengths) == 7
    learned = method.learn(bb, refs).parts.word
    assert not bool((learned.vectors["one"] == begun(bb, vectors=3).vectors["one"]).all(1).any())
    assert learned.shown == 3
