"""How the processes of a run start: by torchrun, by srun, or here on one host; and how they find each other."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mst.errors import RunFailure, UsageError
from mst.runtime.storage.files import left_to_another

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
"""What srun gives each task of a step; a batch script has the numbers of its job, but no step."""
FEW, A_CORE = 8, 2
"""Processes that any machine can be asked for, and more of them where there are more cores."""
MINUTES = 60.0
"""That a process waits for another: the first one evaluates and saves meanwhile. A dead one is noticed at once."""
MEETING = 600.0
"""Seconds that processes wait for each other at the start."""
PORTS = range(15000, 31000)
"""Ports that a SLURM job may meet on, by its number; below those that systems give to clients."""


@dataclass(frozen=True)
class Launch:
    """One process among those that were started together.

    Attributes:
        rank, size: of it, and of all.
        local_rank, local_size: on its host.
        address, port: where the first one waits for the others.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def from_environment(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return what torchrun or srun says; None for a process alone.

    Raises:
        UsageError: torchrun's variables are set in part, or are no numbers.
    """
    ours = [name for name in TORCHRUN[:3] if name in environment]
    if ours:
        missing = [name for name in TORCHRUN if name not in environment]
        if missing:
            raise UsageError(
                f"{', '.join(ours)} set but not {', '.join(missing)}: start with torchrun, or unset them (env -u)"
            )
        size = _number(environment, "WORLD_SIZE")
        return Launch(
            rank=_number(environment, "RANK", below=size),
            size=size,
            local_rank=_number(environment, "LOCAL_RANK"),
            local_size=_number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else 1,
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT", below=65536),
        )
    if any(name not in environment for name in SRUN) or _number(environment, "SLURM_STEP_NUM_TASKS") == 1:
        return None
    job = _number(environment, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environment else 0
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    return Launch(
        rank=_number(environment, "SLURM_PROCID", below=size),
        size=size,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_size=_tasks_here(environment, size),
        address=environment.get("MASTER_ADDR") or _first_host(environment),
        port=int(environment.get("MASTER_PORT") or PORTS[job % len(PORTS)]),
    )


def _number(environment: Mapping[str, str], name: str, *, below: int = 2**31) -> int:
    text = environment[name]
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or int(text) >= below:
        raise UsageError(f"{name} is {text!r}: it should be a number below {below}, as torchrun and srun set it")
    return int(text)


def _tasks_here(environment: Mapping[str, str], size: int) -> int:
    """Return how many tasks of the step run on this host: "2(x3),1" is 2, 2, 2, 1."""
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
        for _ in range(int(times or 1))
    ]
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else size


def _first_host(environment: Mapping[str, str]) -> str:
    """Return the address of the step's first host: "gpu[07-09,12]" begins with gpu07."""
    listed = environment.get("SLURM_STEP_NODELIST", "")
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", listed)
    name = f"{match[1]}{match[2] or ''}" if match else ""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        if address := environment.get("SLURM_LAUNCH_NODE_IPADDR"):
            return address
        raise UsageError(
            f"the step's first host {name or '(SLURM_STEP_NODELIST is not set)'} has no address here: "
            "export MASTER_ADDR=its address"
        ) from error
    return name


@contextmanager
def joined(launch: Launch, *, minutes: float = MINUTES) -> Iterator[None]:
    """Inside, this process is one of those that were started with it; at a good end, it waits for them.

    Args:
        launch: which.
        minutes: that a process waits for another in a sum or an agreement.

    Raises:
        RunFailure: the address cannot be used, or the others do not come.
    """
    from datetime import timedelta

    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore, Store
    from torch.distributed.rendezvous import rendezvous

    from mst.parallel.heartbeat import Heartbeat
    from mst.parallel.meeting import meet
    from mst.parallel.world import World, enter, leave

    limit, rank, size = timedelta(minutes=minutes), launch.rank, launch.size
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    os.environ |= {"MASTER_ADDR": launch.address, "MASTER_PORT": str(launch.port)}

    def found() -> Store:
        """Return a connection to where all meet; the first process holds it, unless torchrun does."""
        store: Store = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=MEETING)))[0]
        return store

    try:
        store = found()
        attempt = meet(store, rank, size, seconds=MEETING)
        dist.init_process_group(backend, store=PrefixStore(attempt, store), rank=rank, world_size=size, timeout=limit)
        world = World(rank, size, launch.local_rank, launch.local_size, dist.new_group(backend="gloo", timeout=limit))
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailure(_unmet(launch, error)) from error
    names = world.collect(world.name)
    beat = Heartbeat(lambda: PrefixStore(attempt, found()), names, rank)
    enter(world)
    try:
        with left_to_another(launch.rank != 0):
            yield
    finally:
        leave()
        beat.close()
    dist.destroy_process_group()
    world.control = None  # the last reference: the group's threads end now, not while Python ends


def _unmet(launch: Launch, error: BaseException) -> str:
    """Say why the processes did not meet."""
    where = f"{launch.address}:{launch.port}"
    text = " ".join(str(error).split())
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return f"port {launch.port} on {launch.address} is in use: export MASTER_PORT=another, or end who holds it"
    return f"rank {launch.rank} of {launch.size} did not meet the others at {where}: {text[:300]}"


def wanted_here(asked: int | str, *, flag: str = "--runtime.processes") -> int:
    """Return how many processes this one should start: none but itself where it has been started with others.

    Args:
        asked: a number; or auto: one a GPU, and one without GPUs, whose threads share out the cores.
        flag: the option, for the message.

    Raises:
        UsageError: more than this machine has use for, or fewer than one.
    """
    if asked == 1 or from_environment() is not None:
        return 1
    import torch

    cards, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if asked == "auto":
        return max(1, cards)
    most = max(FEW, A_CORE * cores, cards)
    if not 1 <= int(asked) <= most:
        raise UsageError(
            f"{flag} {asked}: this machine has {cores} cores and {cards} GPUs: use a number from 1 to {most}, or auto"
        )
    return int(asked)
