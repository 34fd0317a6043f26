"""The commands by name; nothing is imported for it."""

from __future__ import annotations

COMMANDS = {
    "quickstart": "embedded data, minutes on two CPU cores, ends with report.html",
    "recipes": "list the recipes, or print one complete",
    "plan": "what a run will do: derived values with reasons, steps, time and memory",
    "bench": "speed of a recipe on this machine, and what limits it",
    "pretrain": "train a backbone on unlabelled images",
    "ablate": "twins of a recipe, several seeds each, one table at the end",
    "evaluate": "knn, linear, logistic, retrieval, segmentation, detection or objectness of a backbone",
    "predict": "classes, segmentation or objects of images without labels, by a trained model",
    "finetune": "train a backbone and a classifier on labelled images, or both from scratch",
    "submit": "a training as a job of a cluster (SLURM) that goes on by itself until it is finished",
    "embed": "features and paths of a folder of images",
    "export": "the backbone for other tools",
    "checkpoint": "convert: a checkpoint of networks in several parts (FSDP2) as a whole one",
    "compare": "results of several runs in one table, with differences",
    "replay": "one step of a run again: which image and which tensor went wrong",
    "doctor": "what this machine, its libraries and its surroundings are good for, and what to mend",
    "completion": "bash, zsh or fish: completes commands, options, recipes and files",
    "report": "one self-contained HTML page about a run",
    "pack": "images in balanced shards, tar or parquet, made smaller if asked for",
    "inspect": "scan images: counts, sizes, damage, duplicates, leaks between train and val, advice",
}
"""Command -> what it does; `mst.commands.<command>.run(argv)` does it."""
