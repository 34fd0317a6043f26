"""What this process works on of each batch that the processes of a run share."""

from __future__ import annotations

from mst.data.sampler import Share
from mst.parallel.world import World


def own_share(lanes: int = 0) -> Share:
    """Return this process's share; `lanes` as in `mst.data.sampler.Share`."""
    world = World.current()
    return Share(world.rank, world.size, lanes)
