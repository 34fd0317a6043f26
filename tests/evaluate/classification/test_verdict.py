"""The verdict: pairs of images decide, noise is called noise, and every case has its words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mst.evaluate.classification.verdict import SEE, Score, difference, judge
from mst.runtime.answers import Answers


def share(right: int, images: int, shift: int = 0) -> Answers:
    """`right` right answers of `images`; with a shift they are other images."""
    return Answers.of([(place - shift) % images < right for place in range(images)])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_difference_is_mcnemars(pairs: list[tuple[bool, bool]]) -> None:
    one, other = (Answers.of(side) for side in zip(*pairs, strict=True))
    found = difference("untrained", one, other)
    b = sum(first and not second for first, second in pairs)
    c = sum(second and not first for first, second in pairs)
    assert found.paired
    assert found.points == pytest.approx(100 * (b - c) / len(pairs), abs=1e-5)
    assert found.se == pytest.approx(100 * math.sqrt(b + c) / len(pairs))
    if (b - c) ** 2 != 4 * (b + c):  # at two standard errors exactly, rounding decides
        assert found.clear == ((b - c) ** 2 > 4 * (b + c))


def test_other_images_are_independent() -> None:
    found = difference("untrained", share(60, 100), share(40, 80))
    assert not found.paired
    assert found.points == pytest.approx(10)
    assert found.se == pytest.approx(math.hypot(100 * math.sqrt(0.24 / 100), 100 * math.sqrt(0.25 / 80)))


def test_other_names_are_other_images() -> None:
    one, other = (Answers.of([True, False], names) for names in (["x/a", "x/b"], ["x/a", "x/c"]))
    assert not difference("untrained", one, other).paired
    assert difference("untrained", one, Answers.of([True, True], ["/other/x/a", "/other/x/b"])).paired


def test_the_same_answers_are_no_difference() -> None:
    assert not difference("pixels", share(5, 10), share(5, 10)).clear


# of 1000 images, nested: an image that fewer get right is right in all that get more; so b - c of b, c = 0
CASES = [
    (800, {"untrained": 700, "majority": 300, "colour": 600, "pixels": 500}, "helps", "it helps"),
    (800, {"untrained": 700}, "helps", "it helps"),
    (800, {}, "unclear", "nothing to compare with; untrained weights were not measured (--compare does it)"),
    (
        800,
        {"colour": 300, "pixels": 500},
        "unclear",
        "better than what needs no training; untrained weights were not measured (--compare does it)",
    ),
    (
        800,
        {"colour": 900, "majority": 300},
        "no better",
        "below colour statistics; untrained weights were not measured (--compare does it)",
    ),
    (800, {"untrained": 810, "colour": 300}, "worse", "worse than untrained weights"),
    (800, {"untrained": 798, "colour": 300}, "unclear", "no clear difference from untrained weights"),
    (800, {"untrained": 700, "colour": 900}, "no better", "better than untrained weights, but below colour statistics"),
    (
        800,
        {"untrained": 700, "pixels": 850, "colour": 801},
        "no better",
        "better than untrained weights, but below pixels",
    ),
    (
        800,
        {"untrained": 700, "colour": 798, "pixels": 801},
        "no better",
        "no better than pixels (no clear difference)",
    ),
    (800, {"untrained": 700, "majority": 799}, "no better", "no better than the majority class (no clear difference)"),
    (800, {"start": 850, "untrained": 300}, "worse", "worse than the weights it started from"),
    (800, {"start": 799, "untrained": 300}, "unclear", "no clear difference from the weights it started from"),
    (800, {"start": 700, "untrained": 300, "colour": 500}, "helps", "it helps"),
]


@pytest.mark.parametrize(("trained", "others", "call", "words"), CASES)
def test_every_case_has_its_words(trained: int, others: dict[str, int], call: str, words: str) -> None:
    found = judge(share(trained, 1000), {which: share(right, 1000) for which, right in others.items()})
    assert found.call == call
    assert found.good == (call == "helps")
    end = words if found.good else f"{words}: see {SEE}"
    assert found.sentence.endswith(f": {end}")
    assert found.sentence.startswith("k-NN 80.0 % (± 1.3)")
    assert [each.which for each in found.differences] == [
        name for name in ("start", "untrained", "colour", "pixels", "majority") if name in others
    ]
    assert found.to_json()["see"] == ("" if found.good else SEE)


def test_the_sentence_of_the_docs() -> None:
    others = {"untrained": share(746, 1000), "colour": share(780, 1000)}
    found = judge(share(812, 1000), others, names={"colour": "grey statistics"})
    assert found.sentence == "k-NN 81.2 % (± 1.2), untrained 74.6 (± 1.4), grey statistics 78.0 (± 1.3): it helps"


def test_numbers_without_answers_are_independent() -> None:
    own, other = Score(40.0, 1.5, 101), Score(36.0, 2.0, 101)
    found = judge(own, {"untrained": other}, measure="mean IoU")
    assert found.sentence == (
        f"mean IoU 40.0 % (± 1.5), untrained 36.0 (± 2.0): no clear difference from untrained weights: see {SEE}"
    )
    assert found.differences[0].se == pytest.approx(2.5)
    assert judge(own, {"untrained": Score(34.0, 2.0, 101)}).good


def test_few_images_prove_little() -> None:
    """Three of eight images more is no evidence, though it is 37.5 points."""
    assert judge(share(6, 8), {"untrained": share(3, 8)}).call == "unclear"
