"""The processes of a run find each other in a store, and agree that they are of one attempt.

torchrun keeps its store from one attempt to the next, with all that killed processes wrote there (addresses that nobody
listens on any more; seen with torch 2.14), and counts only restarts, not changes of membership. So every attempt gets
a name that nobody has used, and all talk in a part of the store of that name.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import Store

from mst.errors import RunFailure

GLANCE = 0.05
"""Seconds between two looks at who has come."""
MOST_NAMED = 8
"""Ranks that an error lists."""


def meet(store: Store, rank: int, size: int, *, seconds: float) -> str:
    """Return the prefix of keys that only the processes of this attempt use, once all have come.

    Each process but the first leaves a new word; the first one answers every word it finds, those of the dead as well,
    until all have taken up the attempt's name. Earlier processes must have ended, as torchrun sees to.

    Args:
        store: what all can reach.
        rank: of this process.
        size: processes.
        seconds: that they wait for each other.

    Raises:
        RunFailure: some have not come; names them.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        _welcome_all(store, own, size, seconds)
        store.set(f"mst/{own}/complete", "")
        return f"mst/{own}"
    store.set(f"mst/hello/{rank}", own)
    try:
        store.wait([f"mst/welcome/{own}"], timedelta(seconds=seconds))
        attempt = store.get(f"mst/welcome/{own}").decode()
        store.set(f"mst/{attempt}/here/{rank}", "")
        store.wait([f"mst/{attempt}/complete"], timedelta(seconds=seconds))
    except DistStoreError as error:
        raise RunFailure(f"rank {rank} of {size} has waited {seconds:.0f} seconds for the others in vain") from error
    return f"mst/{attempt}"


def _welcome_all(store: Store, attempt: str, size: int, seconds: float) -> None:
    """Tell every other rank the name of the attempt until it has taken it up."""
    missing, told = list(range(1, size)), dict[int, bytes]()
    end = time.monotonic() + seconds
    while missing:
        missing = [rank for rank in missing if not store.check([f"mst/{attempt}/here/{rank}"])]
        for rank in missing:
            if store.check([f"mst/hello/{rank}"]) and (word := store.get(f"mst/hello/{rank}")) != told.get(rank):
                store.set(f"mst/welcome/{word.decode()}", attempt)
                told[rank] = word
        if missing and time.monotonic() > end:
            named = ", ".join(map(str, missing[:MOST_NAMED])) + (", ..." if len(missing) > MOST_NAMED else "")
            raise RunFailure(f"rank {named} of {size} has not come within {seconds:.0f} seconds")
        time.sleep(GLANCE if missing else 0)
