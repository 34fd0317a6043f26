"""Two hosts on this machine for tests: network namespaces with their own names and addresses, joined by one cable.

Needs root, `ip` and `unshare`; where they are missing the tests skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ADDRESSES = {"mst-a": "10.77.31.1", "mst-b": "10.77.31.2"}
"""Host name -> address, each on an `eth0` of its own."""
HOSTS_FILES = Path("/etc/netns")
"""`ip netns exec NAME` lays the files of NAME here over /etc."""


def missing() -> str | None:
    """Return why there are no hosts to be had here; None: there are."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    absent = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if absent:
        return f"not installed: {' '.join(absent)}"
    tried = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no network namespaces: {tried.stderr.strip()}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Inside, the hosts of `ADDRESSES` are there."""
    a, b = ADDRESSES
    _remove()  # what a killed test left
    try:
        for name in (a, b):
            _ip("netns", "add", name)
            lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in ADDRESSES.items())]
            (HOSTS_FILES / name).mkdir(parents=True, exist_ok=True)
            (HOSTS_FILES / name / "hosts").write_text("\n".join(lines) + "\n")
        _ip("link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns", b)
        for name, address in ADDRESSES.items():
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        _remove()


def _remove() -> None:
    for name in ADDRESSES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(HOSTS_FILES / name, ignore_errors=True)


def cut() -> None:
    """Take the cable out: packets are lost without a word."""
    _ip("-n", list(ADDRESSES)[1], "link", "set", "eth0", "down")


def on_host(name: str, *words: str | Path, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program on a host, the leader of a session of its own; all it prints goes to `log`."""
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
    with log.open("ab") as out:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, *named, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment, "GLOO_SOCKET_IFNAME": "eth0"},
            start_new_session=True,
        )
