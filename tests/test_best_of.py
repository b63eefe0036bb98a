import torch

from fromfew.best_of import best_of, copied, halts
from fromfew.fit import generator
from fromfew.parts.word import Word
from fromfew.ports.part import Parts
from fromfew.stage import Stage
from fromfew.testing.tiny import tiny


def test_the_parts_end_as_they_were_after_the_best_stage_of_equals_the_first():
    parts = Parts(word=Word.learned(tiny("sd15"), "<v>", "dog", 1, generator(0)))
    value = parts.word.vectors["one"]
    scores = iter([1.0, 3.0, 3.0, 2.0])
    with torch.no_grad():
        for number in best_of(range(4), parts, lambda: next(scores)):
            value.fill_(number)
    assert bool((value == 1).all())
    kept = copied(parts)
    with torch.no_grad():
        value.fill_(7)
    assert bool((kept["word.vectors.one"] == 1).all())


def test_a_stage_with_halts_has_as_many_steps():
    stage = Stage(10, lambda rng: None, [], {}, name="climb")
    assert [(one.steps, one.name) for one in halts(stage, 3)] == [
        (3, "climb, 1 of 3"), (3, "climb, 2 of 3"), (4, "climb, 3 of 3"),
    ]  # fmt: skip
    assert [one.steps for one in halts(Stage(1, lambda rng: None, [], {}), 2)] == [1, 1]
