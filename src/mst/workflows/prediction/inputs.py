"""What every prediction is given, whatever it finds: a trained model, images, and where its files go."""

from __future__ import annotations

from dataclasses import dataclass

from mst.data.order.room import fetch_soon
from mst.data.sources import ImageSource, open_images
from mst.data.value_range import Scale, check_range
from mst.errors import UsageError
from mst.paths import PathText, SourceText, is_address, user_path, user_place
from mst.runtime.device import Precision
from mst.runtime.limits import check_numbers
from mst.workflows.subject import prediction_scale


@dataclass(frozen=True)
class ImagesToPredict:
    """A trained model and images without labels.

    Attributes:
        model: the folder of a trained network: --out or --save-model of the evaluation that trained it.
        data: a folder (searched at any depth), an image, a text file of paths, or what else --data.train takes.
        out: folder for the files; those of an earlier prediction are replaced, other files never.
        limit: only this many images, drawn evenly from the sorted list.
        value_range: black and white among values that are not stored in 8 bits; None = as in training.
        device: auto, cpu, cuda or cuda:N.
        precision: compute type of the network.
        progress: show a bar.

    Raises:
        UsageError: a number is outside its limits.
    """

    model: PathText
    data: SourceText
    out: PathText
    limit: int | None = None
    value_range: tuple[float, float] | None = None
    device: str = "auto"
    precision: Precision = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, "limit", least=1)
        check_range(self.value_range)

    def images(self, channels: int) -> ImageSource:
        """Return the images to predict on.

        Raises:
            UsageError: there are none, or a folder for the files lies in theirs: they would be images the next time.
        """
        place, data = user_path(self.out).resolve(), user_path(self.data).resolve()
        inside = not is_address(self.data) and data.is_dir() and place.is_relative_to(data)
        if inside and place.suffix not in {".csv", ".json"}:
            raise UsageError(
                f"--out {self.out} lies in --data {self.data}: what is written there would be read as images the next "
                "time; name a folder apart"
            )
        found = open_images(user_place(self.data), limit=self.limit, channels=channels)
        fetch_soon(found)
        return found

    def scale(self, images: ImageSource, channels: int, kept: object) -> Scale:
        """Return how their values become 8 bits for a network that keeps these value ranges.

        Raises:
            DataError: as `mst.workflows.subject.prediction_scale`.
        """
        return prediction_scale(images, channels, kept, self.value_range)


@dataclass(frozen=True)
class PredictionInput(ImagesToPredict):
    """A trained model and images without labels, which become pictures.

    Attributes:
        picture_limit: at most this many pictures; 0 = none, None = one of each image.
    """

    picture_limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "picture_limit", least=0)

    def pictures(self, images: ImageSource) -> int:
        """Return how many pictures to write."""
        return len(images) if self.picture_limit is None else self.picture_limit
