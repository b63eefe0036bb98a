import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.io.tensors import read_tensors
from fromfew.method import find
from fromfew.parts.text_prefix import TextPrefix
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.part_checks import PART_CHECKS, lone
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 2e-2}


def prefix(bb, **how):
    how = {"count": 1, "last": None, "bias": 0.0, "spread": 1.0, **how}
    return TextPrefix.learned(bb, "<v>", generator(0), **how).requires_grad_(False)


def states(bb, prompt, *parts, strength=1.0):
    with bb.attach(*parts, strength=strength):
        return bb.embed([prompt]).states


def test_the_file_of_stable_diffusion_would_hold_18432_numbers(tmp_path):
    part = TextPrefix("<v>", {"one": (12, 768)})
    assert sum(value.numel() for value in part.parameters()) == 18_432
    bb = tiny("sdxl")
    concept = find("catversion")(**QUICK).learn(bb, few_photos())
    held = read_tensors(concept.save(tmp_path / "c") / "concept.safetensors")
    assert sum(value.numel() for value in held.values()) == 2 * 2 * 2 * 32


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_a_prefix_nobody_reads_changes_nothing(base):
    bb = tiny(base)
    plain = states(bb, "a cat")
    part = prefix(bb, bias=float("-inf"))
    assert torch.allclose(states(bb, "a <v> cat", part), plain, atol=1e-5)
    part = prefix(bb)
    for value in part.values.values():
        value.zero_()
    assert not torch.allclose(states(bb, "a <v> cat", part), plain, atol=1e-3)


def test_it_equals_one_more_token_in_attention_computed_by_hand():
    bb = tiny("sd15")
    part = prefix(bb, count=2, bias=0.7, last=1)
    module = bb.text_encoders["one"].model.encoder.layers[-1].self_attn
    seen = []
    handle = module.register_forward_hook(lambda m, args, kwargs, y: seen.append((kwargs, y[0])), with_kwargs=True)
    states(bb, "a <v> cat", part)
    handle.remove()
    x, y = seen[0][0]["hidden_states"][0], seen[0][1][0]
    q, k, v = (getattr(module, name)(x).view(len(x), 4, 8).transpose(0, 1) for name in ("q_proj", "k_proj", "v_proj"))
    own_k, own_v = (table["one"][0].view(2, 4, 8).transpose(0, 1) for table in (part.keys, part.values))
    future = torch.full((len(x), len(x)), float("-inf")).triu(1)
    scores = torch.cat([q @ own_k.transpose(1, 2) * 8**-0.5 + 0.7, q @ k.transpose(1, 2) * 8**-0.5 + future], -1)
    read = scores.softmax(-1) @ torch.cat([own_v, v], 1)
    assert torch.allclose(y, module.out_proj(read.transpose(0, 1).reshape(len(x), -1)), atol=1e-5)


def test_prompts_without_the_placeholder_and_none_at_all_stay_bit_for_bit():
    bb = tiny("sdxl")
    part = prefix(bb)
    for prompt in ("a cat", "", None):
        assert torch.equal(states(bb, prompt, part), states(bb, prompt))
    with bb.attach(part):
        both = bb.embed(["a <v> cat", "a cat"])
    assert torch.equal(both.states[1], states(bb, "a cat")[0])
    assert not torch.allclose(both.states[0], both.states[1], atol=1e-3)


def test_the_placeholder_takes_no_place():
    bb = tiny("sd15")
    with bb.attach(prefix(bb)):
        assert bb.embed(["a <v> cat"]).where(0, "cat") == bb.embed(["a cat"]).where(0, "cat")


def test_rows_read_together_are_read_as_alone():
    bb = tiny("sd15")
    part = prefix(bb).requires_grad_(True)
    with bb.attach(part):
        both = bb.embed(["a <v> cat", "a dog"]).states.detach()
    assert torch.allclose(both[:1], states(bb, "a <v> cat", part), atol=1e-5)
    assert torch.allclose(both[1:], states(bb, "a dog"), atol=1e-5)


def test_the_part_keeps_its_promises():
    bb = tiny("sd15")
    for check in PART_CHECKS.values():
        check(prefix(bb), bb, True, "a <v> cat")


def test_it_stands_beside_a_changed_text_encoder_and_a_second_prefix():
    bb = tiny("sd15")
    second = TextPrefix.build({**prefix(bb).config(), "placeholder": "<w>"}).requires_grad_(False)
    second.load_state_dict({name: value + 1 for name, value in prefix(bb).state_dict().items()})
    plain = predict(bb, prompt="a cat")
    with bb.attach(prefix(bb), second, lone(bb)):
        one, two, both = (predict(bb, prompt=p) for p in ("a <v> cat", "a <w> cat", "a <v> <w> cat"))
    assert not torch.allclose(both, one, atol=1e-5)
    assert not torch.allclose(both, two, atol=1e-5)
    assert torch.equal(predict(bb, prompt="a cat"), plain)


def test_what_has_no_such_attention_is_refused():
    with pytest.raises(FromfewError, match="no attention that takes a prefix"):
        prefix(tiny("flux"))
    for how, why in (({"length": 0}, "length is"), ({"last": 0}, "last is"), ({"modifier": "rare"}, "modifier")):
        with pytest.raises(FromfewError, match=why):
            find("catversion")(**how)
