"""Words of a command line to frozen records: every mistake is one line with the option, the value and what is allowed.

tyro describes the options (`--help`) and converts those of a command; the settings of a run (`--section.key`) are
collected here as words, which pydantic converts (`mst.config.load.override`).
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass, replace
from itertools import takewhile
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from mst.config.keys import (
    SHORT,
    choices,
    describe_type,
    flag,
    is_flag,
    is_open_ended,
    setting_fields,
    suggestion,
    takes_several,
)
from mst.config.load import known_key
from mst.config.schema import Settings
from mst.errors import UsageError
from mst.paths import PATH, SOURCE, user_path, user_source
from mst.recipes import find_task_recipe
from mst.runtime.limits import check_magnitude
from mst.terminal.help import show_settings, taken_note

Arguments = TypeVar("Arguments")
Words = dict[str, list[str]]
"""The words of each setting by its dotted key."""
HELP, HELP_ALL = {"-h", "--help"}, "--help-all"


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
    if HELP & set(argv) or HELP_ALL in argv:
        _show_help(kind, prog, tyro.conf.OmitArgPrefixes)
        return None
    words = _without_sections(_written(argv), kind)
    if issubclass(kind, RecipeOption):
        words = _with_recipe(words, prog)
    own = {flag(leaf.name): leaf for leaf, _ in _leaves(kind)}
    for word in words:
        if word.startswith("--") and not _is_own(word, own):
            raise _unknown(word, own, prog)
    missing = [name for name, leaf in own.items() if _required(leaf) and name not in words]
    if missing:
        raise UsageError(f"{prog} needs {' and '.join(missing)} ({prog} --help)")
    return _converted(kind, words, prog)


def parse_run_words(kind: type[Arguments], argv: Sequence[str], *, prog: str) -> tuple[Arguments, Words] | None:
    """Return the arguments of a command that takes settings of a run as well, and the words of these.

    Args and errors are those of `parse_words`.
    """
    if HELP_ALL in argv:
        _show_help(_with_settings(kind), prog)
        return None
    if HELP & set(argv):
        _show_help(kind, prog)
        show_settings(argv, prog)
        return None
    words, settings = _split_settings(_written(argv), {flag(leaf.name) for leaf, _ in _leaves(kind)}, prog)
    return _converted(kind, words, prog), settings


def split_words(kind: type[Any], argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sort words into the options of `kind`, each with its value, and all others in their order, as they were written.

    Args:
        kind: a frozen dataclass whose options take one value, or none if they are flags.
        argv: the words after the command.
    """
    takes = {flag(leaf.name): hint is not bool for leaf, hint in _leaves(kind)}
    own: list[str] = []
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        name = name.replace("_", "-")
        if not (name.startswith("--") and _is_own(name, takes)):
            rest.append(word)
            continue
        own.append(word)
        if takes.get(name) and not equals and words and not words[0].startswith("--"):
            own.append(words.pop(0))
    return own, rest


def _without_sections(words: Sequence[str], kind: type[Any]) -> list[str]:
    """Write `--train.epochs` as `--epochs` for a command that has that option and no sections."""
    own = {flag(leaf.name) for leaf, _ in _leaves(kind)}

    def plain(word: str) -> str:
        section, dot, leaf = word[2:].partition(".")
        known = word.startswith("--") and dot and section in Settings.model_fields
        return f"--{leaf}" if known and _is_own(f"--{leaf}", own) and word not in own else word

    return [plain(word) for word in words]


def _with_recipe(words: Sequence[str], prog: str) -> list[str]:
    """Return the words, followed by those of the recipe they name, as far as they do not give these options."""
    if "--recipe" not in words[:-1] or words[words.index("--recipe") + 1].startswith("--"):
        return list(words)  # none, or no name: said by the parser
    recipe = find_task_recipe(words[words.index("--recipe") + 1], prog.removeprefix("mst "))
    given = {word for word in words if word.startswith("--")}
    added = [option for name, option in recipe.words().items() if not {name, _negated(name)} & given]
    return [*words, *(word for option in added for word in option)]


def _split_settings(argv: Sequence[str], own: Collection[str], prog: str) -> tuple[list[str], Words]:
    """Sort words into those of the command itself and those of each setting.

    Raises:
        UsageError: an unknown flag; the nearest is named.
    """
    known = setting_fields()
    rest: list[str] = []
    settings: Words = {}
    current: str | None = None
    for word in argv:
        if not word.startswith("--"):
            roomy = current is not None and (takes_several(known[current]) or not settings[current])
            (settings[current] if current is not None and roomy else rest).append(word)
        elif _is_own(word, own):
            current = None
            rest.append(word)
        else:
            current = _open_setting(word, own, settings, prog)
    return rest, settings


def _open_setting(word: str, own: Collection[str], settings: Words, prog: str) -> str | None:
    """Note the flag of a setting; return the key that the next words belong to."""
    known = setting_fields()
    name = word[2:].replace("-", "_")
    name = SHORT.get(name, name)
    section, _, leaf = name.partition(".")
    negated = f"{section}.{leaf.removeprefix('no_')}"
    if name not in known and leaf.startswith("no_") and negated in known and is_flag(known[negated]):
        settings[negated] = ["false"]
        return None
    if name not in known and name not in Settings.model_fields:
        raise _unknown(word, [*own, *map(flag, known)], prog)
    key = known_key(name)
    if not (is_open_ended(known[key]) and key in settings):
        settings[key] = []
    return key


def _with_settings(kind: type[Any]) -> type[Any]:
    """Return the command's options with those of every setting, for `--help-all`."""
    settings = ("settings", Annotated[Settings, tyro.conf.arg(name="")], field(default_factory=Settings))
    made = make_dataclass(kind.__name__, [settings], bases=(kind,), frozen=True)
    made.__doc__ = kind.__doc__
    return made


def is_positional(leaf: Field[Any]) -> bool:
    """Return whether a field of a record is a word without an option."""
    return "Positional" in str(leaf.type)


def _show_help(kind: type[Any], prog: str, *markers: Any) -> None:
    """Write every option with its meaning and default to stdout."""
    if taken_note(kind):
        return
    try:
        tyro.cli(kind, prog=prog, args=["--help"], config=markers)
    except SystemExit:
        sys.stdout.flush()


def _converted(kind: type[Arguments], words: Sequence[str], prog: str) -> Arguments:
    """Return the record of known words.

    Raises:
        UsageError: a missing or wrong value, a word too many.
    """
    types = {flag(leaf.name): hint for leaf, hint in _leaves(kind)}
    errors = io.StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(errors):
            record = tyro.cli(kind, prog=prog, args=_nones(words, types), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as end:
        raise UsageError(_explained(_one_line(errors.getvalue()), types, words)) from end
    _check_numbers(record)
    return _with_user_paths(record)


def _with_user_paths(record: Arguments) -> Arguments:
    """Expand the options that are marked as paths or sources (`mst.paths`), in groups too.

    Raises:
        UsageError: naming the option.
    """
    types = get_type_hints(type(record), include_extras=True)
    changed: dict[str, Any] = {}
    for own in fields(record):  # type: ignore[arg-type]
        value = getattr(record, own.name)
        if is_dataclass(value) and not isinstance(value, type):
            changed[own.name] = _with_user_paths(value)
        elif value and (marks := path_marks(types[own.name])):
            try:
                changed[own.name] = _expanded(value, marks)
            except UsageError as error:
                raise UsageError(f"{flag(own.name)}: {error}") from error
    return replace(record, **changed)  # type: ignore[type-var]


def path_marks(hint: Any) -> set[str]:
    """Return `PATH` or `SOURCE` where a type is marked so, at any depth."""
    own = {PATH, SOURCE} & {mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, str)}
    return own.union(*map(path_marks, get_args(hint)))


def _expanded(value: Any, marks: Collection[str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_expanded(item, marks) for item in value)
    return str(user_path(value)) if PATH in marks else user_source(value)


def _check_numbers(record: Any) -> None:
    """Refuse what no option takes: nan, inf, numbers beyond every use (`mst.runtime.limits`), in groups too.

    Raises:
        UsageError: naming the option.
    """
    for own in fields(record):
        value = getattr(record, own.name)
        if is_dataclass(value):
            _check_numbers(value)
        for number in value if isinstance(value, tuple) else (value,):
            check_magnitude(own.name, number)


def _leaves(kind: Any, *, marked: bool = False) -> Iterator[tuple[Field[Any], Any]]:
    """Yield the fields of a dataclass with their types, those of its groups in place of the groups."""
    types = get_type_hints(kind, include_extras=marked)
    for own in fields(kind):
        group = types[own.name]
        if is_dataclass(group) and own.default_factory is not MISSING:
            yield from _leaves(group, marked=marked)
        else:
            yield own, group


def _is_own(word: str, own: Collection[str]) -> bool:
    """Whether a flag, or what it switches off, is one of the command's."""
    return word in own or (word.startswith("--no-") and f"--{word[5:]}" in own)


def _negated(name: str) -> str:
    return f"--no-{name[2:]}"


TWINS = {
    "--model": "--backbone",
    "--backbone": "--model",
    "--label-file": "--labels",
    "--csv": "--labels",
    "--output": "--out",
}
"""Options that other commands, or other programs, have for what is called otherwise here."""


def _unknown(word: str, known: Collection[str], prog: str) -> UsageError:
    twin = TWINS.get(word)
    near = (
        f"; did you mean {twin}?" if twin in known else suggestion(word[2:], [name[2:] for name in known], prefix="--")
    )
    return UsageError(f"unknown option {word}{near or f' ({prog} --help)'}")


def _nones(words: Sequence[str], types: Mapping[str, Any]) -> list[str]:
    """Write `none` as tyro wants it, for the options that may be none and have no choice of this name."""
    written = list(words)
    for place, word in enumerate(words[1:], start=1):
        hint = types.get(words[place - 1])
        if word.lower() == "none" and NoneType in get_args(hint) and "none" not in choices(hint):
            written[place] = "None"
    return written


def _explained(said: str, types: Mapping[str, Any], written: Sequence[str]) -> str:
    """Say what tyro said in this project's words: the option, the words received, what is allowed."""
    found = re.search(r"--[a-z][a-z-]*", said)
    if found is None or found[0] not in types:
        return said.replace("Unrecognized options:", "unexpected word")
    option = found[0]
    words = _refused_words(option, choices(types[option]), written)
    allowed = describe_type(types[option])
    if not words:
        return f"{option} needs a value: {allowed}"
    return f"{option} {' '.join(words)}: must be {allowed}{suggestion(words[0], choices(types[option]))}"


def _refused_words(option: str, allowed: Collection[str], written: Sequence[str]) -> list[str]:
    """Return what follows an option; of one given twice, where a word is missing or no choice, else the last time.

    The last time is the one that counts; words of earlier ones are refused only if they are missing or no choice.
    """
    places = [place for place, word in enumerate(written) if word == option]
    times = [list(takewhile(lambda word: not word.startswith("--"), written[place + 1 :])) for place in places] or [[]]
    wrong = (words for words in times if not words or (allowed and words[0] not in allowed))
    return next(wrong, times[-1])


def _written(argv: Sequence[str]) -> list[str]:
    """Write `--key_name=value` as `--key-name value`.

    Raises:
        UsageError: an empty word: as a path it would be the working folder.
    """
    parts = (word.split("=", 1) if word.startswith("--") else [word] for word in argv)
    words = [part.replace("_", "-") if part.startswith("--") else part for found in parts for part in found]
    if "" in words:
        option = next((word for word in reversed(words[: words.index("")]) if word.startswith("--")), "")
        raise UsageError(f"{option} '' is empty (an unset shell variable?): give a value, or leave it away".strip())
    return words


def _required(leaf: Field[Any]) -> bool:
    return leaf.default is MISSING and leaf.default_factory is MISSING


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


leaves = _leaves
"""Fields of a record with those of its groups, for who lists options."""
