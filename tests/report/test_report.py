"""The report: complete from full files, sensible from missing or broken ones, and self-contained either way."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mst.cli import main
from mst.errors import UsageError
from mst.report.curves import chart_groups
from mst.report.health import checks
from mst.report.numbers import MINUS, NONE, TIMES, duration, percent, short, signed
from mst.report.page import write_report
from mst.report.pictures import SHOWN, caption, data_uri, spread
from mst.report.plots import Chart, Series, draw
from mst.report.reading import read_run
from mst.report.results import comparisons
from mst.runtime.storage.outputs import NOTES
from mst.runtime.storage.results import append_jsonl
from mst.runtime.storage.rundir import RunDir

CONFIG = {
    "recipe": "try <this> & that",
    "views": {"global_crops": 2, "local_crops": 4},
    "model": {"backbone": "vit_tiny_patch16_224", "patch_size": 8, "head_hidden": 32, "head_bottleneck": 16},
    "objective": {
        "strategy": "attention_low",
        "eligible_fraction": 0.5,
        "mask_probability": 0.3,
        "restoration_weight": 0.6,
    },
    "train": {"epochs": 8.0},
}
PLAN = {
    "dataset_size": 6000,
    "total_steps": 100,
    "batch_size": 64,
    "lr": 0.001,
    "global_size": [48, 48],
    "local_size": [24, 16],
    "prototypes": 1024,
    "reasons": {"lr": "linear <rule>"},
}
ENVIRONMENT = {"device": "cpu", "precision": "float32: asked for", "commit": "0123456789abcdef", "mst": "0.1.0"}


def metrics_row(step: int) -> dict[str, float | int | None]:
    return {
        "step": step,
        "images": step * 64,
        "loss": 7 - step / 100,
        "self_distillation": 6.5 - step / 100,
        "restoration": 0.8 - step / 200,
        "lr": 0.001,
        "weight_decay": 0.04,
        "teacher_temp": 0.04,
        "teacher_momentum": 0.99,
        "grad_norm": 1.0,
        "images_per_second": 240.0,
        "data_wait": 0.02,
        "memory_gb": 1.4,
        "teacher_entropy": 3.0,
        "marginal_entropy": 6.0,
        "max_entropy": math.log(1024),
        "feature_std": 0.8,
        "rankme": 40.0,
        "psnr_masked": 12 + step / 20,
        "psnr_visible": None,
        "bad_steps": 0,
        "seconds": step / 4,
    }


def result(task: str, backbone: str, **metrics: float) -> dict[str, object]:
    return {
        "task": task,
        "metrics": metrics,
        "protocol": {"k": 20},
        "backbone": backbone,
        "extra": {"val_images": 1000},
    }


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "mine")
    run.previews.mkdir(parents=True)
    run.config.write_text(json.dumps(CONFIG))
    run.plan.write_text(json.dumps(PLAN))
    run.environment.write_text(json.dumps(ENVIRONMENT))
    append_jsonl(run.metrics, {"step": 0, "knn_top1": 20.0, "knn_k": 20})
    for step in range(10, 101, 10):
        append_jsonl(run.metrics, metrics_row(step))
    append_jsonl(run.metrics, {"step": 100, "knn_top1": 45.0, "knn_k": 20})
    for backbone, value in (("random:mine", 20.0), ("mine", 45.0)):
        append_jsonl(run.results, result("knn", backbone, top1=value, top1_k10=value - 1))
        append_jsonl(run.results, result("patch_segmentation", backbone, miou=value / 2, aacc=value))
    for step in range(0, 101, 20):
        Image.fromarray(np.zeros((8, 32, 3), dtype=np.uint8)).save(run.previews / f"step_{step:07d}.png")
    return run


class Page(HTMLParser):
    """Collects tags, links and text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images = 0
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.images += tag == "img"
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def page_of(run: RunDir) -> Page:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert all(link.startswith(("data:", "#")) for link in page.links), "no external resources"
    return page


def test_a_complete_run(run: RunDir) -> None:
    page = page_of(run)
    for expected in (
        *(
            "try <this> & that",
            "6\u202f000",
            f"2 {TIMES} 48 px + 4 {TIMES} 24{TIMES}16 px",
            "0123456789",
            "vit_tiny_patch16_224",
        ),
        *("finished, no warnings", "+25.0", "k-NN classification", "mean IoU", "untrained 20.0 ± 1.3 %"),
        *("Entropy of the teacher", "ln K", "Restoration quality", "Learning rate", "Waiting for data"),
        *("linear <rule>", "asked for", "probability 0.3", "25 s"),
    ):
        assert expected in page.text, expected
    assert page.images == 4
    assert "visible" not in [
        series.name for group in chart_groups(read_run(run)) for c in group.charts for series in c.series
    ]


def test_the_page_is_the_same_each_time(run: RunDir) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_model_card_has_the_numbers_and_no_escapes(run: RunDir) -> None:
    write_report(run)
    card = (run.root / "model_card.md").read_text(encoding="utf-8")
    assert "recipe `try <this> & that`" in card
    assert "| k-NN classification | top-1 | 20.0 ± 1.3 | 45.0 ± 1.6 |" in card
    assert card.startswith("---\n")


@pytest.mark.parametrize(
    "missing",
    ["plan.json", "environment.json", "metrics.jsonl", "results.jsonl", "config.json"],
)
def test_a_missing_or_broken_file_is_left_out(run: RunDir, missing: str) -> None:
    path = run.root / missing
    for content in (b"{broken", b"[1, 2]\n7\n", b'{"step": "x", "data": 3, "reasons": 4}', b"\xff\xfe"):
        path.write_bytes(content)
        assert "MST" in page_of(run).text
    path.unlink()
    assert "MST" in page_of(run).text
    path.mkdir()
    assert "MST" in page_of(run).text


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = page_of(RunDir(tmp_path))
    assert "no metrics" in page.text
    assert "1 warning" in page.text


def test_broken_pictures_are_left_out(run: RunDir) -> None:
    for path in run.previews.iterdir():
        path.write_bytes(b"no picture")
    assert page_of(run).images == 0


def test_pictures_of_evaluations_under_their_titles(run: RunDir) -> None:
    before = page_of(run)
    for name in ("detection", "detection-untrained", "patch_segmentation", "empty"):
        (run.pictures / name).mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (40, 20)).save(run.pictures / "detection" / f"{number:04d}-street.png")
    Image.new("RGB", (40, 20)).save(run.pictures / "detection-untrained" / "0000-street.png")
    (run.pictures / "patch_segmentation" / "0000.png").write_bytes(b"no picture")
    (run.pictures / "note.txt").write_text("not a folder")
    page = page_of(run)
    assert page.images == before.images + SHOWN + 1
    assert "0008-street" in page.text
    assert "Detection, untrained network" in page.text
    assert "annotated" in page.text
    assert "empty" not in page.text


def test_dino_has_two_columns_and_no_restoration(run: RunDir) -> None:
    config = CONFIG | {"objective": {"strategy": "none", "restoration_weight": 0.0, "mask_probability": 0.3}}
    run.config.write_text(json.dumps(config))
    page = page_of(run)
    assert "(DINO)" in page.text
    assert "masked" not in page.text
    assert "Restoration loss" not in page.text


def warnings(run: RunDir) -> list[str]:
    records = read_run(run)
    return [check.text for check in checks(records, comparisons(records.results)) if not check.good]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"teacher_entropy": math.log(1024), "marginal_entropy": math.log(1024)}, "uniform"),
        ({"teacher_entropy": 5.99}, "same output"),
        ({"feature_std": 0.01}, "hardly differ"),
        ({"bad_steps": 3}, "3 steps"),
        ({"memory_gb": 3.2}, "from 1.4 GB of memory at step 30 to 3.2 GB at step 100"),
        ({"step": 101, "seconds": 1.0}, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_health(run: RunDir, changes: dict[str, float], expected: str | None) -> None:
    append_jsonl(run.metrics, metrics_row(100) | changes)
    found = warnings(run)
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_an_unfinished_run_unreadable_files_and_a_loss_are_warned_of(run: RunDir) -> None:
    run.plan.write_text(json.dumps(PLAN | {"total_steps": 500}))
    run.unreadable.write_text("a.jpg\ttruncated\nb.jpg\ttruncated\n")
    append_jsonl(run.results, result("knn", "mine", top1=10.0))
    assert [part for part in ("step 100 of 500", "2 files") if any(part in text for text in warnings(run))] == [
        "step 100 of 500",
        "2 files",
    ]
    assert any("did not improve" in text for text in warnings(run))
    page = page_of(run)
    assert "3 warnings" in page.text
    assert "a.jpg" in page.text


def test_results_pair_by_task_and_protocol() -> None:
    rows = [
        result("knn", "random:x", top1=20.0),
        result("knn", "x", top1=30.0),
        result("knn", "x", top1=40.0),  # evaluated again: the last counts
        result("linear", "x", top1=50.0),
        result("knn", "x", top1=60.0) | {"protocol": {"k": 5}},
        {"task": "broken"},
    ]
    found = [(row.task, row.before, row.after, row.change) for row in comparisons(rows)]
    assert found == [
        ("k-NN classification", 20.0, 40.0, 20.0),
        ("Linear probe", None, 50.0, None),
        ("k-NN classification", None, 60.0, None),
    ]


@pytest.mark.parametrize("points", [2, 500])
@pytest.mark.parametrize("small", [True, False])
def test_a_chart_is_bare_svg_in_the_pages_colours(points: int, small: bool) -> None:
    series = [Series(name, [(step, math.sin(step)) for step in range(points)]) for name in ("a", "b")]
    svg = draw(Chart("t", "n", series, ("limit", 0.5), percent=True), small=small)
    assert svg.startswith("<svg")
    assert "var(--line-1)" in svg
    assert "var(--line-2)" in svg
    assert "#ffffff" not in svg
    assert not re.search(r"#(0[12]){3}|#a[123]0000|font-family", svg)
    assert not re.search(r'<svg[^>]* (width|height)="', svg)


def test_pictures(tmp_path: Path) -> None:
    paths = [tmp_path / f"step_{step:07d}.png" for step in range(10)]
    assert spread(paths, 4) == [paths[0], paths[3], paths[6], paths[9]]
    assert spread(paths[:3], 4) == paths[:3]
    assert [caption(path) for path in paths[:2]] == ["untrained", "step 1"]
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(paths[0])
    assert data_uri(paths[0]).startswith("data:image/webp;base64,")
    assert len(data_uri(paths[0])) < paths[0].stat().st_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (short(None), NONE),
        (short(True), "yes"),
        (short(12345), "12\u202f345"),
        (short(8.0), "8"),
        (short(0.00012346), "0.0001235"),
        (short([48, 32]), f"48 {TIMES} 32"),
        (short("x"), "x"),
        (duration(None), NONE),
        (duration(59.4), "59 s"),
        (duration(200), "3 min 20 s"),
        (duration(3600), "1 h 0 min"),
        (duration(90_000), "1 d 1 h"),
        (percent(None), NONE),
        (percent(12.34, 2), "12.34"),
        (signed(-1.25), f"{MINUS}1.2"),
        (signed(2.0), "+2.0"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert text == expected


def test_the_command(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.root)]) == 0
    assert str(run.report) in capsys.readouterr().out
    assert main(["report", str(run.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(run.report)
    for words, expected in (
        (["report"], "name a run folder"),
        (["report", str(tmp_path / "nothing")], "holds no run"),
        (["report", str(run.root), "--train.epochs", "3"], "unknown option"),
    ):
        assert main(words) == 2
        assert expected in capsys.readouterr().err


def test_a_card_that_was_written_or_edited_by_hand_stays(run: RunDir) -> None:
    card = run.root / "model_card.md"
    card.write_text("# mine\n")
    with pytest.raises(UsageError, match=r"model_card.md is there and was not written by mst report: move it away"):
        write_report(run)
    card.unlink()
    write_report(run)
    (run.root / NOTES).unlink()  # as an older version left it
    write_report(run)
    write_report(run)
    card.write_text(card.read_text() + "\nTrained on our own photographs.\n")
    with pytest.raises(UsageError, match=r"model_card.md is there and was changed since"):
        write_report(run)
    assert card.read_text().endswith("photographs.\n")


def test_a_difference_within_noise_is_neutral(run: RunDir) -> None:
    for backbone, value in (("random:mine", 60.0), ("mine", 61.0)):
        append_jsonl(run.results, result("linear", backbone, top1=value) | {"protocol": {}})
    page = page_of(run)
    assert "no clear difference" in page.text
    assert "+1.0 ± 2.2" in page.text
    assert 'class="delta even">+1.0' in run.report.read_text(encoding="utf-8")
    assert 'class="delta up">+25.0' in run.report.read_text(encoding="utf-8")
    append_jsonl(run.results, result("linear", "mine", top1=60.0) | {"protocol": {}})
    assert "no clear difference to the untrained network (+0.0 ± 2.2)" in page_of(run).text


def test_few_labels_are_said() -> None:
    few = result("logistic", "mine", top1=60.0)
    few["protocol"] = {"labels": {"train_share": 0.01, "train_per_class": 10}, "seeds": 5}
    (row,) = comparisons([few])
    assert row.title == "Logistic regression (1 % of the labels, 10 labels a class, 5 draws)"


def test_pairs_on_the_same_images_are_surer_than_counts() -> None:
    right = np.arange(1000) % 10 != 0
    better = right | (np.arange(1000) % 100 == 0)

    def row(backbone: str, which: np.ndarray, names: str = "a") -> dict[str, object]:
        bits = base64.b64encode(np.packbits(which).tobytes()).decode()
        kept = {"images": 1000, "names": names, "bits": bits}
        found = result("knn", backbone, top1=100 * float(which.mean()))
        return found | {"extra": {"val_images": 1000, "right": kept}}

    (pair,) = comparisons([row("random:mine", right), row("mine", better)])
    assert (pair.change, pair.direction) == (pytest.approx(1.0), "up")
    assert pair.change_se == pytest.approx(100 * float(np.std(better * 1.0 - right, ddof=1)) / 1000**0.5)
    (pair,) = comparisons([row("random:mine", right, "b"), row("mine", better)])
    assert pair.direction == "even"
    for damage in ("", "AAAA", "\u00e9", 7, None):
        damaged = row("random:mine", right)
        damaged["extra"]["right"]["bits"] = damage  # type: ignore[index]
        (pair,) = comparisons([damaged, row("mine", better)])
        assert pair.direction == "even"


def test_results_of_one_task_under_several_settings_are_told_apart() -> None:
    def row(size: list[int], pool: list[str], top1: float) -> dict[str, object]:
        protocol = {"transform": {"size": size, "mean": [0.5]}, "pool": pool, "lr": 0.1}
        return {"task": "logistic", "backbone": "mine", "protocol": protocol, "metrics": {"top1": top1}}

    rows = [row([64, 64], ["cls"], 1.0), row([128, 128], ["max", "min"], 2.0), row([64, 64], ["cls"], 3.0)]
    titles = {each.title: each.after for each in comparisons(rows)}
    assert titles == {
        "Logistic regression (64 x 64 px, cls)": 3.0,
        "Logistic regression (128 x 128 px, max min)": 2.0,
    }
    (alone,) = comparisons(rows[:1])
    assert alone.title == "Logistic regression"
