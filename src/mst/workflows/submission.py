"""A training as a job of SLURM: the batch script, and handing it to sbatch.

The script is plain: sbatch's own options, one `srun`, and a requeue where the run was stopped by a signal. It keeps no
state of its own: the run folder says where to go on, so a job that is requeued, submitted again or started by hand on
other machines does the same. (submitit was looked at: it requeues from a handler in rank 0's Python while the other
ranks train on, ignores SIGTERM, and carries the work as a pickle.)
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mst.config.keys import flag
from mst.errors import UsageError
from mst.runtime import logging
from mst.runtime.limits import check_numbers
from mst.runtime.storage.files import check_folder, write_atomic

TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<d_hours>\d+)(?::(?P<d_minutes>\d+)(?::(?P<d_seconds>\d+))?)?"
    r"|(?:(?P<hours>\d+):(?=\d+:))?(?P<minutes>\d+)(?::(?P<seconds>\d+))?)",
    re.ASCII,
)
"""SLURM's ways to write a time: M, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS."""
SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
RESOLUTION = 60
"""Seconds that SLURM's signal may come early, and to which it rounds a time limit."""
LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "vfat", "xfs", "zfs"}
"""File systems that other machines do not see, unless this one serves them."""
SUBMITTING = 120
"""Seconds that sbatch may take; it gives up by itself before, where the controller is down."""

SCRIPT = """\
#!/bin/bash
# {title}
{header}

cd {cwd} || exit
checkpoints() {{ ls {checkpoints} 2>/dev/null; }}
before=$(checkpoints)
srun --kill-on-bad-exit=1{srun} \\
  {command}
status=$?

# USR1, USR2 or TERM stopped it, and it has saved; or a process was killed or lost (75), but it came on: it goes on when
# there is room again. Not so after an error, Ctrl-C or scancel.
case $status in
  138|140|143) again=yes ;;
  75|129|13[1-9]|14[0-9]|15[0-9]) [ "$(checkpoints)" = "$before" ] && again=no || again=yes ;;
  *) again=no ;;
esac
if [ $again = yes ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  echo "mst: stopped with status $status: job $SLURM_JOB_ID goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of SLURM; none = as the cluster has it.

    Attributes:
        nodes: machines.
        processes_per_node: processes on each; with GPUs, as many as these.
        gpus_per_node: GPUs on each machine, as sbatch takes them: 4, or a100:4.
        cpus_per_process: cores of each process, for the loader's workers.
        mem: memory of each machine, as sbatch takes it: 64G.
        time: limit of one sitting, as sbatch takes it: 90 (minutes), 8:00:00, 2-12. A run that takes longer goes on in
            the next.
        partition: where to run.
        account: what it is charged to.
        qos: quality of service.
        constraint: features that the machines must have.
        job_name: in squeue; none = the name of the run folder.
        grace: seconds before the limit at which the run is told to save and to stop.
        dry_run: print the script; nothing is written or submitted.
        json: one JSON object on stdout: job, script and log.
    """

    nodes: int = 1
    processes_per_node: int = 1
    gpus_per_node: str | None = None
    cpus_per_process: int | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    job_name: str | None = None
    grace: int = 90
    dry_run: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "nodes", "processes_per_node", "cpus_per_process", least=1)
        check_numbers(self, "grace", least=1, most=65535 - RESOLUTION)
        for name in ("gpus_per_node", "mem", "time", "partition", "account", "qos", "constraint", "job_name"):
            value = getattr(self, name)
            if value is not None and not value.isprintable():
                raise UsageError(f"{flag(name)} {value!r}: must be one line of printable characters")
        least = self.grace + 2 * RESOLUTION
        if self.time is not None and (limit := seconds_of(self.time)) is not None and limit < least:
            raise UsageError(
                f"--time {self.time} is {limit} seconds, and the run is told to stop up to {self.grace + RESOLUTION} "
                f"seconds before its end (--grace {self.grace}): allow at least {-(-least // 60)} minutes"
            )


def seconds_of(time: str) -> int | None:
    """Return a time limit in seconds; None: there is none (`unlimited`, or 0).

    Raises:
        UsageError: not as SLURM writes a time.
    """
    if time.lower() in {"unlimited", "infinite"}:
        return None
    found = TIME.fullmatch(time)
    if found is None:
        raise UsageError(f"--time {time}: must be minutes, H:MM:SS, D-H or D-HH:MM:SS")
    parts = {name.removeprefix("d_"): int(value) for name, value in found.groupdict().items() if value is not None}
    return sum(SECONDS[name] * number for name, number in parts.items()) or None


@dataclass(frozen=True)
class Job:
    """A command of `mst` as a job.

    Attributes:
        words: the command after `mst`, which starts or goes on, whichever is due.
        out: the folder that its result goes to; script and log lie beside it.
        checkpoints: the folder of its checkpoints.
        options: what is asked of SLURM.
    """

    words: tuple[str, ...]
    out: Path
    checkpoints: Path
    options: SlurmOptions

    @property
    def file(self) -> Path:
        """Where the script lies."""
        return self._beside("slurm.sh")

    @property
    def log(self) -> Path:
        """What the job prints, one sitting after another."""
        return self._beside("slurm.log")

    def _beside(self, ending: str) -> Path:
        out = self.out.absolute()
        return out.with_name(f"{out.name}.{ending}")

    def script(self) -> str:
        """Return the batch script.

        Raises:
            UsageError: a name that no line of the script can hold.
        """
        o = self.options
        name = o.job_name or f"mst-{self.out.absolute().name}"
        for path in (self.log, Path.cwd(), self.checkpoints):
            if not str(path).isprintable():
                raise UsageError(f"{str(path)!r}: sbatch takes no such name: use one of printable characters")
        header = {
            "job-name": name,
            "nodes": o.nodes,
            "ntasks-per-node": o.processes_per_node,
            "gpus-per-node": o.gpus_per_node,
            "cpus-per-task": o.cpus_per_process,
            "mem": o.mem,
            "time": o.time,
            "partition": o.partition,
            "account": o.account,
            "qos": o.qos,
            "constraint": o.constraint,
            "output": str(self.log).replace("%", "%%"),
            "open-mode": "append",
            "requeue": "",
            "signal": f"USR1@{o.grace}",  # to the processes, not to the script
        }
        return SCRIPT.format(
            title=shlex.join(["mst", *self.words]).replace("\n", " "),
            header="\n".join(_directive(key, value) for key, value in header.items() if value is not None),
            cwd=shlex.quote(str(Path.cwd())),
            checkpoints=shlex.quote(str(self.checkpoints.absolute())),
            srun=f" --cpus-per-task={o.cpus_per_process}" if o.cpus_per_process else "",  # srun does not take it over
            command=shlex.join([sys.executable, "-m", "mst", *self.words]),
        )


def _directive(key: str, value: object) -> str:
    return f"#SBATCH --{key}" if value == "" else f"#SBATCH --{key}={shlex.quote(str(value))}"


def submit(job: Job) -> str:
    """Write the script and hand it to sbatch; return the job's number.

    Raises:
        UsageError: there is no sbatch, or it refuses the job.
        RunFailure: the script cannot be written.
    """
    text = job.script()
    check_folder(job.file.parent, "--out")
    job.file.parent.mkdir(parents=True, exist_ok=True)
    kind = file_system(job.out)
    if kind in LOCAL:
        logging.warn(f"{job.out} lies on a file system of this machine ({kind}): all nodes must see the same folder")
    write_atomic(job.file, os.fsencode(text))
    return _sbatch(["sbatch", "--parsable", str(job.file)])


def _sbatch(command: Sequence[str]) -> str:
    """Return the number that sbatch gives a job.

    Raises:
        UsageError: there is no sbatch, or what it said.
    """
    try:
        done = subprocess.run(command, capture_output=True, timeout=SUBMITTING, check=False)
    except FileNotFoundError as error:
        raise UsageError(
            "sbatch is not found: submit where SLURM's commands are, or take the script of --dry-run there"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"sbatch has not answered for {SUBMITTING} seconds: is SLURM up? (sinfo)") from error
    said = done.stderr.decode(errors="backslashreplace").splitlines()
    if done.returncode != 0:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in said]
        raise UsageError(f"sbatch refused the job: {'; '.join(line for line in lines if line)}")
    for line in said:
        logging.warn(line.removeprefix("sbatch: "))
    return done.stdout.decode().strip().partition(";")[0]


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that holds a path, as the system calls it; "" = not known."""
    try:
        lines = os.fsdecode(mounts.read_bytes()).splitlines()
    except OSError:
        return ""
    found, kind = Path(), ""
    for line in lines:
        _, place, name, *_ = line.split(" ")
        mount = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place))
        if path.resolve().is_relative_to(mount) and (not kind or mount.is_relative_to(found)):
            found, kind = mount, name
    return kind
