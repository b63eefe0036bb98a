"""Words that depend on the place: what reaches which layer, at what time, as keys and as values."""

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.method import find
from fromfew.parts.word import Word
from fromfew.parts.word_mapper import WordMapper
from fromfew.parts.word_table import WordTable
from fromfew.ports.place import NOWHERE, Place, layers_of
from fromfew.testing.contract import PROMPT, few_photos, predict
from fromfew.testing.part_checks import lone
from fromfew.testing.tiny import tiny


def table(bb, by, placeholder="<v>", apart=0.5, rows=None):
    word = WordTable.of(bb, Word.learned(bb, placeholder, "cat", 1, generator(0)), by, rows).requires_grad_(False)
    for key, value in word.vectors.items():
        value += apart * torch.randn(value.shape, generator=generator(3, len(key)))
    return word


def mapper(bb, placeholder="<v>", **how):
    how = {"hidden": 16, "frequencies": 32, **how}
    return WordMapper.learned(bb, placeholder, "cat", generator(0), **how).requires_grad_(False).eval()


class Heard:
    """What every layer's key and value map is given, in the order of the calls."""

    def __init__(self, bb):
        self.keys, self.values, self.order, self.handles = {}, {}, [], []
        for site in layers_of(bb):
            self.handles.append(site.module.to_k.register_forward_hook(self.note(self.keys, site.name)))
            self.handles.append(site.module.to_v.register_forward_hook(self.note(self.values, site.name)))

    def note(self, kept, name):
        def hook(module, args, y):
            kept.setdefault(name, []).append(args[0])
            if kept is self.keys:
                self.order.append(name)

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize("which", ["layers", "stages", "mapper"])
def test_a_step_of_learning_encodes_once_and_predicts_and_learns_the_same(which, base, monkeypatch):
    bb = tiny(base)
    word = mapper(bb) if which == "mapper" else table(bb, which[:-1], rows=None if which == "layers" else 4)
    word.requires_grad_(True)
    captions = ["a <v> cat", "a cat", "a photo of a <v> cat", "a <v> cat"]
    t = torch.tensor([0.3, 0.3, 0.6, 0.8])
    x = torch.randn(4, *bb.latent_shape(), generator=generator(1))
    made = count_encodings(bb, monkeypatch)
    found = []
    with bb.attach(word):
        for times in (None, t):
            made.clear()
            word.zero_grad(set_to_none=True)
            said = bb.predict(x, t, bb.embed(captions, times))
            said.square().mean().backward()
            found.append((said.detach(), [p.grad.clone() for p in word.parameters() if p.grad is not None], list(made)))
    (one, grads, before), (two, others, after) = found
    assert len(before) == 2
    assert len(after) == 1
    assert sum(after) < sum(before), "nothing twice"
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    assert len(grads) == len(others) > 0
    for a, b in zip(grads, others, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_learning_calls_the_encoder_once_a_step(monkeypatch):
    for name in ("p-plus", "neti", "prospect"):
        bb = tiny("sd15")
        made = count_encodings(bb, monkeypatch)
        find(name)(steps=3, batch=2, views=2).learn(bb, few_photos())
        assert len(made) == 3, name


def count_encodings(bb, monkeypatch):
    made, real = [], bb._compose

    def compose(prompts):
        made.append(len(prompts))
        return real(prompts)

    monkeypatch.setattr(bb, "_compose", compose)
    return made


def ask(bb, text, t=0.6):
    rng = generator(3)
    xt = torch.randn(len(text), *bb.latent_shape(), generator=rng)
    with torch.no_grad():
        return bb.predict(xt, torch.full((len(text),), t), text)


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_every_layer_reads_its_own_row_in_order_of_execution(base):
    bb = tiny(base)
    word = table(bb, "layer")
    names = [site.name for site in layers_of(bb)]
    with bb.attach(word), Heard(bb) as heard, torch.no_grad():
        ask(bb, bb.embed([PROMPT, "a dog"]))
        wanted = [bb.compose([PROMPT], [Place(layer)]).states for layer in range(len(names))]
    assert heard.order == names
    assert any("mid_block" in name for name in names)
    for name, states in zip(names, wanted, strict=True):
        assert torch.allclose(heard.keys[name][0][:1], states, atol=1e-5)
        assert heard.values[name][0] is heard.keys[name][0]
    assert len({heard.keys[name][0][0].sum().item() for name in names}) == len(names)


def test_rows_without_the_word_read_the_text_itself():
    bb = tiny("sd15")
    plain = bb.embed(["a dog"]).states
    with bb.attach(table(bb, "layer")), Heard(bb) as heard:
        ask(bb, bb.embed([PROMPT, "a dog"]))
    assert all(torch.equal(one[0][1:], plain) for one in heard.keys.values())


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize("by", ["layer", "stage"])
def test_equal_rows_are_one_word(base, by):
    bb = tiny(base)
    one = Word.learned(bb, "<v>", "cat", 2, generator(0)).requires_grad_(False)
    for value in one.vectors.values():
        value += torch.randn(value.shape, generator=generator(5))
    with bb.attach(one):
        wanted = predict(bb, prompt=PROMPT)
    with bb.attach(WordTable.of(bb, one, by, 10)):
        assert torch.allclose(predict(bb, prompt=PROMPT), wanted, atol=1e-5)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "sd3", "flux"])
def test_a_word_per_stage_is_the_word_of_that_time(base):
    bb = tiny(base)
    word = table(bb, "stage", rows=5)
    single = Word.learned(bb, "<v>", "cat", 1, generator(0)).requires_grad_(False)
    for key in single.vectors:
        single.vectors[key].copy_(word.vectors[key][:, 3])
    with bb.attach(word):
        ours, early = (ask(bb, bb.embed([PROMPT]), t) for t in (0.65, 0.85))
    with bb.attach(single):
        theirs, other = (ask(bb, bb.embed([PROMPT]), t) for t in (0.65, 0.85))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(early, other, atol=1e-5)


def test_nothing_is_encoded_twice(monkeypatch):
    bb = tiny("sd15")
    layers = len(layers_of(bb))
    with bb.attach(table(bb, "layer")), torch.no_grad():
        text = bb.embed([PROMPT, "a <v>"])
        made = count_encodings(bb, monkeypatch)
        for t in (0.9, 0.5, 0.1):
            ask(bb, text, t)
    assert made == [layers, layers]  # one encoding a prompt, all layers of it together
    with bb.attach(table(bb, "stage", rows=4)), torch.no_grad():
        text = bb.embed([PROMPT])
        made.clear()
        for t in (0.9, 0.85, 0.8, 0.6, 0.55, 0.1):
            ask(bb, text, t)
    assert made == [1, 1, 1]


def test_without_words_that_depend_on_place_nothing_is_encoded_or_tapped(monkeypatch):
    bb = tiny("sd15")
    with bb.attach(Word.learned(bb, "<v>", "cat", 1, generator(0))), torch.no_grad():
        text = bb.embed([PROMPT])
        made = count_encodings(bb, monkeypatch)
        ask(bb, text)
        assert not made
        assert not any("forward" in site.module.__dict__ for site in bb.sites.values())


def test_a_text_forgets_what_it_no_longer_needs(monkeypatch):
    monkeypatch.setattr("fromfew.ports.place._KEPT", 3)
    bb = tiny("sd15")
    with bb.attach(mapper(bb)), torch.no_grad():
        text = bb.embed([PROMPT])
        first = ask(bb, text, 0.9)
        for t in (0.7, 0.5, 0.3):
            ask(bb, text, t)
        assert len(text.seen) <= len(layers_of(bb)) + 3
        assert torch.equal(ask(bb, text, 0.9), first)


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_a_bypass_reaches_values_only_and_only_at_the_word(base):
    bb = tiny(base)
    with bb.attach(mapper(bb)), Heard(bb) as heard:
        text = bb.embed([PROMPT])
        ask(bb, text)
    at = text.where(0, "<v>")
    for name, keys in heard.keys.items():
        apart = (heard.values[name][0] - keys[0]).abs().amax(-1)[0]
        elsewhere = [i for i in range(len(apart)) if i not in at]
        assert apart[at].min() > 1e-3
        assert torch.equal(apart[elsewhere], torch.zeros(len(elsewhere)))
    with bb.attach(mapper(bb, past=0.0)), Heard(bb) as heard:
        ask(bb, bb.embed([PROMPT]))
    assert all(torch.equal(heard.values[name][0], keys[0]) for name, keys in heard.keys.items())


def test_a_changed_value_map_reads_the_bypass_too():
    bb = tiny("sd15")
    part = lone(bb)
    with bb.attach(mapper(bb)), bb.attach(part), Heard(bb) as heard:
        ask(bb, bb.embed([PROMPT]))
    site = layers_of(bb)[0]
    given = heard.values[site.name][0]
    with torch.no_grad(), bb.attach(mapper(bb)), bb.attach(part):
        changed = site.module.to_v.weight + part.delta(f"{site.name}.to_v")
        assert torch.allclose(site.module.to_v(given), given @ changed.T, atol=1e-5)
    assert not torch.equal(given, heard.keys[site.name][0])


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_words_of_all_kinds_stand_in_one_prompt(base):
    bb = tiny(base)
    plain = Word.learned(bb, "<d>", "dog", 1, generator(1)).requires_grad_(False)
    words = [table(bb, "layer", "<a>"), table(bb, "stage", "<b>", rows=4), mapper(bb, "<c>"), plain]
    prompt = "a <a> cat and a <b> dog, a <c> hat, a <d>"
    with bb.attach(*words), torch.no_grad():
        text = bb.embed([prompt])
        found = ask(bb, text, 0.6)
        layer, t = 1, float(torch.tensor(0.6))
        one = bb.compose([prompt], [Place(layer, t)])
        key = next(key for key in text.seen if key[1] == (1, 2, (1, t)))
        assert torch.allclose(text.seen[key].states, one.states, atol=1e-5)
    for left_out in words:
        with bb.attach(*[word for word in words if word is not left_out]):
            assert not torch.allclose(ask(bb, bb.embed([prompt]), 0.6), found, atol=1e-5)


def test_gradients_reach_every_row_that_was_read_and_no_other():
    bb = tiny("sd15")
    word = table(bb, "stage", rows=5).requires_grad_(True)
    with bb.attach(word):
        xt = torch.randn(2, *bb.latent_shape(), generator=generator(1))
        bb.predict(xt, torch.tensor([0.5, 0.9]), bb.embed([PROMPT] * 2)).square().mean().backward()
    reached = word.vectors["one"].grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == [False, False, True, False, True]


def test_strength_lies_between_the_plain_word_and_the_learned_one():
    bb = tiny("sd15")
    word = table(bb, "layer")
    base = torch.ones(2, 32)
    half, none = word.write("one", [base], 0.5, [Place(1)])[0], word.write("one", [base], 0, [Place(1)])[0]
    assert none is None
    assert torch.allclose(half, (base + word.vectors["one"][:, 1].expand(2, -1)) / 2)
    assert torch.allclose(word.written("one", base[:1], 1.0), word.vectors["one"].mean(1))
    assert word.key(NOWHERE) is None


def test_a_base_with_other_layers_or_none_is_refused():
    word = table(tiny("sd15"), "layer")
    with pytest.raises(FromfewError, match="text encoders"):
        word.check(tiny("sdxl"))
    bb = tiny("sd15")
    word.layers = 7
    with pytest.raises(FromfewError, match="not 7"):
        word.check(bb)
    sd3 = tiny("sd3")
    with pytest.raises(FromfewError, match="apart from the picture"):
        table(sd3, "layer")
    with pytest.raises(FromfewError, match="apart from the picture"):
        mapper(sd3)


def test_two_words_mixed_take_the_rows_they_are_told():
    bb = tiny("sd15")
    one, two = table(bb, "layer"), table(bb, "layer", apart=2.0)
    new = one.mixed(two, [0, 2])
    rows = new.vectors["one"]
    assert torch.equal(rows[:, [0, 2]], two.vectors["one"][:, [0, 2]])
    assert torch.equal(rows[:, [1, 3]], one.vectors["one"][:, [1, 3]])
    with pytest.raises(FromfewError, match="Rows are 0 to 3"):
        one.mixed(two, [4])
    with pytest.raises(FromfewError, match="cannot be mixed"):
        one.mixed(table(bb, "stage", rows=4), [0])
