"""A score says something only where classes can be confused: sets of one class are refused before any work."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evaluate.fakes import FakeBackbone, colour_images, colour_sets
from mst.errors import DataError
from mst.evaluate.classification.knn import evaluate_knn
from mst.evaluate.classification.linear_probe import LinearProtocol, evaluate_linear
from mst.evaluate.classification.logistic import evaluate_logistic
from mst.evaluate.classification.retrieval import RetrievalProtocol, evaluate_retrieval
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from mst.runtime.storage.results import Result

QUIET = FeatureSettings(precision="fp32", progress=False)
WITHIN = RetrievalProtocol(database="val")


def sets(train: int, val: int) -> LabelledSets:
    """Two classes by name, of which so many have images."""
    parts = (ImageSet.from_tensors(*colour_images(8, classes)) for classes in (train, val))
    return LabelledSets(("cat", "dog"), *parts)


@pytest.mark.parametrize("evaluate", [evaluate_knn, evaluate_linear, evaluate_logistic, evaluate_retrieval])
def test_training_images_of_one_class_are_refused(evaluate: Callable[..., Result]) -> None:
    backbone, transform = FakeBackbone(), ImageTransform((8, 8))
    for data, name in ((sets(1, 2), "cat"), (colour_sets(8, 4, classes=1), "class0")):
        with pytest.raises(DataError) as refused:
            evaluate(backbone, data, transform, settings=QUIET)
        assert str(refused.value) == (
            f"the training images (8) are all of class {name}, so every answer would be right: "
            "images of at least 2 classes are needed"
        )
    assert backbone.batches == []  # nothing was computed in vain


def test_the_database_of_a_retrieval_is_what_counts() -> None:
    backbone, transform = FakeBackbone(), ImageTransform((8, 8))
    with pytest.raises(DataError, match=r"the validation images \(8\) are all of class cat, so every answer"):
        evaluate_retrieval(backbone, sets(2, 1), transform, WITHIN, settings=QUIET)
    assert evaluate_retrieval(backbone, sets(1, 2), transform, WITHIN, settings=QUIET).metrics["recall_at_1"] == 100.0


def test_validation_images_of_one_class_can_still_be_taken_for_another() -> None:
    backbone, transform = FakeBackbone(), ImageTransform((8, 8))
    few = LinearProtocol(epochs=2)
    assert evaluate_linear(backbone, sets(2, 1), transform, few, settings=QUIET).extra["val_images"] == 8
    for evaluate in (evaluate_knn, evaluate_logistic, evaluate_retrieval):
        assert evaluate(backbone, sets(2, 1), transform, settings=QUIET).extra["val_images"] == 8
