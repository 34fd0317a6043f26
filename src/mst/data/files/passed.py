"""What a search for images met and did not take: how much of each kind, why, and the first names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mst.data.files.kinds import BESIDE
from mst.errors import DataError
from mst.runtime import logging
from mst.runtime.names import shown

Kind = Literal[
    "folder", "link", "circle", "path", "special", "file", "missing", "loose", "bare", "other", "hidden", "system"
]
WORDS: dict[Kind, tuple[str, str]] = {
    "folder": ("folder that cannot be searched", "folders that cannot be searched"),
    "link": ("link that leads nowhere", "links that lead nowhere"),
    "circle": ("link to a folder that it lies in", "links to folders that they lie in"),
    "path": ("path that is too long", "paths that are too long"),
    "special": ("name of an image that is no file", "names of images that are no files"),
    "file": ("file that cannot be read", "files that cannot be read"),
    "missing": ("listed file that does not exist", "listed files that do not exist"),
    "loose": ("image beside the class folders", "images beside the class folders"),
    "bare": ("sample without an image", "samples without an image"),
    "other": ("file without a known extension", "files without a known extension"),
    "hidden": ("hidden name", "hidden names"),
    "system": ("file or folder of the system", "files or folders of the system"),
}
TROUBLES: frozenset[Kind] = frozenset(
    {"folder", "link", "circle", "path", "special", "file", "missing", "loose", "bare"}
)
"""What a person should know of; with `strict` none is accepted."""
FIRST = 3
"""Names of a kind that are kept."""
KINDS_SHOWN = 5
LONGEST_SHOWN = 200
"""Characters of a name in a message; of a longer one its beginning and its end."""


@dataclass(frozen=True)
class Passed:
    """What was passed over of one kind and for one reason.

    Attributes:
        kind: what it is, a key of `WORDS`.
        reason: why; of files with another extension, the extension in lower case, empty for none.
        count: how many.
        names: the first paths, by name, in the file system's encoding.
    """

    kind: Kind
    reason: str
    count: int
    names: tuple[bytes, ...]

    def joined(self, other: Passed) -> Passed:
        """Count another entry of the same kind and reason too."""
        return Passed(self.kind, self.reason, self.count + other.count, (self.names + other.names)[:FIRST])

    def __str__(self) -> str:
        word = WORDS[self.kind][self.count != 1]
        reason = f" ({self.reason})" if self.reason else ""
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.count} {word}{reason}: {', '.join(map(short, self.names))}{more}"


@dataclass(frozen=True)
class PassedOver:
    """Everything that a search passed over, one entry for each kind and reason.

    Attributes:
        entries: in the order in which they were met.
    """

    entries: tuple[Passed, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[Passed]) -> PassedOver:
        """Count entries of the same kind and reason together."""
        found: dict[tuple[Kind, str], Passed] = {}
        for entry in entries:
            key = entry.kind, entry.reason
            before = found.get(key)
            found[key] = entry if before is None else before.joined(entry)
        return cls(tuple(found.values()))

    @property
    def troubles(self) -> tuple[Passed, ...]:
        """What might have been images."""
        return tuple(entry for entry in self.entries if entry.kind in TROUBLES)

    def count(self, kind: Kind) -> int:
        """Return how much of a kind was passed over."""
        return sum(entry.count for entry in self.entries if entry.kind == kind)

    def others(self, *, beside: bool = True) -> str:
        """Return in words the files with other extensions: "312 files ... (200 .heic, 112 without one), e.g. x".

        Args:
            beside: count what usually lies beside images as well.
        """
        found = [entry for entry in self.entries if entry.kind == "other" and (beside or entry.reason not in BESIDE)]
        if not found:
            return ""
        found.sort(key=lambda entry: -entry.count)
        kinds = [f"{entry.count} {f'.{shown(entry.reason)}' if entry.reason else 'without one'}" for entry in found]
        more = f", and {len(kinds) - KINDS_SHOWN} other kinds" if len(kinds) > KINDS_SHOWN else ""
        count = sum(entry.count for entry in found)
        word = WORDS["other"][count != 1]
        return f"{count} {word} ({', '.join(kinds[:KINDS_SHOWN])}{more}), e.g. {short(found[0].names[0])}"

    def tell(self) -> None:
        """Say once what was passed over: trouble in a warning, other files in a remark."""
        if self.troubles:
            logging.warn(f"passed over: {'; '.join(map(str, self.troubles))}")
        if others := self.others(beside=False):
            logging.info(
                f"passed over: {others}; those that hold images are taken with --data.by-content"
                " (of inspect: --by-content)"
            )

    def check(self) -> None:
        """Accept no trouble.

        Raises:
            DataError: there is some.
        """
        if self.troubles:
            raise DataError(
                f"{'; '.join(map(str, self.troubles))}: mend or remove them; without strict (--strict,"
                " --data.strict) they are passed over"
            )

    def rows(self) -> list[dict[str, Any]]:
        """Return the entries as JSON types."""
        return [{**asdict(entry), "names": [shown(name) for name in entry.names]} for entry in self.entries]


NOTHING = PassedOver()


def short(name: bytes) -> str:
    """Return a name that can be printed; of a very long one the two ends."""
    text, half = shown(name), LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]}...{text[-half:]}"
