"""A resumed run keeps the settings that define it, and may change the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mst.checkpoint.compare import FREE, changed_settings, is_free, refuse_changed_settings, refuse_other_training
from mst.config.load import override
from mst.config.schema import RunConfig
from mst.errors import CheckpointError, UsageError
from mst.runtime.identity import CONTENTS, identify


def changed(**sections: dict[str, object]) -> dict[str, object]:
    return RunConfig.model_validate(sections).model_dump(mode="json")


def test_same_settings_pass_whatever_the_container() -> None:
    refuse_changed_settings(RunConfig().model_dump(), RunConfig().model_dump(mode="json"))


def test_every_changed_key_is_named_with_both_values() -> None:
    saved = changed()
    current = changed(optimizer={"lr": 0.1}, train={"batch_size": 8}, monitor={"every_steps": 7})
    with pytest.raises(CheckpointError) as caught:
        refuse_changed_settings(saved, current)
    assert "optimizer.lr None -> 0.1, train.batch_size 1024 -> 8" in str(caught.value)
    assert "monitor" not in str(caught.value)


def test_what_may_change() -> None:
    current = changed(
        monitor={"every_steps": 7, "collapse": "off"},
        checkpoint={"keep": 9},
        runtime={"workers": 3, "device": "cpu", "threads": 1},
        train={"max_bad_steps": 1},
    )
    refuse_changed_settings(changed(), current)
    assert len(changed_settings(changed(), current)) == 7


def test_keys_of_one_side_only_are_changes() -> None:
    assert changed_settings({"a": {"b": 1}}, {"a": {"c": [1]}}) == {"a.b": (1, None), "a.c": (None, [1])}


def test_a_key_newer_than_the_checkpoint_is_no_reason_to_refuse() -> None:
    refuse_changed_settings({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}})
    with pytest.raises(CheckpointError, match=r"a\.b 1 -> None"):
        refuse_changed_settings({"a": {"b": 1}}, {"a": {"c": 2}})


def test_a_setting_newer_than_the_checkpoint_was_what_it_is_by_default() -> None:
    saved = RunConfig().model_dump(mode="json")
    del saved["views"]["local_blur_sigma"]
    refuse_changed_settings(saved, RunConfig().model_dump(), usual=RunConfig().model_dump())
    now = override(RunConfig(), {"views.local_blur_sigma": (0.1, 1.0)}).model_dump()
    with pytest.raises(CheckpointError, match=r"views\.local_blur_sigma None -> \[0\.1, 1\.0\]"):
        refuse_changed_settings(saved, now, usual=RunConfig().model_dump())


def test_free_keys_exist() -> None:
    known = set(changed_settings({}, RunConfig().model_dump()))
    for free in FREE:
        assert any(is_free(key) and key.startswith(free) for key in known | {"recipe", "batch_size_per_pass"}), free
    assert not is_free("runtime.seed")
    assert not is_free("monitoring")


def plan(images: int, **more: object) -> dict[str, object]:
    identity = identify("x", [b"%d" % n for n in range(images)], count=images)
    return {"dataset_size": images, "lr": 1.0, "data_identity": identity.row(), **more}


def test_changed_images_are_refused_until_they_are_accepted() -> None:
    refuse_changed_settings(plan(16), plan(16, accepted_data=[]))
    with pytest.raises(CheckpointError, match=r"other images \(17 images, not 16\).*--accept-changed-data"):
        refuse_changed_settings(plan(16), plan(17))
    accepted = [{"identity": plan(16)["data_identity"], "until_step": 3}]
    refuse_changed_settings(plan(16), plan(17, accepted_data=accepted))
    with pytest.raises(CheckpointError, match=r"lr 1.0 -> 2.0"):
        refuse_changed_settings(plan(16), plan(17, accepted_data=accepted, lr=2.0))
    with pytest.raises(CheckpointError, match="15 images, not 16"):
        refuse_changed_settings(plan(16), plan(15, accepted_data=[{"identity": plan(17)["data_identity"]}]))


def test_a_plan_of_an_older_version_has_only_numbers_to_compare() -> None:
    old = {"dataset_size": 16, "lr": 1.0}
    refuse_changed_settings(old, plan(16))
    with pytest.raises(CheckpointError, match="dataset_size 16 -> 17"):
        refuse_changed_settings(old, plan(17))
    refuse_changed_settings(old, plan(17, accepted_data=[{"identity": {"count": 16}, "until_step": 3}]))


def test_a_training_with_labels_is_resumed_with_its_own_data_only(capsys: pytest.CaptureFixture[str]) -> None:
    now = {"seed": 0, "lr": 1.0, CONTENTS: "a"}
    refuse_other_training(dict(now), now, Path("ck"))
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"ck holds a training with other contents of the data, seed"):
        refuse_other_training({**now, "seed": 1, CONTENTS: "b"}, now, Path("ck"))
    with pytest.raises(UsageError, match=r"other steps"):
        refuse_other_training({**now, "steps": 3}, now, Path("ck"))
    refuse_other_training({"seed": 0, "lr": 1.0}, now, Path("ck"))
    [line] = capsys.readouterr().err.splitlines()
    assert "is of an older version, which did not note what its data held" in line
