"""`mst completion SHELL`: a script that completes commands, tasks, options, recipes and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from mst.errors import UsageError
from mst.terminal.completion import SCRIPTS, Known
from mst.terminal.names import COMMANDS
from mst.terminal.output import emit_text
from mst.terminal.parsing import parse_words

ADVICE = {
    "bash": 'eval "$(mst completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(mst completion zsh)"   # in ~/.zshrc, after compinit',
    "fish": "mst completion fish > ~/.config/fish/completions/mst.fish",
}


@dataclass(frozen=True)
class CompletionArguments:
    """Print a shell's script of completion; it is made for the installed version, so make it again after an update."""

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "fish", ""]], tyro.conf.arg(metavar="SHELL")] = ""
    """bash, zsh or fish."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(CompletionArguments, argv, prog="mst completion")
    if a is None:
        return 0
    if not a.shell:
        raise UsageError(f"name a shell: mst completion {'|'.join(SCRIPTS)}, such as {ADVICE['bash']}")

    emit_text(f"# {ADVICE[a.shell]}\n{SCRIPTS[a.shell](Known.of({**COMMANDS, 'help': 'options of a command'}))}")
    return 0
