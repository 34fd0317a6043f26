"""A real SLURM on this machine for tests: a controller and two nodes of one core each, under their own munge and ports.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge; where they are missing the tests skip.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clusters.waiting import wait_for

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
PARTITIONS = """\
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,builtin_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldPort={ports[0]}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
"""


def missing() -> str | None:
    """Return why there is no SLURM to be had here; None: there is."""
    if os.geteuid() != 0:
        return "only root can start slurmd"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {' '.join(absent)}" if absent else None


@dataclass(frozen=True)
class Slurm:
    """A cluster that is up."""

    folder: Path

    def ask(self, *words: str | Path) -> str:
        """Run one of SLURM's commands; return what it prints."""
        return subprocess.run([*map(str, words)], check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        told = self.ask("scontrol", "--oneliner", "show", "job", job)
        return told.partition("JobState=")[2].split()[0]

    def exit_code(self, job: str) -> str:
        """Return status and signal of a job's script."""
        return self.ask("scontrol", "--oneliner", "show", "job", job).partition(" ExitCode=")[2].split()[0]

    def wait(self, job: str, *states: str, log: Path | None = None) -> None:
        """Wait until a job is in one of the states."""

        def there() -> bool:
            return self.state(job) in states

        wait_for(there, lambda: f"{self.state(job)}: {log.read_text() if log and log.exists() else ''}")


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """Start everything, with SLURM_CONF set inside the block; end it, jobs first."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, ports=free_ports(3)) + PARTITIONS)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    with ExitStack() as stack:
        stack.callback(_restore, before)
        stack.enter_context(_running(folder, "munged", "--foreground", "--force", *_munge_files(folder)))
        wait_for((folder / "munge.socket").exists)
        stack.enter_context(_running(folder, "slurmctld", "-D", "-f", config))
        for node in ("n1", "n2"):
            stack.enter_context(_running(folder, "slurmd", "-D", "-f", config, "-N", node))
        cluster = Slurm(folder)
        wait_for(lambda: _idle() == 2, (folder / "slurmctld.log").read_text)
        yield cluster
        cluster.ask("scancel", "--user", "root")
        wait_for(lambda: cluster.ask("squeue", "--noheader") == "")


def _restore(before: str | None) -> None:
    os.environ.pop("SLURM_CONF")
    if before is not None:
        os.environ["SLURM_CONF"] = before


def _munge_files(folder: Path) -> list[str]:
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return [f"--{option}={folder}/munge.{name}" for option, name in names.items()]


def _idle() -> int:
    done = subprocess.run(["sinfo", "-h", "-N", "-p", "low", "-o", "%T"], check=False, capture_output=True, text=True)
    return done.stdout.split().count("idle")


@contextmanager
def _running(folder: Path, *words: str | Path) -> Iterator[None]:
    """Run a daemon inside the block."""
    with (folder / f"{words[0]}.out").open("ab") as log:
        process = subprocess.Popen([*map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)
