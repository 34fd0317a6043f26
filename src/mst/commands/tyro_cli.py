"""Words to a frozen dataclass through tyro, with every mistake as one line of `UsageError`."""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from itertools import takewhile
from typing import Any, TypeVar, get_type_hints

import tyro

from mst.config.keys import choices, describe_type, suggestion
from mst.errors import UsageError
from mst.recipes import find_task_recipe

Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class RecipeOption:
    """Base of the arguments of a command that has recipes.

    Attributes:
        recipe: a recipe of this command (see `mst recipes`): its options count where they are not given.
    """

    recipe: str | None = field(default=None, kw_only=True)


def parse_words(kind: type[Arguments], argv: Sequence[str], *, prog: str) -> Arguments | None:
    """Return the arguments, or None after `--help` was shown.

    Args:
        kind: a frozen dataclass; groups are fields that are dataclasses with a `default_factory`, their fields become
            flags without a prefix. A `str` without default is required. Below `RecipeOption`, `--recipe NAME` puts
            the recipe's options under those in `argv`.
        argv: the words after the command.
        prog: the command, for the help text.

    Raises:
        UsageError: an unknown flag or recipe (the nearest is named), a missing or wrong value.
    """
    if issubclass(kind, RecipeOption):
        argv = _with_recipe(argv, prog)
    own = {_flag(field.name): field for field, _ in _leaves(kind)}
    words = [word.split("=", 1)[0].replace("_", "-") for word in argv if word.startswith("--")]
    for word in words:
        plain = f"--{word[5:]}" if word.startswith("--no-") else word
        if word not in own and plain not in own and word != "--help":
            close = difflib.get_close_matches(word, own, n=1)
            raise UsageError(f"unknown option {word}{f'; did you mean {close[0]}?' if close else f' ({prog} --help)'}")
    missing = [flag for flag, field in own.items() if _required(field) and flag not in words]
    if missing and not {"-h", "--help"} & set(argv):
        raise UsageError(f"{prog} needs {' and '.join(missing)} ({prog} --help)")
    errors, output = io.StringIO(), io.StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(output):
            return tyro.cli(kind, prog=prog, args=list(argv), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as end:
        sys.stdout.write(output.getvalue())
        if end.code in (0, None):
            return None
        types = {_flag(field.name): hint for field, hint in _leaves(kind)}
        raise UsageError(_explained(_one_line(errors.getvalue()), types, argv)) from end


def _with_recipe(argv: Sequence[str], prog: str) -> list[str]:
    """Return the words, followed by those of the recipe they name, as far as they do not give these options."""
    words = _split_equals(argv)
    if "--recipe" not in words[:-1] or words[words.index("--recipe") + 1].startswith("--"):
        return list(argv)  # none, or no name: said by the parser
    recipe = find_task_recipe(words[words.index("--recipe") + 1], prog.removeprefix("mst "))
    given = {word for word in words if word.startswith("--")}
    added = [option for name, option in recipe.words().items() if not {name, f"--no-{name[2:]}"} & given]
    return [*argv, *(word for option in added for word in option)]


def _leaves(kind: Any) -> Iterator[tuple[Field[Any], Any]]:
    """Yield the fields of a dataclass with their types, those of its groups in place of the groups."""
    types = get_type_hints(kind)
    for own in fields(kind):
        group: Any = own.default_factory
        if is_dataclass(group):
            yield from _leaves(group)
        else:
            yield own, types[own.name]


def _explained(said: str, types: Mapping[str, Any], argv: Sequence[str]) -> str:
    """Say what tyro said in this project's words: the option, the words received, what is allowed."""
    found = re.search(r"--[a-z][a-z-]*", said)
    if found is None or found[0] not in types:
        return said.replace("Unrecognized options:", "unexpected word")
    option, written = found[0], _split_equals(argv)
    after = written[written.index(option) + 1 :] if option in written else []
    words = list(takewhile(lambda word: not word.startswith("--"), after))
    allowed = describe_type(types[option])
    if not words:
        return f"{option} needs a value: {allowed}"
    return f"{option} {' '.join(words)}: must be {allowed}{suggestion(words[0], choices(types[option]))}"


def _split_equals(argv: Sequence[str]) -> list[str]:
    """Write `--key_name=value` as `--key-name value`."""
    parts = (word.split("=", 1) if word.startswith("--") else [word] for word in argv)
    return [part.replace("_", "-") if part.startswith("--") else part for found in parts for part in found]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _one_line(box: str) -> str:
    """Return what tyro's box of lines says, without its title, rules and hints."""
    lines = [line.strip() for line in box.splitlines()]
    lines = [line for line in lines if line.strip("-─╭╮╰╯│ ")][1:]
    kept: list[str] = []
    for line in lines:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        kept.append(line)
    return " ".join(kept) or "wrong arguments"
