"""A SLURM of one machine for tests: its daemons as this user's processes, all its files in one folder."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")

# One node with a GPU that is none (gres.conf names /dev/null for it).
_CONF = """\
ClusterName=geodino
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES State=UP
"""


def missing() -> list[str]:
    """The programs of SLURM that are not installed; Debian: apt-get install slurm-wlm munge."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and its like find this SLURM."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    settings = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "folder": folder}
    ports = {"controller": free_port(), "daemon": free_port()}
    sizes = {"cores": os.cpu_count(), "memory": psutil.virtual_memory().total // 2**20}
    (folder / "slurm.conf").write_text(_CONF.format(**settings, **ports, **sizes))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    environment = os.environ | {
        "SLURM_CONF": f"{folder}/slurm.conf",
        "PATH": os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"]),
    }
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with ExitStack() as stack:
        stack.enter_context(
            daemon(["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge], environment)
        )
        _until(lambda: (folder / "munge.socket").exists(), folder)
        stack.enter_context(daemon(["slurmctld", "-D"], environment))
        stack.enter_context(daemon(["slurmd", "-D"], environment))
        _until(lambda: "idle" in output(["sinfo", "-h", "-o", "%T"], environment), folder)
        yield environment


def output(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(true: Callable[[], object], folder: Path, *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log"))
        assert time.monotonic() < end, f"SLURM does not start:\n{logs}"
        time.sleep(0.1)
