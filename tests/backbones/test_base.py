import itertools

import pytest
import torch

from fromfew.backbones.twins import TWINS
from fromfew.errors import FromfewError
from fromfew.parts.low_rank import LowRank
from fromfew.parts.word import Word
from fromfew.rows import Rows
from fromfew.testing.tiny import tiny


def low_rank(bb, what, seed=0):
    rng = torch.Generator().manual_seed(seed)
    part = LowRank.of(bb.select(*what), 2, 2.0, rng)
    with torch.no_grad():
        for up in part.up.values():
            up.copy_(torch.randn(up.shape, generator=rng))
    return part


def word(bb, placeholder="<rex>", seed=1, count=2):
    return Word.learned(bb, placeholder, "red cat", count, torch.Generator().manual_seed(seed))


def asked(bb, prompt="a cat"):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, *bb.latent_shape(), generator=rng)
    with torch.no_grad():
        return bb.predict(x, torch.tensor([0.4]), bb.embed([prompt]))


@pytest.mark.parametrize("name", TWINS)
def test_ids_without_placeholders_are_the_tokenizers_own(name):
    bb = tiny(name)
    prompt = "a Photo of  an unusualword, (next to) the cat's boat!"
    for key, encoder in bb.text_encoders.items():
        with torch.no_grad():
            _, spliced = bb._read(key, [prompt])
        own = encoder.tokenizer(prompt, padding="max_length", truncation=True, max_length=encoder.length).input_ids
        assert spliced.ids[0].tolist() == own


@pytest.mark.parametrize("name", TWINS)
def test_a_word_stands_where_its_placeholder_stands_and_only_its_prompt_changes(name):
    bb = tiny(name)
    part = word(bb)
    with torch.no_grad():
        for vector in part.vectors.values():
            vector.add_(torch.randn(vector.shape, generator=torch.Generator().manual_seed(2)))
    plain = bb.embed(["a dog", "a red cat boat"])
    with bb.attach(part), torch.no_grad():
        text = bb.embed(["a dog", "a <rex> boat"])
    places = text.where(1, "<rex>")
    assert text.where(1, "rex") == places
    assert len(places) == 2 * (2 if name == "sd3" else 1)  # SD3 reads CLIP's tokens and T5's
    assert text.where(1, "boat")[0] == places[1] + 1
    assert not text.where(0, "<rex>")
    torch.testing.assert_close(text.states[0], plain.states[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(text.states[1, places[0]], plain.states[1, places[0]], atol=1e-3)
    if text.pooled is not None and plain.pooled is not None:
        assert not torch.allclose(text.pooled[1], plain.pooled[1], atol=1e-5)


def test_a_word_that_has_learned_nothing_is_the_words_it_began_as():
    bb = tiny("sd15")
    with bb.attach(word(bb)), torch.no_grad():
        torch.testing.assert_close(
            bb.embed(["a <rex> boat"]).states, bb.embed(["a red cat boat"]).states, atol=1e-5, rtol=1e-4
        )


def test_an_alias_is_read_as_plain_text():
    bb = tiny("sdxl")
    plain = bb.embed(["a photo of a sks dog on the beach"])
    with bb.attach(Word.plain("<rex>", "sks")):
        text = bb.embed(["a photo of a <rex> dog on the beach"])
    assert torch.equal(text.states, plain.states)
    assert text.where(0, "sks")


def test_what_is_kept_of_a_prompt_is_never_a_concepts():
    bb = tiny("sd15")
    before = bb.embed(["a cat"]).states
    with bb.attach(low_rank(bb, ["encoder.attention"])), torch.no_grad():
        during = bb.embed(["a cat"]).states
    assert not torch.allclose(before, during, atol=1e-4)
    assert torch.equal(bb.embed(["a cat"]).states, before)


def test_a_kept_prompt_is_not_encoded_again():
    bb = tiny("sd15")
    bb.embed(["a cat"])
    bb.text_encoders["one"].model.forward = None  # any further reading would fail
    assert len(bb.embed(["a cat", "a cat"])) == 2


def test_no_prompt_at_all_is_zeros_for_sdxl_and_empty_text_for_others():
    xl, sd = tiny("sdxl").embed([None, ""]), tiny("sd15").embed([None, ""])
    assert not xl.states[0].any()
    assert xl.states[1].any()
    torch.testing.assert_close(sd.states[0], sd.states[1], atol=1e-5, rtol=1e-4)


def count_hooks(bb):
    modules = [module for top in bb.modules_().values() for module in top.modules()]
    return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in modules]


@pytest.mark.parametrize("name", TWINS)
def test_attached_in_any_order_and_taken_off_in_any_order_nothing_is_left(name):
    bb = tiny(name)
    base, mark, hooks = asked(bb), bb.fingerprint(afresh=True), count_hooks(bb)
    parts = [word(bb), low_rank(bb, ["attention"]), low_rank(bb, ["mlp", "encoder.attention"], 1)]
    for off in itertools.permutations(range(3)):
        held = [bb.attach(part) for part in parts]
        for one in held:
            one.__enter__()
        assert not torch.equal(asked(bb, "a <rex> cat"), base)
        for i in off:
            held[i].__exit__(None, None, None)
        assert torch.equal(asked(bb), base)
    assert bb.fingerprint(afresh=True) == mark
    assert count_hooks(bb) == hooks


def test_an_exception_takes_everything_off():
    bb = tiny("sd3")
    base = asked(bb)
    with pytest.raises(RuntimeError, match="stop"), bb.attach(low_rank(bb, ["all"]), word(bb)):
        raise RuntimeError("stop")
    assert torch.equal(asked(bb), base)
    assert bb.attached == []


def test_a_concept_that_does_not_fit_is_refused_before_anything_is_touched():
    sd15, sdxl = tiny("sd15"), tiny("sdxl")
    with pytest.raises(FromfewError), sd15.attach(word(sdxl)):
        pass
    assert sd15.attached == []


@pytest.mark.parametrize("name", TWINS)
def test_only_the_parts_receive_gradients(name):
    bb = tiny(name)
    part, learned = low_rank(bb, ["text.key", "text.value"]), word(bb)
    x = torch.randn(2, *bb.latent_shape(), generator=torch.Generator().manual_seed(0))
    with bb.attach(part, learned):
        text = bb.embed(["a <rex> cat", "a <rex>"])
        bb.predict(x, torch.tensor([0.3, 0.6]), text).square().mean().backward()
    still = [n for one in (part, learned) for n, p in one.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert all(p.grad is None for module in bb.modules_().values() for p in module.parameters())


def test_checkpointing_recomputes_with_the_same_rows_and_the_same_gradients():
    bb = tiny("sd15")
    part, calls, grads = low_rank(bb, ["attention"]), [], []
    block = bb.denoiser.mid_block.attentions[0].transformer_blocks[0]
    hook = block.register_forward_pre_hook(lambda *_: calls.append(bb.now.rows if bb.now else None))
    x, t = (
        torch.randn(2, *bb.latent_shape(), generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.3, 0.6]),
    )
    rows = Rows(("uncond", "cond"), torch.tensor([0, 0]), t)
    for on in (False, True):
        bb.checkpointing(on)
        part.zero_grad()
        with bb.attach(part):
            bb.predict(x, t, bb.embed(["", "a cat"]), rows).square().mean().backward()
        grads.append([p.grad.clone() for p in part.parameters()])
    hook.remove()
    assert calls == [rows] * 3  # once plainly, then twice
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-5)


def test_an_unknown_selection_and_an_unknown_module_are_answered():
    bb = tiny("sd15")
    with pytest.raises(FromfewError, match=r"'text\.key'"):
        bb.select("text.keys")
    with pytest.raises(FromfewError, match="mid_block"):
        bb.module("denoiser.mid_blok")


def test_latents_of_a_tiny_autoencoder_are_scaled_as_the_pipeline_does():
    bb = tiny("sd21")
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = bb.encode(picture)
        torch.testing.assert_close(latents, bb.vae.encode(picture).latents * 0.8)
        torch.testing.assert_close(bb.decode(latents), bb.vae.decode(latents / 0.8).sample)


def test_the_fingerprint_changes_with_one_number_of_any_module():
    bb = tiny("sd15")
    marks = {bb.fingerprint()}
    for module in bb.modules_().values():
        with torch.no_grad():
            next(module.parameters()).view(-1)[0].add_(1)
        marks.add(bb.fingerprint(afresh=True))
    assert len(marks) == 4


def test_a_text_is_chosen_and_joined_row_by_row():
    bb = tiny("sdxl")
    text = bb.embed(["a cat", "a dog"])
    turned = text.select([1, 0, 1])
    assert turned.prompts == ("a dog", "a cat", "a dog")
    assert turned.where(0, "dog") == text.where(1, "dog")
    joined = type(text).join([text, turned])
    assert len(joined) == 5
    assert torch.equal(joined.pooled[3], text.pooled[0])


@pytest.mark.parametrize("name", TWINS)
def test_half_precision_says_nearly_the_same(name):
    bb = tiny(name)
    full = asked(bb)
    bb.to(dtype=torch.bfloat16)
    x = torch.randn(1, *bb.latent_shape(), generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        half = bb.predict(x, torch.tensor([0.4]), bb.embed(["a cat"]))
        assert bb.decode(bb.encode(torch.zeros(1, 3, 32, 32))).isfinite().all()
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().mean() < 0.05 * full.abs().mean()


def test_an_autoencoder_that_overflows_stays_in_full_precision():
    bb = tiny("sdxl")
    bb.vae.register_to_config(force_upcast=True)
    bb.to(dtype=torch.float16)
    assert next(bb.vae.parameters()).dtype == torch.float32
    assert bb.dtype == torch.float16
    with torch.no_grad():
        assert bb.encode(torch.zeros(1, 3, 32, 32)).dtype == torch.float16
