"""Several processes of a command on this host, started and watched by torch's elastic agent."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from mst.errors import RunFailure

GRACE = 300
"""Seconds that processes may take to save after a signal."""
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2,SIGXCPU"


def run_here(words: Sequence[str], processes: int) -> int:
    """Run `mst` with these words in several processes; return the exit status of the first that failed, or 0.

    Raises:
        RunFailure: a process was killed; names rank, host and signal.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    settings: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": processes,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
        "local_addr": "127.0.0.1",
        "signals_to_handle": SIGNALS,
        "shutdown_timeout": GRACE,
    }
    known = inspect.signature(LaunchConfig).parameters
    config = LaunchConfig(**{name: value for name, value in settings.items() if name in known})
    try:
        elastic_launch(config, sys.executable)("-m", "mst", *words)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode  # it has said why
        raise RunFailure(
            f"rank {rank} on {socket.gethostname()} was ended by {signal.Signals(-failure.exitcode).name}"
        ) from failed
    except SignalException as signalled:
        return 128 + signalled.sigval
    return 0
