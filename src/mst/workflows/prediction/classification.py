"""Classes of images without labels, by a network that `mst finetune` trained."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mst.errors import CheckpointError, UsageError
from mst.evaluate.classification.scores import class_probabilities
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import ImageSet
from mst.evaluate.common.protocol import ImageTransform
from mst.export.reading import is_exported
from mst.export.reading_classifier import load_exported_classifier
from mst.finetune.classifier import Classifier
from mst.model.backbone import Backbone
from mst.paths import PathText, SourceText, user_path
from mst.runtime.device import Precision, select_device
from mst.runtime.storage.outputs import Outputs
from mst.weights.files import load_exactly
from mst.workflows.evaluation.errors import table
from mst.workflows.prediction.inputs import ImagesToPredict
from mst.workflows.subject import RANGES, Subject, load_subject

CLASSES, HEAD = "classes.json", "classifier.safetensors"
ENDINGS = (".csv", ".json")
REMEDY = "give the --out of mst finetune, once it is finished"


@dataclass(frozen=True)
class ClassifiedImages:
    """What was predicted.

    Attributes:
        file: that holds it.
        names: of the readable images [n].
        classes: the likeliest class of each [n].
        probabilities: of that class [n].
        counts: class -> number of images.
        unreadable: "name: reason" for each image left out.
    """

    file: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    counts: dict[str, int]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class ClassificationInput(ImagesToPredict):
    """A fine-tuned classifier and images without labels.

    Attributes:
        model: the run folder of mst finetune, or what mst export --model made of it.
        out: file that gets a line for each image; it ends in .csv or .json.
        all_probabilities: of every class, not only of the likeliest.
        forward_batch: images per forward pass.
        workers: threads that read and resize images.
    """

    model: PathText
    data: SourceText
    out: PathText
    all_probabilities: bool = False
    forward_batch: int = 128
    workers: int = 2

    @property
    def settings(self) -> FeatureSettings:
        """How the images are read and scored; any number of them may be unreadable, but not all."""
        return FeatureSettings(self.forward_batch, self.workers, self.precision, 1.0, self.progress)


def predict_classification(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    all_probabilities: bool = False,
    limit: int | None = None,
    value_range: tuple[float, float] | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
) -> ClassifiedImages:
    """Classify every image under `data`; write path, class and probability of each into `out`.

    Args:
        model: folder of a finished `mst finetune`, or what `mst export --model` made of it.
        data: a folder (searched at any depth), an image, or a text file of paths.
        out: file that ends in .csv or .json; that of an earlier prediction is replaced, other files never.
        all_probabilities: of every class, not only of the likeliest.
        limit: only this many images, drawn evenly from the sorted list.
        value_range: black and white among values that are not stored in 8 bits; None = as in training.
        device: auto, cpu, cuda or cuda:N.
        precision: compute type of the network.
        progress: show a bar.

    Returns:
        What was predicted, with the images that could not be read.

    Raises:
        UsageError: no such images, or a file of the name of `out` that no prediction wrote.
        CheckpointError: no fine-tuned classifier in `model`, or a damaged one.
        DataError: no image can be read, or they have other channels than the network takes.
    """
    given = ClassificationInput(
        str(model),
        str(data),
        str(out),
        limit=limit,
        value_range=value_range,
        device=device,
        precision=precision,
        progress=progress,
        all_probabilities=all_probabilities,
    )
    return classify(given)


def classify(given: ClassificationInput) -> ClassifiedImages:
    """Do what `predict_classification` says."""
    target = user_path(given.out)
    if target.suffix not in ENDINGS or target.is_dir():
        raise UsageError(f"--out {target}: name a file that ends in {' or '.join(ENDINGS)}")
    if target.resolve() == user_path(given.data).resolve():
        raise UsageError(f"--out {target} would replace --data {given.data}: name another file")
    outputs, listing = Outputs(target.parent, "predict classification", "--out"), f"{target.name}.unreadable.txt"
    outputs.check([target.name, listing])
    subject, network, names = load_trained(user_path(given.model), given.device)
    source = given.images(subject.channels)
    scale = given.scale(source, subject.channels, subject.backbone.metadata.get(RANGES))
    images = ImageSet(source, torch.full((len(source),), -1, dtype=torch.int64), subject.channels, scale)
    transform = ImageTransform(subject.backbone.spec.image_size, *subject.mean_std)
    shares, kept, unreadable = class_probabilities(network, images, transform, given.settings, title="classifying")
    best = shares.max(1)
    found = ClassifiedImages(
        target,
        tuple(images.name(index) for index in kept),
        tuple(names[label] for label in best.indices.tolist()),
        tuple(best.values.tolist()),
        dict.fromkeys(names, 0) | dict(Counter(names[label] for label in best.indices.tolist())),
        tuple(unreadable),
    )
    content = _content(found, names, shares.tolist() if given.all_probabilities else None, target.suffix)
    files: list[tuple[str | Path, bytes]] = [(target.name, content)]
    if unreadable:
        text = "".join(f"{line}\n" for line in unreadable)
        files.append((listing, text.encode("utf-8", "surrogateescape")))
    outputs.write_together(files)
    if not unreadable:
        outputs.remove(listing)  # of an earlier prediction
    return found


def load_trained(model: Path, device: str) -> tuple[Subject, nn.Module, tuple[str, ...]]:
    """Return the backbone, the classifier on its device, and the names of the classes, of a run or an export.

    Raises:
        CheckpointError: there is none, or a damaged one.
    """
    if is_exported(model):
        exported, file = load_exported_classifier(model)
        exported.to(select_device(device, flag="--device"))
        subject = Subject(exported.backbone, str(model), hashlib.sha256(file.read_bytes()).hexdigest(), None)
        return subject, exported, exported.classes
    subject = load_subject(model, device=device)
    network, names = load_classifier(model, subject.backbone)
    return subject, network.to(next(subject.backbone.parameters()).device), names


def load_classifier(folder: Path, backbone: Backbone) -> tuple[Classifier, tuple[str, ...]]:
    """Return the backbone with the linear layer of its folder, in evaluation mode, and the names of the classes.

    Raises:
        CheckpointError: there is none, or a damaged one.
    """
    for name in (CLASSES, HEAD):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}, so it holds no fine-tuned classifier: {REMEDY}")
    try:
        names = json.loads((folder / CLASSES).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {folder / CLASSES} ({error}): {REMEDY}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / CLASSES} is no list of names of classes: {REMEDY}")
    head = load_exactly(folder / HEAD, lambda: nn.Linear(backbone.embed_dim, len(names)), lambda built: built, REMEDY)
    network = Classifier(backbone, len(names), seed=0)
    network.head = head
    return network.eval(), tuple(names)


def _content(
    found: ClassifiedImages, classes: Sequence[str], shares: Sequence[Sequence[float]] | None, ending: str
) -> bytes:
    """Return the file: a line, or an object, for each readable image; probabilities with six digits."""
    rows = zip(found.names, found.classes, found.probabilities, strict=True)
    if ending == ".csv":
        head = ("path", "class", "probability", *(f"probability of {name}" for name in classes if shares is not None))
        lines = (
            (*row[:2], f"{row[2]:.6f}", *(f"{share:.6f}" for share in (shares[place] if shares else ())))
            for place, row in enumerate(rows)
        )
        return table(head, lines)
    listed = [
        {"path": name, "class": label, "probability": round(share, 6)}
        | ({"probabilities": dict(zip(classes, (round(s, 6) for s in shares[place]), strict=True))} if shares else {})
        for place, (name, label, share) in enumerate(rows)
    ]
    values = {"classes": list(classes), "images": listed, "unreadable": list(found.unreadable)}
    return (json.dumps(values, indent=2) + "\n").encode()
