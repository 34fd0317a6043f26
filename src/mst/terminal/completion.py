"""Completion in shells: what there is to complete, and scripts for bash, zsh and fish that know it by heart.

A script holds all words, since starting Python for every press of a key would take longer than typing.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from mst.config.keys import SHORT, flag, setting_fields
from mst.recipes import RECIPES, TASK_RECIPES
from mst.terminal import parsing
from mst.terminal.help import records_of_help

WITH_SETTINGS = ("pretrain", "plan", "bench", "ablate", "submit slurm")
WITH_RECIPE = ("pretrain", "plan", "bench", "recipes", "finetune", "ablate", "submit slurm")
"""Commands whose first word may be a recipe."""


@dataclass(frozen=True)
class Known:
    """What can be completed.

    Attributes:
        commands: each with what it does.
        words: of a command, or of a command and its task: tasks and recipes that may come next.
        options: the same for options.
    """

    commands: Mapping[str, str]
    words: Mapping[str, tuple[str, ...]]
    options: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(commands: Mapping[str, str]) -> Known:
        """Collect the words of all commands from their options' records."""
        words: dict[str, tuple[str, ...]] = {"help": tuple(name for name in commands if name != "help")}
        options: dict[str, tuple[str, ...]] = {"": ("--help", "--version"), "help": ()}
        for command in words["help"]:
            module = importlib.import_module(f"mst.commands.{command}")
            tasks: Mapping[str, Any] = getattr(module, "TASKS", {})
            words[command] = (*tasks, *_recipes(command))
            options[command] = () if tasks else _options(command, module.run)
            for task, run in tasks.items():
                name = f"{command} {task}"
                words[name], options[name] = _recipes(name), _options(name, run)
        return Known(commands, words, options)


def _recipes(name: str) -> tuple[str, ...]:
    own = tuple(recipe.name for recipe in TASK_RECIPES.values() if name in {recipe.task, "recipes"})
    return (*(RECIPES if name in WITH_RECIPE and name != "finetune" else ()), *(own if name in WITH_RECIPE else ()))


def _options(name: str, run: Callable[[list[str]], int]) -> tuple[str, ...]:
    """Return a command's options: those of the record that its help would show, and of settings."""
    with records_of_help() as kinds, redirect_stdout(io.StringIO()):
        run(["--help"])
    own = [flag(leaf.name) for kind in kinds for leaf, _ in parsing.leaves(kind) if not parsing.is_positional(leaf)]
    settings = [*map(flag, setting_fields()), *map(flag, SHORT)] if name in WITH_SETTINGS else []
    more = ["--help-all"] if settings else []
    return tuple(dict.fromkeys((*own, *settings, "--help", *more)))


def bash(known: Known) -> str:
    """Return the script for bash."""
    cases = "".join(
        f"    '{name}') words='{' '.join(known.words.get(name, ()))}'; options='{' '.join(found)}' ;;\n"
        for name, found in known.options.items()
    )
    tasks = "|".join(sorted(name.split()[0] for name in known.options if " " in name) or ["-"])
    return f"""_mst() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" name="" words="" options="" at=2
  if [ "$COMP_CWORD" -le 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(known.commands)} --help --version' -- "$current"))
    return
  fi
  name="${{COMP_WORDS[1]}}"
  case "$name" in
    {tasks}) if [ "$COMP_CWORD" -gt 2 ]; then name="$name ${{COMP_WORDS[2]}}"; at=3; fi ;;
  esac
  case "$name" in
{cases}  esac
  if [[ "$current" == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  elif [ "$COMP_CWORD" -eq "$at" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _mst mst
"""


def zsh(known: Known) -> str:
    """Return the script for zsh, which runs that for bash."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(known)}"


def fish(known: Known) -> str:
    """Return the script for fish."""
    lines = ["complete -c mst -f -n __fish_use_subcommand -l version -l help"]
    for name, what in known.commands.items():
        said = what.replace("\\", "").replace("'", "")
        lines.append(f"complete -c mst -f -n __fish_use_subcommand -a {name} -d '{said}'")
    for name, found in known.options.items():
        if not name:
            continue
        seen = " and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split()).replace(" and ", "; and ")
        if words := known.words.get(name, ()):
            lines.append(f"complete -c mst -n '{seen}' -a '{' '.join(words)}'")
        lines += [f"complete -c mst -n '{seen}' -l {option[2:]}" for option in found]
    return "\n".join(lines) + "\n"


SCRIPTS: dict[str, Callable[[Known], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""Shell -> its script."""
