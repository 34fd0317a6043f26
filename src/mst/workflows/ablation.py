"""Ablations: variants of a recipe that differ in one setting, trained with several seeds, compared in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mst.checkpoint.compare import is_free
from mst.config.keys import flag
from mst.config.load import as_chosen, changed_keys, load_config, override, require_data, with_absolute_paths
from mst.config.schema import RunConfig
from mst.errors import Interrupted, UsageError
from mst.paths import PathText, SourceText, absolute_place, user_path
from mst.recipes import base_config
from mst.recipes.ablations import FAMILIES, find_family
from mst.recipes.variants import Variant
from mst.report.ablation import AblationRow, markdown, own_result, plot_ablation
from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.rundir import RunDir

TABLE, PLOT = "ablation.md", "ablation.png"
EARLIER = re.compile(rb"\A# .* seed\(s\)\n|Matplotlib")
"""Pattern in tables and plots of versions that kept no notes."""


@dataclass(frozen=True)
class Ablation:
    """What is compared, on what, and where the runs go."""

    family: str = ""
    """strategies, evidence, heads, weight, head, decoder, eligible, probability, share or crops."""
    recipe: SourceText = ""
    """The recipe (or JSON file of settings) whose twins are run."""
    seeds: int = 1
    """Runs per twin, with seeds 0, 1, ...; more of them can be asked for later."""
    eval: SourceText = ""
    """Labelled folder (train/<class>/, val/<class>/) for the k-NN accuracy of each finished run."""
    eval_train_limit: int | None = None
    """Most training images that --eval compares with, drawn evenly over the classes; all unless set."""
    eval_val_limit: int | None = None
    """Most validation images that --eval classifies."""
    out: PathText = ""
    """Folder of the ablation: a run in TWIN/seed_N each, ablation.md and ablation.png."""

    def __post_init__(self) -> None:
        for name in ("seeds", "eval_train_limit", "eval_val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{flag(name)} {value}: must be a whole number of at least 1")


@dataclass(frozen=True)
class Labelled:
    """What finished runs are scored on; without a folder they are not scored.

    Attributes:
        folder: of train/<class>/ and val/<class>/.
        train_limit: at most this many training images; None = all.
        val_limit: at most this many validation images.
    """

    folder: str
    train_limit: int | None
    val_limit: int | None


@dataclass(frozen=True)
class Cell:
    """One run of an ablation."""

    twin: str
    config: RunConfig
    folder: Path


def planned(options: Ablation, words: Mapping[str, list[str]]) -> list[Cell]:
    """Return all runs, checked; `words` are settings that all of them have, by dotted key.

    Raises:
        UsageError: family, recipe, images or folder are missing or wrong.
    """
    if not options.family:
        raise UsageError(
            "name a family: mst ablate FAMILY --recipe RECIPE --data.train PATH --out DIR "
            f"(families: {', '.join(FAMILIES)})"
        )
    twins = find_family(options.family)
    for name in ("recipe", "out"):
        if not getattr(options, name):
            raise UsageError(f"--{name} is missing: mst ablate {options.family} --recipe RECIPE --out DIR")
    taken = sorted({"runtime.seed", *(key for twin in twins for key in twin.changes)} & words.keys())
    if taken:
        raise UsageError(f"{flag(taken[0])} is what mst ablate {options.family} sets itself: leave it away")
    base = override(base_config(options.recipe), words)
    require_data(base)
    root = user_path(options.out)
    if root.exists() and not root.is_dir():
        raise UsageError(f"--out {root} is a file, not a folder: name a new folder")
    base = chosen_once(base, root)
    return [_cell(twin, base, seed, root) for seed in range(options.seeds) for twin in twins]


def chosen_once(base: RunConfig, root: Path) -> RunConfig:
    """Return what all runs share; what is left to images and device is chosen once: by the runs that are there, or now.

    Raises:
        UsageError: the images cannot be read, or the time is too short.
    """
    if base.choice is None:
        return base
    stored = [load_config(path) for path in sorted(root.glob("*/seed_*/config.json"))]
    if stored:
        return as_chosen(base, max(stored, key=lambda config: len(config.choice.reasons if config.choice else ())))
    from mst.planning.resolving import resolved

    return resolved(base)


def labelled_images(options: Ablation) -> Labelled:
    """Return what finished runs are scored on.

    Raises:
        UsageError: limits without a folder.
    """
    for name in ("eval_train_limit", "eval_val_limit"):
        value = getattr(options, name)
        if value and not options.eval:
            raise UsageError(f"{flag(name)} {value} limits --eval, which is missing: name a labelled folder")
    return Labelled(options.eval, options.eval_train_limit, options.eval_val_limit)


def _cell(twin: Variant, base: RunConfig, seed: int, root: Path) -> Cell:
    config = override(twin.apply(base), {"runtime.seed": seed})
    config = config.model_copy(update={"recipe": f"{base.recipe}-{twin.name}"})
    return Cell(twin.name, with_absolute_paths(config), root / twin.name / f"seed_{seed}")


def note(options: Ablation) -> Path:
    """Return the file that notes what the folder compares."""
    return user_path(options.out) / "ablation.json"


def identity(options: Ablation) -> Mapping[str, str]:
    """Return what must stay the same when the folder is used again."""
    labelled = absolute_place(options.eval) if options.eval else ""
    limits = {name: str(getattr(options, name) or "") for name in ("eval_train_limit", "eval_val_limit")}
    return {"family": options.family, "recipe": options.recipe, "eval": labelled, **limits}


def check_same(options: Ablation) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UsageError: another ablation's folder, or one that is no ablation's.
    """
    path, now = note(options), identity(options)
    if not path.exists():
        if path.parent.is_dir() and any(path.parent.iterdir()):
            raise UsageError(f"--out {path.parent} is not empty and holds no ablation: name a new folder")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = [f"{flag(key)} {before.get(key) or 'none'}" for key in now if before.get(key, "") != now[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"cannot read {path}: {error}; name a new folder") from error
    if changes:
        raise UsageError(f"--out {path.parent} was made with {', '.join(changes)}: use that, or name a new folder")


def check_unchanged(cell: Cell) -> None:
    """Refuse to go on with a run that was started with other settings.

    Raises:
        UsageError: names the settings.
    """
    run = RunDir(cell.folder)
    if run.exists():
        stored = with_absolute_paths(load_config(run.config))
        changed = [flag(key) for key in changed_keys(stored, cell.config) if not is_free(key)]
        if changed:
            raise UsageError(f"{cell.folder} was run with another {', '.join(changed)}: use that, or name a new folder")


def check_images(cell: Cell, labelled: Labelled) -> None:
    """Refuse images, labelled images and crops that no run could use; nothing is written.

    Raises:
        UsageError: the first thing that is wrong with the first run.
    """
    from mst.evaluate.common.image_sets import LabelledSets
    from mst.planning.setup import check_labelled, prepare

    prepare(cell.config)
    if labelled.folder:
        sets = LabelledSets.from_folder(
            labelled.folder,
            channels=cell.config.data.channels,
            train_limit=labelled.train_limit,
            val_limit=labelled.val_limit,
        )
        check_labelled(sets, "--eval")


def open_folder(options: Ablation) -> None:
    """Make the folder and note what it compares.

    Raises:
        UsageError: it cannot be made.
    """
    path = note(options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create --out {path.parent}: {error.strerror}") from error
    write_atomic(path, json.dumps(identity(options), indent=2) + "\n")


def finish(cell: Cell, labelled: Labelled) -> None:
    """Train and evaluate what is not done yet.

    Raises:
        Interrupted: SIGINT or SIGTERM; the same command goes on.
    """
    from mst.workflows.evaluation.labelled import Limits, evaluate_knn
    from mst.workflows.pretraining import pretrain

    try:
        pretrain(cell.config, cell.folder, resume=RunDir(cell.folder).exists())
    except Interrupted as stop:
        raise Interrupted(f"{stop}; the same mst ablate command goes on with the rest", stop.exit_code - 128) from stop
    if labelled.folder and own_result(RunDir(cell.folder)) is None:
        limits = Limits(labelled.train_limit, labelled.val_limit)
        result = evaluate_knn(cell.folder, labelled.folder, limits=limits, device=cell.config.runtime.device)
        write_atomic(RunDir(cell.folder).ablation, json.dumps(result.row(), indent=2) + "\n")


def table_outputs(options: Ablation) -> Outputs:
    """Return the place of the table and the plot.

    Raises:
        UsageError: one of them was changed since it was written.
    """
    outputs = Outputs(note(options).parent, "ablate", "--out", earlier=EARLIER)
    outputs.check([TABLE, PLOT])
    return outputs


def write_table(rows: Sequence[AblationRow], options: Ablation, outputs: Outputs) -> None:
    """Write ablation.md and ablation.png."""
    text = (
        f"# {options.family} of {options.recipe}, {options.seeds} seed(s)\n\n"
        f"mean ± sample standard deviation (runs)\n\n{markdown(rows)}\n"
        f"one value per run, seeds 0, 1, ...\n\n{markdown(rows, each=True)}"
    )
    outputs.write(TABLE, text.encode())
    outputs.write(PLOT, plot_ablation(rows))
