"""One training of `quality_per_hour.py` in a process of its own: with mst, or with lightly-train in its environment.

    PYTHON benchmarks/quality_workers.py SETTINGS.json

Both trainers are timed and saved by the same few lines, from outside: a global hook at the end of each optimizer step
saves the teacher's backbone at fixed times. Time counts from the end of the first step; saving does not count. Needs
torch alone, and whichever trainer SETTINGS.json names. The process may not use the network.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from mst.model.pair import TeacherStudent

PACKAGES = ("torch", "torchvision", "timm", "lightly-train", "lightly", "pytorch-lightning", "albumentations")
Weights = dict[str, Tensor]


class PaceKnown(SystemExit):
    """Ends a training that was started only to learn how long a step takes."""


class Clock:
    """Notes each optimizer step, saves weights at fixed times, and may end the training.

    Attributes:
        weights: returns those of the teacher's backbone as they are; set by whoever builds it.
        rows: of what was saved: seconds, steps, images, file.
        steps: done so far.
        seconds: from the end of the first step to the end of the last one, without the time that saving took.
    """

    weights: Callable[[], Weights]

    def __init__(self, folder: Path, *, batch: int, times: Sequence[float], limit: float | None) -> None:
        """Begin to listen.

        Args:
            folder: for the weights.
            batch: images of a step.
            times: seconds at which to save, rising.
            limit: seconds after which the training is ended; None = it ends by itself.
        """
        self._folder, self._batch, self._limit = folder, batch, limit
        self._times = list(times)
        self._began, self._saving = 0.0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.steps, self.seconds = 0, 0.0
        self.startup = 0.0
        register_optimizer_step_post_hook(self._note)

    def _note(self, *_: Any) -> None:
        now = time.perf_counter()
        self.steps += 1
        if self.steps == 1:
            self._began, self.startup = now, now - STARTED
        self.seconds = now - self._began - self._saving
        if self._times and self.seconds >= self._times[0]:
            self._times = [later for later in self._times if later > self.seconds]
            self.save()
        if self._limit is not None and self.seconds >= self._limit:
            raise PaceKnown(0)

    def save(self) -> None:
        """Save the weights as they are now."""
        began = time.perf_counter()
        file = self._folder / f"step_{self.steps:06d}.pt"
        weights = {name: tensor.detach().clone() for name, tensor in self.weights().items()}
        torch.save(weights, file)
        row = {"seconds": self.seconds, "steps": self.steps, "images": self.steps * self._batch, "file": file.name}
        self.rows = [*(row for row in self.rows if row["steps"] < self.steps), row]
        self._saving += time.perf_counter() - began

    def report(self) -> dict[str, Any]:
        """Return what is known of the training."""
        installed = {}
        for package in PACKAGES:
            try:
                installed[package] = version(package)
            except PackageNotFoundError:
                continue
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "startup_seconds": self.startup,
            "saving_seconds": self._saving,
            "threads": torch.get_num_threads(),
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "versions": installed,
            "network_refused": REFUSED,
            "rows": self.rows,
        }


class ClsToken(nn.Module):
    """A timm ViT as lightly-train takes networks of one's own: its feature is the CLS token, not the patches' mean."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def feature_dim(self) -> int:
        """Return D."""
        return int(self.network.num_features)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Return patch tokens as maps [B, D, h, w], and the CLS token [B, D]."""
        tokens = self.network.forward_features(x)
        patches = tokens[:, self.network.num_prefix_tokens :].transpose(1, 2)
        side = int(patches.shape[2] ** 0.5)
        return {"features": patches.unflatten(2, (side, side)), "cls_token": tokens[:, 0]}

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the feature as a map [B, D, 1, 1]."""
        return {"pooled_features": x["cls_token"][:, :, None, None]}

    def get_model(self) -> nn.Module:
        """Return the timm network."""
        network: nn.Module = self.network
        return network


def tuples(value: Any) -> Any:
    """Return a JSON value with tuples for lists: lightly-train's settings are strict about it."""
    if isinstance(value, list):
        return tuple(map(tuples, value))
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def train_with_lightly(settings: dict[str, Any], folder: Path, clock: Clock) -> None:
    """Train as `settings["pretrain"]` says; the teacher is the network that lightly-train is given and exports."""
    import lightly_train
    import timm

    torch.manual_seed(settings["seed"])
    network = timm.create_model(settings["backbone"], **tuples(settings["backbone_arguments"]))
    if settings["start"]:
        network.load_state_dict(torch.load(settings["start"], weights_only=True))
    clock.weights = network.state_dict
    clock.save()
    model = ClsToken(network) if settings["cls"] else network
    lightly_train.pretrain(
        out=str(folder / "run"), model=model, seed=settings["seed"], overwrite=True, **tuples(settings["pretrain"])
    )


def train_with_mst(settings: dict[str, Any], folder: Path, clock: Clock) -> None:
    """Train a recipe by `mst.pretrain`, keeping hold of the networks that it builds."""
    import mst
    from mst.planning.setup import Setup

    build = Setup.build_pair

    def build_pair(setup: Setup, *, resumed: bool = False) -> TeacherStudent:
        pair = build(setup, resumed=resumed)
        clock.weights = pair.teacher.backbone.timm_state_dict
        clock.save()
        return pair

    with patch.object(Setup, "build_pair", build_pair):
        mst.pretrain(mst.load_recipe(settings["recipe"], settings["overrides"]), out=folder / "run", overwrite=True)


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse connections to other hosts, and questions for their addresses (an audit hook)."""
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        REFUSED.append(str(arguments[0] if event == "socket.getaddrinfo" else arguments[1]))
        raise PermissionError("no network in a benchmark")


def main() -> None:
    """Train, and write trained.json beside the weights."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(settings["folder"])
    sys.addaudithook(refuse_network)
    clock = Clock(folder, batch=settings["batch"], times=settings["times"], limit=settings["limit"])
    try:
        {"mst": train_with_mst, "lightly": train_with_lightly}[settings["trainer"]](settings, folder, clock)
        clock.save()
    except PaceKnown:
        pass
    (folder / "trained.json").write_text(json.dumps(clock.report(), indent=1) + "\n", encoding="utf-8")


STARTED = time.perf_counter()
REFUSED: list[str] = []
if __name__ == "__main__":
    main()
