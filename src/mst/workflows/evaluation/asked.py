"""An evaluation that trains, as it was asked for: kept beside its rows, so that one of its steps can be done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from mst.engine.schedule import Checkpointing
from mst.engine.supervised import Begun, PreparedTraining
from mst.errors import UsageError
from mst.evaluate.common.features import FeatureSettings
from mst.parallel.world import World
from mst.paths import absolute_place, user_path
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation.inputs import EvaluationInput
from mst.workflows.subject import Subject, absolute_source

Numbers = TypeVar("Numbers")
Options = TypeVar("Options")
FORMAT = 1
"""Of what `training.json` says."""


@dataclass(frozen=True)
class AskedTraining(Generic[Numbers, Options]):
    """A training that an evaluation was asked for.

    Attributes:
        given: backbone, data, device, seed.
        protocol: what changes the numbers.
        options: parts of the data, and what is written beside the row.
        saving: checkpoints.
    """

    given: EvaluationInput[Any]
    protocol: Numbers
    options: Options
    saving: Checkpointing

    def to_json(self) -> dict[str, Any] | None:
        """Return the record as JSON types, its paths absolute; None where a network or data are in memory."""
        given = self.given
        if not isinstance(given.backbone, str | Path) or not isinstance(given.data, str | Path):
            return None
        folder = self.saving.checkpoints
        return {
            "backbone": absolute_source(given.backbone),
            "data": absolute_place(given.data),
            "settings": asdict(given.settings) if given.settings else None,
            "device": given.device,
            "seed": given.seed,
            "protocol": asdict(self.protocol),  # type: ignore[call-overload]
            "options": asdict(self.options),  # type: ignore[call-overload]
            "saving": {**asdict(self.saving), "checkpoints": str(user_path(folder).absolute()) if folder else None},
        }

    def training(
        self, prepare: Callable[..., PreparedTraining[Any]], subject: Subject, data: object, settings: FeatureSettings
    ) -> PreparedTraining[Any]:
        """Return the training of the loaded backbone on loaded data, as `prepare` makes it."""
        mean, std = subject.mean_std
        return prepare(
            subject.backbone,
            data,
            self.protocol,
            mean=mean,
            std=std,
            settings=settings,
            saving=self.saving,
            seed=self.given.seed,
        )

    def note(self, task: str, run: RunDir | None) -> Begun | None:
        """Return the function that writes the record beside the rows of the training when that begins.

        Args:
            task: the word after `mst evaluate`.
            run: folder of the rows; None = there are none.

        Raises:
            UsageError: a file of the record's name is there that this command did not write.
        """
        if run is None:
            return None
        outputs, name = Outputs(run.root, f"evaluate {task}", "the folder of the training's rows"), run.training.name
        outputs.check([name])

        def write(identity: Mapping[str, Any]) -> None:
            record = {"format": FORMAT, "task": task, "processes": World.current().size, "identity": identity}
            record["asked"] = self.to_json()
            outputs.write(name, (json.dumps(record, indent=2) + "\n").encode())

        return write


def asked_again(
    values: Mapping[str, Any], protocol: type[Numbers], options: type[Options]
) -> AskedTraining[Numbers, Options]:
    """Rebuild the record of `AskedTraining.to_json`; results go nowhere.

    Raises:
        UsageError: it is damaged, or of another version of this package.
    """
    try:
        settings = values["settings"]
        given = EvaluationInput[Any](
            str(values["backbone"]),
            str(values["data"]),
            None if settings is None else TypeAdapter(FeatureSettings).validate_python(settings),
            device=str(values["device"]),
            seed=int(values["seed"]),
        )
        return AskedTraining(
            given,
            TypeAdapter(protocol).validate_python(values["protocol"]),
            TypeAdapter(options).validate_python(values["options"]),
            TypeAdapter(Checkpointing).validate_python(values["saving"]),
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"training.json is damaged or of another version ({first})") from error
