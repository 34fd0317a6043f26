"""Does it help? The rule that compares a backbone's score with what costs nothing, from which images each gets right.

A difference counts when it is more than two of its standard errors. On the same images that is McNemar's (1947): only
the images that one gets right and the other wrong say anything, b of one kind and c of the other, and under no
difference b - c has a deviation of sqrt(b + c). Where that is not known image by
image (mean IoU, means of draws), errors count as independent: an upper guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mst.runtime.answers import Answers
from mst.runtime.noise import difference_se, is_clear

Call = Literal["helps", "unclear", "no better", "worse"]
START, UNTRAINED, COLOUR = "start", "untrained", "colour"
SIMPLE = ("majority", COLOUR, "pixels")
"""What needs no network."""
NAMES = {
    START: "at the start",
    UNTRAINED: "untrained",
    COLOUR: "colour statistics",
    "pixels": "pixels",
    "majority": "majority class",
}
"""What a sentence calls each, in its order."""
OBJECTS = {START: "the weights it started from", UNTRAINED: "untrained weights", "majority": "the majority class"}
"""The same after `than` or `from`, where it differs."""
OPEN = "; untrained weights were not measured (--compare does it)"
"""End of a sentence that cannot say whether the training helped."""
SEE = "docs/no-improvement.md"


@dataclass(frozen=True)
class Score:
    """A number of a set of images that is no share of right ones.

    Attributes:
        percent: it.
        se: its standard error.
        images: of the set.
    """

    percent: float
    se: float
    images: int


Measured = Answers | Score


@dataclass(frozen=True)
class Difference:
    """A backbone against one thing that it is compared with.

    Attributes:
        which: `start`, `untrained`, `majority`, `colour` or `pixels`.
        top1: the other's accuracy (or mean IoU) in percent.
        top1_se: its standard error.
        points: what the backbone has more, in percent points.
        se: standard error of that.
        paired: whether both answered the same images.
    """

    which: str
    top1: float
    top1_se: float
    points: float
    se: float
    paired: bool

    @property
    def clear(self) -> bool:
        """Whether it is more than noise."""
        return is_clear(self.points, self.se)


@dataclass(frozen=True)
class Verdict:
    """Whether a training helped.

    Attributes:
        call: `helps`: clearly above everything; `no better`: above untrained weights, but not clearly above something
            that needs no network; `unclear`: not clearly above where it began, or that was not
            measured; `worse`: clearly below that.
        sentence: all of it in one sentence.
        top1: accuracy of the backbone (or mean IoU) in percent.
        top1_se: its standard error.
        images: validation images.
        differences: to each thing that it is compared with.
    """

    call: Call
    sentence: str
    top1: float
    top1_se: float
    images: int
    differences: tuple[Difference, ...]

    @property
    def good(self) -> bool:
        """Whether the training helped."""
        return self.call == "helps"

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types, with the page to read where it did not help."""
        differences = [{**asdict(each), "clear": each.clear} for each in self.differences]
        return {**asdict(self), "differences": differences, "see": "" if self.good else SEE}


def difference(which: str, trained: Measured, other: Measured) -> Difference:
    """Return by how much `trained` is better; for other images the errors are taken as independent."""
    paired = False
    if isinstance(trained, Answers) and isinstance(other, Answers) and trained.same_images(other):
        paired = True
        one_only, other_only = trained.only(other), other.only(trained)
        points = 100 * (one_only - other_only) / trained.images
        se = 100 * math.sqrt(one_only + other_only) / trained.images
    else:
        points, se = trained.percent - other.percent, difference_se(trained.se, other.se)
    return Difference(which, other.percent, other.se, points, se, paired)


def judge(
    trained: Measured,
    others: Mapping[str, Measured],
    *,
    names: Mapping[str, str] | None = None,
    measure: str = "k-NN",
) -> Verdict:
    """Return the verdict on a backbone.

    Args:
        trained: of the backbone.
        others: of what it is compared with, by the names of `NAMES`; what is missing is not compared with.
        names: other words for some of them.
        measure: what the sentence calls the number.
    """
    words = {**NAMES, **(names or {})}
    found = tuple(difference(which, trained, others[which]) for which in NAMES if which in others)
    call, end = _call(found, {**words, **OBJECTS})
    numbers = ", ".join(f"{words[each.which]} {each.top1:.1f} (± {each.top1_se:.1f})" for each in found)
    sentence = f"{measure} {trained.percent:.1f} % (± {trained.se:.1f}){', ' if numbers else ''}{numbers}: {end}"
    sentence += "" if call == "helps" else f": see {SEE}"
    return Verdict(call, sentence, trained.percent, trained.se, trained.images, found)


def _call(found: tuple[Difference, ...], words: Mapping[str, str]) -> tuple[Call, str]:
    """Return the call and its words: first against where the weights began, then against what needs no network."""
    for each in found:
        if each.which in (START, UNTRAINED) and each.clear and each.points < 0:
            return "worse", f"worse than {words[each.which]}"
    for each in found:
        if each.which in (START, UNTRAINED) and not each.clear:
            return "unclear", f"no clear difference from {words[each.which]}"
    begun = any(each.which in (START, UNTRAINED) for each in found)
    simple = [each for each in found if each.which in SIMPLE]
    best = max(simple, key=lambda each: each.top1, default=None)
    above = [each for each in simple if each.clear and each.points < 0]
    if above and best is not None:
        below = f"below {words[best.which]}"
        return "no better", f"better than untrained weights, but {below}" if begun else f"{below}{OPEN}"
    near = [each for each in simple if not each.clear]
    if near:
        nearest = max(near, key=lambda each: each.top1)
        return "no better", f"no better than {words[nearest.which]} (no clear difference)"
    if not begun:
        return "unclear", f"{'better than what needs no training' if simple else 'nothing to compare with'}{OPEN}"
    return "helps", "it helps"
