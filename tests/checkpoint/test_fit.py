"""What does not fit is refused by name before anything is changed."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mst.checkpoint.fit import Unfit, check_module, check_optimizer, check_tensor, number, section, whole
from mst.checkpoint.format import Damaged, _digest, read_folder, write_folder
from mst.errors import CheckpointError

STEPS = 2


def trained(make: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = make(network)
    for _ in range(STEPS):
        network(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return network, optimizer


def adamw(network: nn.Module) -> Optimizer:
    *weights, bias = network.parameters()
    return AdamW([{"params": weights, "scale": 0.5}, {"params": [bias]}], lr=0.1, fused=True)


def sgd(network: nn.Module) -> Optimizer:
    return SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)


@pytest.mark.parametrize("make", [adamw, sgd])
def test_what_was_saved_fits(make: Callable[[nn.Module], Optimizer], tmp_path: Path) -> None:
    network, optimizer = trained(make)
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    fresh = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    check_module(saved["model"], fresh, "model")
    check_optimizer(saved["optimizer"], make(fresh), steps=STEPS)
    empty = make(fresh).state_dict()
    check_optimizer(empty, make(fresh), steps=0)  # before the first step


def state(key: str, value: Any, *, of: int = 0) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved["state"][of][key] = value

    return change


def group(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved["param_groups"][0][key] = value

    return change


def replaced(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved[key] = value

    return change


def shared(saved: dict[str, Any]) -> None:
    saved["state"][0]["exp_avg_sq"] = saved["state"][0]["exp_avg"].abs_()


def without_squares(saved: dict[str, Any]) -> None:
    del saved["state"][0]["exp_avg_sq"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (state("exp_avg", torch.zeros(9, 9)), r"parameter 0, exp_avg, has shape \[9, 9\] instead of \[4, 3\]"),
        (state("exp_avg", torch.zeros(1)), r"has shape \[1\] instead of \[4, 3\]"),
        (state("exp_avg", torch.zeros(0)), r"has shape \[0\] instead"),
        (state("exp_avg", torch.zeros(1, 1).expand(4, 3)), "another order"),
        (state("exp_avg", torch.zeros(3, 4).T), "another order"),
        (state("exp_avg", torch.zeros(4, 3, dtype=torch.float64)), "type float64 instead of float32"),
        (state("exp_avg", torch.zeros(4, 3, dtype=torch.int32)), "type int32 instead of float32"),
        (state("exp_avg", torch.zeros(4, 3).to_sparse()), "is a sparse tensor"),
        (state("exp_avg", torch.zeros(4, 3, device="meta")), "is a meta tensor"),
        (state("exp_avg", torch.full((4, 3), float("nan"))), "holds NaN"),
        (state("exp_avg", torch.full((4, 3), float("-inf"))), "holds infinity"),
        (state("exp_avg", None), "is NoneType, not a tensor"),
        (state("exp_avg", [1.0]), "is list, not a tensor"),
        (state("exp_avg_sq", torch.full((4, 3), -1.0)), "holds -1: a mean of squares"),
        (shared, "shares its memory with optimizer state of parameter 0, exp_avg"),
        (without_squares, "has exp_avg, step instead of exp_avg, exp_avg_sq, step"),
        (state("max_exp_avg_sq", torch.zeros(4, 3)), "instead of exp_avg, exp_avg_sq, step"),
        (state("step", torch.tensor(3.0)), r"step, is 3\.0: must be a whole number of type float32 from 0 to 2"),
        (state("step", torch.tensor(-1.0)), "must be a whole number"),
        (state("step", torch.tensor(0.5)), "must be a whole number"),
        (state("step", torch.tensor(float("nan"))), "must be a whole number"),
        (state("step", torch.tensor(2)), "must be a whole number of type float32"),
        (state("step", torch.zeros(2)), "must be a whole number"),
        (state("step", "1"), "must be a whole number"),
        (replaced("state", {9: {}}), "state of parameter 9; there are 6"),
        (replaced("state", {-1: {}}), "state of parameter -1"),
        (replaced("state", {"0": {}}), "state of parameter '0'"),
        (replaced("state", {0: 1}), "is int instead of values by name"),
        (replaced("state", None), "optimizer state is missing"),
        (replaced("param_groups", []), "has 0 parameter groups instead of 2"),
        (replaced("param_groups", None), "has no parameter groups"),
        (replaced("param_groups", [1, 2]), "group 0 is int"),
        (group("params", [0, 1, 2, 3, 0]), "group 0 is not of the 5 parameters here"),
        (group("params", [0]), "group 0 is not of the 5 parameters here"),
        (group("amsgrad", True), "amsgrad True instead of False"),
        (group("fused", None), "fused missing instead of True"),
        (group("betas", (0.9, float("nan"))), "has betas"),
        (group("betas", 0.9), r"has betas 0\.9 instead"),
        (group("eps", "x" * 999), "has eps 'xxx"),
        (group("scale", 7.0), r"has scale 7\.0 instead of 0\.5"),
        (group("lr", float("nan")), "lr is nan: must be a finite number"),
        (group("lr", "0.1"), "lr is '0.1'"),
    ],
)
def test_another_optimizers_state(change: Callable[[dict[str, Any]], None], said: str) -> None:
    network, optimizer = trained(adamw)
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    with pytest.raises(Unfit, match=said) as caught:
        check_optimizer(saved, optimizer, steps=STEPS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    del network


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced("0.bias", torch.zeros(5)), r"model 0\.bias has shape \[5\] instead of \[4\]"),
        (replaced("0.bias", torch.full((4,), float("nan"))), r"model 0\.bias holds NaN"),
        (replaced("0.bias", torch.zeros(4, dtype=torch.bfloat16)), "type bfloat16 instead of float32"),
        (replaced("1.running_var", -torch.ones(4)), "holds -1"),
        (replaced("more", torch.zeros(1)), r"model also has 1 of 9 tensors \(first more\)"),
        (lambda saved: saved.pop("0.bias"), r"model misses 1 of 9 tensors \(first 0\.bias\)"),
    ],
)
def test_another_networks_weights(change: Callable[[dict[str, Any]], None], said: str) -> None:
    network, _ = trained(adamw)
    saved = dict(network.state_dict())
    change(saved)
    with pytest.raises(Unfit, match=said):
        check_module(saved, network, "model")


def test_claims_beyond_the_data_are_refused() -> None:
    value = torch.zeros(4)
    storage = value.untyped_storage()
    storage.resize_(4)
    with pytest.raises(Unfit, match="center has less data than its shape says"):
        check_tensor(value, torch.zeros(4), "center")


@pytest.mark.parametrize("value", [None, -1, 2.0, True, 11, "3", 10**400])
def test_counts(value: object) -> None:
    assert whole({"step": 10}, "step", most=10) == 10
    with pytest.raises(Unfit, match=r"^step is .*: must be a whole number from 0 to 10$"):
        whole({"step": value}, "step", most=10)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1e-9, True, "3", 10**400, [1.0]])
def test_numbers(value: object) -> None:
    assert number({"seconds": 2}, "seconds", least=0.0) == 2.0
    with pytest.raises(Unfit, match=r"^seconds is .*: must be a finite number of at least 0$"):
        number({"seconds": value}, "seconds", least=0.0)


def test_sections() -> None:
    with pytest.raises(Unfit, match=r"^means is list instead of values by name$"):
        section({"means": []}, "means")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": -1}, "says step -1"),
        ({"step": None}, "says step None"),
        ({"files": None}, "lists no files"),
        ({"info": []}, "or no settings"),
        ({"files": {"../model.pt": {"size": 1, "sha256": ""}}}, r"lists '\.\./model\.pt'"),
        ({"files": {"model.pt": None}}, r"lists 'model\.pt'"),
        ({"files": {"model.pt": {"size": "9", "sha256": ""}}}, r"lists 'model\.pt'"),
    ],
)
def test_a_record_with_a_renewed_digest(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_folder(tmp_path, 1, {"model": {}}, {})
    content = {**json.loads((tmp_path / "info.json").read_text()), **change}
    content.pop("sha256")
    (tmp_path / "info.json").write_text(json.dumps({**content, "sha256": _digest(content)}))
    with pytest.raises(Damaged, match=said):
        read_folder(tmp_path)


@pytest.mark.parametrize("step", [2, -1, 10**400, "1", None, torch.ones(2)])
def test_both_files_say_the_same_step(step: object, tmp_path: Path) -> None:
    write_folder(tmp_path, 1, {"progress": {"step": step}}, {})
    with pytest.raises(Damaged, match=r"progress\.pt says another step than info\.json, which says 1"):
        read_folder(tmp_path)


def test_what_the_system_withholds_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, 1, {"model": {}}, {})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13), str(tmp_path / "info.json"))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*info\.json: Permission denied; mend that"):
        read_folder(tmp_path)
