"""Nothing in a file of weights is run, and each refusal is one line."""

from __future__ import annotations

import functools
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.hostile import CALLS, OPS, SHAPES, archive, bombs, legacy, ops
from model.test_start import tiny
from mst.errors import CheckpointError
from mst.model.backbone import Backbone
from mst.model.start import start_from


@functools.cache
def untouched() -> Backbone:
    return tiny()


def refused(path: Path, said: str | None = None) -> str:
    with pytest.raises(CheckpointError, match=said) as caught:
        start_from(untouched(), str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + 2 * len(str(path))
    return message


@pytest.mark.parametrize(("module", "name"), CALLS)
def test_no_name_is_looked_up(module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "was here"
    for shape, program in SHAPES.items():
        for pack in (archive, legacy):
            pack(program(module, name, f"touch '{marker}'"), tmp_path / "w.pth")
            refused(tmp_path / "w.pth")
            assert [path.name for path in tmp_path.iterdir()] == ["w.pth"], shape


@pytest.mark.parametrize("kind", bombs(Path("x")))
def test_no_code_runs_beside_good_weights(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "was here"
    source, target = tiny(seed=1), tiny(seed=2)
    good = dict(source.timm_state_dict())
    torch.save({**bombs(marker)[kind], "state_dict": good}, tmp_path / "w.pth")
    start = start_from(target, str(tmp_path / "w.pth"))
    assert "state_dict of" in str(start)
    assert not marker.exists()
    assert torch.equal(target.timm_state_dict()["norm.weight"], good["norm.weight"])


@pytest.mark.parametrize("number", range(OPS))
def test_wrong_programs(number: int, tmp_path: Path) -> None:
    for pack in (archive, legacy):
        pack(ops(number), tmp_path / "w.pth")
        refused(tmp_path / "w.pth")


def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": tiny().timm_state_dict()}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as target:
        target.writestr("archive/constants.pkl" if "archive/" in target.namelist()[0] else "w/constants.pkl", b"N.")
    refused(tmp_path / "w.pth", "is a TorchScript program, which would be run: save its state_dict instead")


def test_other_archives(tmp_path: Path) -> None:
    torch.save({"model": tiny().timm_state_dict()}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "p.pth", "w", 8) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    refused(tmp_path / "p.pth", "is a compressed archive, not what torch.save writes")
    with tarfile.open(tmp_path / "t.pth", "w") as tar:
        tar.add(tmp_path / "w.pth", "storages")
    refused(tmp_path / "t.pth", "it is a tar archive; name a file inside")


def test_a_storage_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(100)}}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source:
        program = next(source.read(name) for name in source.namelist() if name.endswith("data.pkl"))
    claimed = re.sub(rb"Kdt", b"J\xff\xff\xff\x7ft", program, count=1)
    assert claimed != program
    archive(claimed, tmp_path / "v.pth", {"data/0": bytes(400)})
    refused(tmp_path / "v.pth")


ODD: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "sparse": (lambda weight: weight.to_sparse(), "is a sparse tensor"),
    "meta": (lambda weight: weight.to("meta"), "is a meta tensor, which has no numbers"),
    "quantised": (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "is a quantised tensor"),
    "nested": (lambda weight: torch.nested.nested_tensor([weight]), "is a nested tensor"),
    "no dimension": (lambda _: torch.ones(()), r"norm\.weight is \[\] there"),
    "empty": (lambda _: torch.ones(0), r"norm\.weight is \[0\] there"),
    "complex": (lambda weight: weight.to(torch.complex64), "is of type complex64: weights are"),
    "conjugate": (lambda weight: weight.to(torch.complex64).conj(), "is a conjugate or negated view"),
    "int64": (lambda weight: weight.long(), "is of type int64"),
    "uint8": (lambda weight: weight.byte(), "is of type uint8"),
    "uint16": (lambda weight: weight.to(torch.uint16), "is a tensor of type uint16"),
    "bool": (lambda weight: weight.bool(), "is of type bool"),
    "float8": (lambda weight: weight.to(torch.float8_e5m2), "is a tensor of type float8_e5m2"),
    "NaN": (lambda weight: weight * float("nan"), "holds NaN: the network it is from was broken"),
    "one infinity": (lambda weight: weight / torch.eye(32)[0], "holds infinity"),
    "a list": (lambda weight: weight.tolist(), r"1 are missing \(norm\.weight\)"),
    "None": (lambda _: None, r"1 are missing \(norm\.weight\)"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(kind: str, tmp_path: Path) -> None:
    change, said = ODD[kind]
    weights = dict(tiny(seed=1).timm_state_dict())
    torch.save({"model": {**weights, "norm.weight": change(weights["norm.weight"])}}, tmp_path / "w.pth")
    target = tiny(seed=2)
    before = target.model.norm.weight.clone()
    with pytest.raises(CheckpointError, match=said) as caught:
        start_from(target, str(tmp_path / "w.pth"))
    assert "norm.weight" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(target.model.norm.weight, before)


@pytest.mark.parametrize(
    "change", [lambda w: w.requires_grad_(), lambda w: w.expand(2, -1)[0], lambda w: w[None].T[:, 0]]
)
def test_views_and_gradients_are_no_matter(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    weights = dict(tiny(seed=1).timm_state_dict())
    torch.save({**weights, "norm.weight": change(weights["norm.weight"].clone())}, tmp_path / "w.pth")
    target = tiny(seed=2)
    start_from(target, str(tmp_path / "w.pth"))
    assert torch.equal(target.model.norm.weight, weights["norm.weight"])


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    """Bytes changed, cut or put in at random: a start or one line, never anything else."""
    target = tiny(embed_dim=16, depth=1)
    weights = dict(target.timm_state_dict())
    torch.save({"model": weights, "args": {"lr": 1.0}}, tmp_path / "zip.pth")
    torch.save({"model": weights}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "plain.safetensors")
    sources = [(path.suffix, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    draws = torch.Generator().manual_seed(0)
    starts = 0
    for number in range(10_000):
        suffix, content = sources[number % len(sources)]
        damaged = bytearray(content)
        for _ in range(int(torch.randint(1, 4, (), generator=draws))):
            where = int(torch.randint(len(damaged), (), generator=draws))
            if number % 2:  # where the names, sizes and instructions are
                where = where % 2000 if where % 2 else len(damaged) - 1 - where % 2000
            kind = int(torch.randint(4, (), generator=draws))
            if kind == 0:
                del damaged[where:]
                damaged = damaged or bytearray(b"\0")
            elif kind == 1:
                damaged[where:where] = bytes(3)
            else:
                damaged[where] ^= 1 << kind
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(damaged)
        try:
            start_from(target, str(path))
            starts += 1
        except CheckpointError as refusal:
            assert "\n" not in str(refusal)  # noqa: PT017
    assert 0 < starts < 9000
