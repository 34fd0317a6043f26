"""Fine-tuning and supervised training: where labelled images, a backbone and the downstream loop meet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from mst.data.inside import refuse_inside
from mst.data.labelled import LabelledFolder, LabelOptions, find_labels
from mst.data.statistics import measured_scale
from mst.engine.layer_decay import parameter_groups
from mst.engine.supervised import Outcome, fit
from mst.errors import UsageError
from mst.evaluate.classification.scores import Scores, score_classifier
from mst.evaluate.common.features import FeatureSettings, used_precision
from mst.evaluate.common.image_sets import ImageSet
from mst.evaluate.common.model_files import ranges_in_use
from mst.evaluate.common.protocol import ImageTransform
from mst.finetune.classifier import Classifier, FinetuneProtocol
from mst.model.backbone_file import save_backbone
from mst.parallel.world import World
from mst.paths import is_address, user_path, user_source
from mst.planning.environment import describe_environment
from mst.runtime import logging
from mst.runtime.device import select_device, select_precision, set_float32_products
from mst.runtime.identity import DataIdentity
from mst.runtime.seeding import check_seed
from mst.runtime.storage.files import remove_asides, write_atomic, write_together
from mst.runtime.storage.lock import only_process_in
from mst.runtime.storage.results import Result, append_jsonl, read_jsonl
from mst.runtime.storage.rundir import RunDir, check_new_run_dir, create_run_dir
from mst.workflows.evaluation.errors import write_if_telling
from mst.workflows.evaluation.labelled import Limits, label_options
from mst.workflows.finetuning.batches import Work, loop_settings, train_views
from mst.workflows.finetuning.fitting import check_fits
from mst.workflows.finetuning.start import (
    FinetuneConfig,
    InputOptions,
    Running,
    described_network,
    labelled_folder,
    started_backbone,
)
from mst.workflows.finetuning.stored import (
    TASK,
    is_finished,
    lengthened,
    stored_config,
    stored_network,
    unchanged_config,
)
from mst.workflows.finetuning.training import identity_of, prepared_finetuning
from mst.workflows.subject import described_data

MOST_TRAIN_SCORED = 500
"""Training images that are scored beside the validation images, without augmentation, to show over-fitting."""


def finetune_backbone(
    backbone: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    protocol: FinetuneProtocol | None = None,
    image: InputOptions | None = None,
    limits: Limits | None = None,
    labels: LabelOptions | str | Path | None = None,
    running: Running | None = None,
    device: str = "auto",
    seed: int = 0,
    recipe: str = "",
    overwrite: bool = False,
    resume: bool = False,
) -> Result:
    """Train a backbone and a linear classifier on labelled images; `out` gets both, rows and checkpoints.

    Args:
        backbone: a run folder, a backbone file, `timm:NAME`, `NAME=FILE`, `random:` before any of them (the same
            network with fresh weights), or `scratch:NAME` (timm's network of that name with fresh weights).
        data: a folder with `train/<class>/` and `val/<class>/` (or valid, test) or with `<class>/` alone, the folder of
            the images of a table, or a table (.csv, .tsv).
        out: the new folder: `backbone.safetensors`, `classifier.safetensors`, `classes.json`, `metrics.jsonl`,
            `results.jsonl`, `checkpoints/`, and `errors/` for few or unbalanced classes.
        protocol: what changes the numbers.
        image: size and channels.
        limits: use only parts of the folder.
        labels: a table of paths and labels, or all options of labels: the part to score, the split.
        running: validation, checkpoints, workers, compute type.
        device: auto, cpu, cuda or cuda:N.
        seed: of all draws and of fresh weights.
        recipe: a name to keep with the settings.
        overwrite: replace the run that `out` holds.
        resume: go on with the run that `out` holds, if it holds one.

    Returns:
        `Result` with the metrics of `mst.evaluate.classification.outcome.Outcome` on the validation images in percent.

    Raises:
        UsageError: something is wrong with the settings, the weights or the images, nothing was written.
        RunFailure: disk full, too many bad steps.
        Interrupted: SIGINT or SIGTERM; everything is saved.
    """
    config = FinetuneConfig(
        user_source(backbone),
        str(data) if is_address(str(data)) else str(user_path(data).resolve()),
        protocol or FinetuneProtocol(),
        image or InputOptions(),
        limits or Limits(),
        running or Running(),
        device,
        seed,
        recipe,
        with_absolute_table(label_options(labels)),
    )
    run = RunDir(user_path(out))
    if resume and World.current().from_first(run.exists):  # which the first may make before another has looked
        return _go_on(run, unchanged_config(run, config), f"--out {run.root}")
    return _start(config, run.root, overwrite=overwrite)


def _start(config: FinetuneConfig, root: Path, *, overwrite: bool) -> Result:
    """Check everything, make the folder, and carry the training out."""
    check_seed(config.seed)
    world = World.current()
    world.refuse_differences(json.loads(json.dumps(asdict(config))), "settings")
    world.from_first(lambda: check_new_run_dir(root, overwrite=overwrite))
    check_apart(config, root)
    select_device(config.device, flag="--device")
    network = described_network(config)
    train_views(config, network)  # refuses a description that timm does not know
    folder = labelled_folder(config, network)
    model = Classifier(started_backbone(config, network), len(folder.classes), seed=config.seed)
    check_fits(config, network, model)
    world.refuse_differences(identity_of(folder).digest, "images")
    run = world.from_first(lambda: create_run_dir(root, overwrite=overwrite))
    world.keep_log(run.root)
    with only_process_in(run.root):
        values = {"task": TASK, "recipe": config.recipe or TASK, "settings": asdict(config)}
        write_atomic(run.plan, json.dumps({**network.to_json(), **planned(config, folder, model)}, indent=2) + "\n")
        if folder.split.automatic:
            write_atomic(run.root / folder.split.file, folder.split.table)
            logging.info(f"the split is in {run.root / folder.split.file}{folder.split.use}")
        write_atomic(run.config, json.dumps(values, indent=2) + "\n")  # last: it makes the folder a run
        return _carry_out(Work(config, network, folder, run), model)


def resume_finetuning(out: str | Path, *, device: str | None = None, epochs: int | None = None) -> Result:
    """Go on with an interrupted fine-tuning, with the settings it was started with, or with a finished one for longer.

    Args:
        out: its folder.
        device: None = as before.
        epochs: of a finished one, how many it is to have in all; the added ones have a schedule of their own, see
            `mst.engine.schedule.learning_rate`. None = as before.

    Raises:
        UsageError: there is none, or it cannot be made longer.
        RunFailure, Interrupted: as `finetune_backbone`.
    """
    run = RunDir(user_path(out))
    named = f"--resume {run.root}"
    config = stored_config(run, named)
    longer = config if epochs is None else lengthened(run, config, epochs, named)
    World.current().from_first(lambda: None)  # nobody writes before all have read
    if longer != config:
        _make_longer(run, longer, named)
    return _go_on(run, longer if device is None else replace(longer, device=device), named)


def _make_longer(run: RunDir, config: FinetuneConfig, named: str) -> None:
    """Write down that a finished run goes on."""
    network = stored_network(run, named)
    steps = loop_settings(config, len(labelled_folder(config, network, tell=False).train.paths)).steps
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    values = {**json.loads(run.config.read_text(encoding="utf-8")), "settings": asdict(config)}
    with only_process_in(run.root):
        write_atomic(run.plan, json.dumps({**plan, "total_steps": steps}, indent=2) + "\n")
        write_atomic(run.config, json.dumps(values, indent=2) + "\n")
    added = config.protocol.epochs - config.ended[-1]
    logging.info(f"{run.root} goes on, epochs added: {added}; a warm-up, then a cosine from half its highest rate")


def _go_on(run: RunDir, config: FinetuneConfig, named: str) -> Result:
    """Carry on in a folder, which messages call `named`; of a finished run, return the result."""
    rows = map(Result.from_row, read_jsonl(run.results))
    done = [result for result in rows if result and is_finished(config, result)]
    if done:
        with suppress(OSError, UsageError), only_process_in(run.root):  # takes away what a kill at the very end left
            remove_asides(run.root)
        logging.info(f"{run.root} is finished: nothing to do")
        return done[-1]
    network = stored_network(run, named)
    folder = labelled_folder(config, network)
    World.current().keep_log(run.root)
    begun = any(run.checkpoints.glob("step_*"))
    backbone = network.build(config) if begun else started_backbone(config, network)
    model = Classifier(backbone, len(folder.classes), seed=config.seed)
    with only_process_in(run.root):
        return _carry_out(Work(config, network, folder, run), model)


def check_apart(config: FinetuneConfig, root: Path) -> None:
    """Refuse a folder that holds, or lies in, what the training reads.

    Raises:
        UsageError: `--overwrite` would delete the images or the weights.
    """
    place, data = root.resolve(), Path(config.data)
    if not is_address(config.data) and (data.is_relative_to(place) or place.is_relative_to(data)):
        raise UsageError(f"--out {root} and --data {data} lie one in the other: name a folder apart")
    backbone = config.backbone.removeprefix("random:")
    if any(Path(name).resolve().is_relative_to(place) for name in (backbone, backbone.partition("=")[2] or backbone)):
        raise UsageError(f"--out {root} holds the weights to start from, {config.backbone}: name another folder")
    table = config.labels.labels
    if table is not None and Path(table).resolve().is_relative_to(place):
        raise UsageError(f"--out {root} holds --labels {table}: name another folder")
    if RunDir(root).exists():  # it would be deleted
        found = find_labels(config.data, config.labels, channels=2)  # .npy files count as well
        refuse_inside(root, *(part.paths for part in found.parts.values()))


def with_absolute_table(labels: LabelOptions) -> LabelOptions:
    """Return options whose table is found from any working folder."""
    if labels.labels is None or is_address(labels.labels):
        return labels
    return replace(labels, labels=str(user_path(labels.labels).resolve()))


def planned(config: FinetuneConfig, folder: LabelledFolder, model: Classifier) -> dict[str, float]:
    """Return the numbers of a run for plan.json, where its report finds them."""
    images = len(folder.train.paths)
    settings = loop_settings(config, images)
    groups = parameter_groups(model, weight_decay=config.protocol.weight_decay, layer_decay=config.layer_decay)
    return {
        "dataset_size": images,
        "classes": len(folder.classes),
        "batch_size": settings.batch_size,
        "total_steps": settings.steps,
        "trained_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "lr": settings.lr,
        "lr_lowest_layers": settings.lr * min(group["scale"] for group in groups),
    }


def _carry_out(work: Work, model: Classifier) -> Result:
    """Train from the newest checkpoint or from the start, then score and save."""
    config, folder, run = work.config, work.folder, work.run
    device = select_device(config.device, flag="--device")
    dtype, reason = select_precision(config.running.precision, device)
    reason += set_float32_products(device, dtype)
    write_atomic(run.environment, json.dumps(describe_environment(device, reason), indent=2) + "\n")
    model.to(device)
    scorer, contents = _Scorer(work, model), identity_of(folder)
    prepared = prepared_finetuning(work, model, contents, scorer.row, unreadable=run.unreadable)

    def note(identity: Mapping[str, Any]) -> None:
        write_atomic(
            run.training,
            json.dumps({"task": TASK, "processes": World.current().size, "identity": identity}, indent=2) + "\n",
        )

    outcome = fit(prepared.training, prepared.settings, replace(prepared.context, run=run, begun=note))
    _save(work, model, outcome)
    scores = scorer.latest or scorer()
    write_if_telling(run.errors_of(TASK, untrained=False), TASK, scores.outcome, scorer.images)
    result = _result(work, model, outcome, scorer, contents)
    append_jsonl(run.results, result.row())
    logging.info(f"done: {run.backbone}")
    return result


class _Scorer:
    """Scores the classifier on the validation images, and on some training images; keeps the latest scores."""

    def __init__(self, work: Work, model: Classifier) -> None:
        running, folder, network = work.config.running, work.folder, work.network
        self.model, self.classes, channels = model, folder.classes, network.spec.channels
        scale = measured_scale(folder.val.paths, channels=channels, known=network.ranges)
        self.images = ImageSet(folder.val.paths, folder.val.labels, channels, scale)
        some = folder.train.evenly(min(MOST_TRAIN_SCORED, len(folder.val.paths)))
        self.train_images = ImageSet(some.paths, some.labels, channels, network.scale)
        self.transform = ImageTransform(network.spec.image_size, network.mean, network.std)
        self.settings = FeatureSettings(
            precision=running.precision,
            max_unreadable_share=running.max_unreadable_share,
            progress=running.progress,
        )
        self.latest: Scores | None = None

    def __call__(self) -> Scores:
        self.latest = self._score(self.images)
        return self.latest

    def _score(self, images: ImageSet) -> Scores:
        return score_classifier(self.model, images, self.transform, self.settings, self.classes)

    def row(self) -> Mapping[str, float]:
        """Return the numbers of a row of metrics."""
        return {**self().row("val"), **self._score(self.train_images).row("train")}


def _save(work: Work, model: Classifier, outcome: Outcome) -> None:
    """Write the trained backbone, the classifier and its classes."""
    run, network = work.run, work.network
    metadata = {"recipe": TASK, "step": outcome.steps, **network.image_metadata}
    save_backbone(run.backbone, model.backbone, metadata)
    head = {name: value.detach().cpu().contiguous() for name, value in model.head.state_dict().items()}
    classes = json.dumps(list(work.folder.classes), indent=2) + "\n"
    write_together(
        [
            (run.root / "classes.json", classes),
            (run.root / "classifier.safetensors", save(head, metadata={"format": "pt"})),
        ]
    )


def _result(work: Work, model: Classifier, outcome: Outcome, scorer: _Scorer, contents: DataIdentity) -> Result:
    """Return the row of results.jsonl."""
    scores = scorer.latest or scorer()
    config, network, folder = work.config, work.network, work.folder
    protocol: dict[str, Any] = {
        **asdict(config.protocol),
        "lr": config.protocol.lr,
        "layer_decay": config.layer_decay,
        "size": list(network.spec.image_size),
        "recipe": config.recipe,
        **({"ended": list(config.ended)} if config.ended else {}),
        "precision": used_precision(FeatureSettings(precision=config.running.precision), model),
        **ranges_in_use(scorer.images.scale),
    }
    extra = {
        "train_images": len(folder.train.paths),
        "val_images": len(folder.val.paths),
        "classes": len(folder.classes),
        "split": folder.split.row(),
        "unreadable": list(scores.unreadable),
        "val_loss": scores.loss,
        **asdict(outcome),
        **scores.outcome.extra(),
    }
    return Result(
        TASK,
        scores.outcome.metrics(),
        protocol,
        config.backbone,
        network.sha256,
        config.seed,
        **described_data(config.data, contents),
        extra=extra,
    )
