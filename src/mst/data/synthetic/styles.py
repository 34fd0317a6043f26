"""How synthetic scenes look: what gives the class of the main object away, and how much else there is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """The habits of a kind of scenes; shares are from 0 to 1, lengths in shorter sides of the image.

    Attributes:
        name: what `--data NAME:COUNT` calls them.
        pattern: how often an object wears its class's pattern rather than any.
        tint: how often it has its class's tint.
        tint_range: turns of hue over which the tints of one class spread; classes are a tenth of a turn apart.
        tint_strength: share of its own colour that a tint replaces.
        habitat: how often the background has its class's pattern rather than any.
        air: how often the background has its class's tint.
        ground_colour: share of its colour that the background keeps; 0 = grey.
        small: most small objects of other classes in one scene.
        radius: (least, most) of the main object.
        anywhere: the main object lies anywhere in the image rather than around the middle.
    """

    name: str
    pattern: float = 0.9
    tint: float = 0.75
    tint_range: float = 0.15
    tint_strength: float = 0.6
    habitat: float = 0.6
    air: float = 0.65
    ground_colour: float = 1.0
    small: int = 2
    radius: tuple[float, float] = (0.29, 0.42)
    anywhere: bool = False


HABITATS = Style("scenes")
"""Large objects in the middle, on backgrounds that tell the class as often as they do."""
MUTED_GROUNDS = Style(
    "muted-scenes",
    tint=1.0,
    tint_range=0.0,
    tint_strength=0.8,
    habitat=0.0,
    air=0.0,
    ground_colour=0.45,
    small=1,
    radius=(0.2, 0.32),
    anywhere=True,
)
"""Smaller, brightly coloured objects anywhere, on pale backgrounds that have nothing to do with the class."""
STYLES = {style.name: style for style in (HABITATS, MUTED_GROUNDS)}
