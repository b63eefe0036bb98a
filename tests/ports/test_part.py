import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.parts.low_rank import LowRank
from fromfew.parts.word import Word
from fromfew.ports.part import Handle, Parts
from fromfew.testing.contract import predict
from fromfew.testing.tiny import tiny


def test_a_handle_undoes_last_first_and_only_once():
    seen = []
    handle = Handle(lambda: seen.append(1), lambda: seen.append(2))
    handle.remove()
    handle.remove()
    assert seen == [2, 1]


def test_parts_are_named_ordered_and_may_be_left_out():
    parts = Parts(word=Word.plain("<v>", "ktn"), maps=None, other=LowRank({"denoiser.x": (4, 3)}, 2))
    assert [name for name, _ in parts.items()] == ["word", "other"]
    assert "maps" not in parts
    assert parts.count() == 2 * (4 + 3)
    assert repr(parts) == "Parts(word=Word('<v>', alias='ktn'), other=LowRank(1 maps, rank=2))"


def test_attaching_what_is_no_part_is_refused():
    bb = tiny("sd15")
    with pytest.raises(FromfewError, match="not dict"):
        bb.attach({})


def test_a_part_that_fails_while_attaching_takes_the_others_off():
    bb = tiny("sd15")
    plain = predict(bb)

    class Broken(Word):
        def attach(self, bb, strength):
            raise RuntimeError("broken")

    part = LowRank.of(bb.select("attention"), 2, 2.0, generator(0))
    for value in part.up.values():
        value.data.fill_(0.1)
    with pytest.raises(RuntimeError), bb.attach(part, Broken("<w>", "cat", alias="cat")):
        pass
    assert bb.attached == []
    assert torch.equal(predict(bb), plain)


def test_explain_names_every_part():
    bb = tiny("sd15")
    with bb.attach(
        Parts(word=Word.plain("<v>", "cat"), maps=LowRank.of(bb.select("text.key"), 2, 2.0, generator(0)))
    ) as a:
        lines = a.explain().splitlines()
    assert len(lines) == 2
    assert "LowRank" in lines[1]
