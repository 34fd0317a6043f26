"""Advice in words from what an inspection found, and the command to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Level = Literal["bad", "note", "good"]
FEW, VERY_FEW = 1000, 100
"""Images below which a pre-training from scratch has little, or nothing, to learn from."""
WIDE_BYTES = 1 << 20
"""Mean bytes of an image from which packing smaller ones is worth it."""
LARGE_SIDE = 1024
"""Shorter side from which most pixels are decoded for nothing: crops of 224 pixels are made of them."""
PACKED = 512
UNBALANCED = 10
"""Times as many images in the largest class as in the smallest."""


class Advice(NamedTuple):
    """One piece of advice.

    Attributes:
        level: "bad": mend it before training; "note": know it; "good": nothing to do.
        about: one word for it, for programs.
        text: one sentence or two.
    """

    level: Level
    about: str
    text: str


def advise(row: Mapping[str, Any], source: str) -> list[Advice]:
    """Return advice on what `mst.data.survey.inspect_images` returned, the most important first.

    Args:
        row: what it returned, and perhaps `decoding` (`mst.data.inspection.cost.decoding_cost`).
        source: the path as the user typed it.
    """
    found = [
        *_files(row),
        *_duplicates(row),
        *_leaks(row),
        *_pixels(row, source),
        *_numbers(row, source),
    ]
    found.sort(key=lambda advice: ("bad", "note", "good").index(advice.level))
    return found or [Advice("good", "nothing", "Nothing stands in the way of training on these images.")]


def next_command(row: Mapping[str, Any], source: str, options: str = "") -> str:
    """Return the command to type next.

    Args:
        row: as of `advise`.
        source: the path as the user typed it.
        options: options of the data that the user gave, such as `--data.by-content true`.
    """
    train = row["image_folder"] or source
    words = f"mst pretrain own-images --data.train {shlex.quote(train)} --out runs/first"
    if all_grey(row) and "--data.channels" not in options:
        words += " --data.channels 1"
    if row["classes"] and "train" in row["parts"] and len(row["parts"]) > 1 and row["image_folder"]:
        words += f" --monitor.knn-data {shlex.quote(source)}"
    return f"{words} {options}".strip()


def all_grey(row: Mapping[str, Any]) -> bool:
    """Return whether (nearly) all images have no colours."""
    return bool(row["pictures"]) and row["grey"] >= 0.995 * row["pictures"]


def _files(row: Mapping[str, Any]) -> list[Advice]:
    found: list[Advice] = []
    if bad := len(row["unreadable"]):
        kinds = ", ".join(f"{count} {KINDS.get(kind, kind)}" for kind, count in row["unreadable_kinds"].items())
        text = f"{_of(bad, row['images'])} cannot be read ({kinds}): training skips them; mend or remove them."
        found.append(Advice("bad", "unreadable", text))
    if cut := len(row["truncated"]):
        text = f"{cut} {_s(cut, 'file lacks', 'files lack')} the end but can be read: look at the last rows."
        found.append(Advice("bad", "truncated", text))
    if row["mask_folders"]:
        folders = ", ".join(row["mask_folders"][:3])
        text = f"{folders} hold annotations, which would be trained on as images: give the folder of the images alone."
        found.append(Advice("bad", "masks", text))
    if row["moving"]:
        moving = row["moving"]
        text = f"{moving} {_s(moving, 'file has', 'files have')} several frames or pages: the first of each is used."
        found.append(Advice("note", "frames", text))
    return found


def _duplicates(row: Mapping[str, Any]) -> list[Advice]:
    found: list[Advice] = []
    exact, near = row["exact_duplicates"], row["near_duplicates"]
    if exact["images"]:
        text = f"{_of(exact['images'], row['pictures'])} are exact copies of others: they only weigh those more."
        found.append(Advice("note", "exact duplicates", text))
    if near["images"]:
        many = near["images"] > 0.3 * row["pictures"]
        more = (" So many are like a video: the set is as varied as its scenes, not as its images." if many else "") + (
            " There may be more, too many are alike to compare all." if row["near_duplicates_cut"] else ""
        )
        text = f"{_of(near['images'], row['pictures'])} show nearly the same as others.{more}"
        found.append(Advice("note", "near duplicates", text))
    if conflicts := len(row["conflicts"]):
        text = f"{conflicts} {_s(conflicts, 'image lies', 'images lie')} in several classes: a label is wrong."
        found.append(Advice("bad", "conflicts", text))
    return found


def _leaks(row: Mapping[str, Any]) -> list[Advice]:
    exact, near = len(row["leaks"]["exact"]), len(row["leaks"]["near"])
    if not exact + near:
        return []
    parts = ", ".join(sorted(row["parts"], key=_part))
    text = (
        f"{exact + near} {_s(exact + near, 'image is', 'images are')} in several of {parts}"
        f" ({exact} exactly, {near} nearly): what is measured on them says nothing about new images; take them out of"
        " the training images."
    )
    return [Advice("bad", "leaks", text)]


def _pixels(row: Mapping[str, Any], source: str) -> list[Advice]:
    found: list[Advice] = []
    if blank := len(row["blank"]):
        text = f"{blank} {_s(blank, 'image is', 'images are')} blank or nearly: there is nothing to learn from them."
        found.append(Advice("bad" if blank > 0.05 * row["pictures"] else "note", "blank", text))
    if row["value_range_problem"]:
        found.append(Advice("bad", "value range", f"{row['value_range_problem']}."))
    elif row["values"] and row["value_ranges"]:
        ranges = "; ".join(f"{kind} {low:g} to {high:g}" for kind, (low, high) in row["value_ranges"].items())
        text = f"Values deeper than 8 bits are taken as {ranges}: another range with --data.value-range LO HI."
        found.append(Advice("note", "value range", text))
    if all_grey(row):
        text = "All are grey: --data.channels 1 computes less and loses nothing."
        if row["grey"] < row["pictures"]:
            text = f"{_share(row['grey'], row['pictures'])} are grey: --data.channels 1 computes less."
        found.append(Advice("note", "grey", text))
    elif row["grey"] >= 0.05 * row["pictures"] > 0:
        share = _share(row["grey"], row["pictures"])
        advice = (
            "--data.channels 1 treats all alike, and loses the colours of the others"
            if row["grey"] >= 0.5 * row["pictures"]
            else "the network can tell them from the others by that alone; --data.channels 1 makes all grey"
        )
        found.append(Advice("note", "grey", f"{share} are grey: {advice}."))
    extreme = sum(row["shapes"].get(name, 0) for name in ("taller than 2:1", "wider than 2:1"))
    if extreme > 0.1 * max(row["readable"], 1):
        text = f"{_of(extreme, row['readable'])} are longer than 2:1: square crops see a part of them at a time."
        found.append(Advice("note", "shapes", text))
    return found


def _numbers(row: Mapping[str, Any], source: str) -> list[Advice]:
    found: list[Advice] = []
    distinct = row["pictures"] - row["exact_duplicates"]["images"] - len(row["blank"])
    if 0 < distinct < FEW:
        text = (
            f"{distinct} different images are few to train from scratch on: start from released weights (--init), or"
            " collect more; docs/recipes.md says what to expect."
            if distinct < VERY_FEW
            else f"{distinct} different images are few: expect little over untrained weights, and start from released"
            " weights (--init) where some fit."
        )
        found.append(Advice("bad" if distinct < VERY_FEW else "note", "few", text))
    classes = row["classes"]
    if len(classes) > 1 and max(classes.values()) > UNBALANCED * min(classes.values()):
        most, least = max(classes, key=classes.__getitem__), min(classes, key=classes.__getitem__)
        largest, smallest = classes[most], classes[least]
        text = (
            f"Classes are unbalanced: {largest} images of {most}, {smallest} of {least}: read balanced accuracy,"
            " not accuracy."
        )
        found.append(Advice("note", "classes", text))
    return found + _decoding(row, source)


def _decoding(row: Mapping[str, Any], source: str) -> list[Advice]:
    cost = row.get("decoding")
    if not cost:
        return []
    readable = row["readable"]
    if cost["median_shorter_side"] >= LARGE_SIDE:
        text = (
            f"Half of the images have a shorter side of {cost['median_shorter_side']} px or more, and one takes"
            f" {cost['milliseconds']:.0f} ms to decode, an epoch {_minutes(cost['epoch_seconds'])} on"
            f" {_cores(cost)}: `mst pack {shlex.quote(source)} SHARDS --resize {PACKED}` once makes each"
            " epoch quicker."
        )
        return [Advice("bad" if cost["epoch_seconds"] > 600 else "note", "decoding", text)]
    text = (
        f"Decoding takes {cost['milliseconds']:.2g} ms an image: {cost['per_core']:.0f} images/s a core,"
        f" {cost['images_per_second']:.0f} on {_cores(cost)} of this machine, {_minutes(cost['epoch_seconds'])} for an"
        f" epoch of {readable}."
    )
    if "run" not in cost:
        text += " `mst plan own-images` measures what the network needs beside it, `--run RUN` compares with a run's."
        return [Advice("good", "decoding", text)]
    step, share = cost["step_milliseconds"], cost["share_of_step"]
    text += (
        f" A step of {cost['run']} takes {step:.3g} ms an image: decoding on one core is {100 * share:.3g} % of that"
    )
    if share <= cost["cores"]:
        return [Advice("good", "decoding", text + ".")]
    return [
        Advice("note", "decoding", text + f", more than {_cores(cost)} can give: the network would wait for images.")
    ]


KINDS = {"empty": "empty", "truncated": "truncated", "no image": "no image at all", "unopened": "not to be opened"}


def _of(count: int, total: int) -> str:
    return f"{count} of {total} images ({_share(count, total)})"


def _share(count: int, total: int) -> str:
    share = 100 * count / max(total, 1)
    return f"{share:.0f} %" if share >= 9.5 or count == 0 else f"{share:.1f} %" if share >= 0.05 else "below 0.1 %"


def _s(count: int, one: str, several: str) -> str:
    return one if count == 1 else several


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _part(name: str) -> int:
    return {"train": 0, "val": 1}.get(name, 2)


def _cores(cost: Mapping[str, Any]) -> str:
    return f"{cost['cores']} {_s(cost['cores'], 'core', 'cores')}"
