"""Requirements of the machine: a Java that Hadoop runs on, Hadoop's jars, and free ports."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

HOST = "127.0.0.1"
JAVA_VERSIONS = (8, 11, 17)
POM = Path(__file__).resolve().parent.parent / "pom.xml"


class UnavailableError(RuntimeError):
    """Java, or Maven to fetch the jars with, is not on this machine."""


def java_version(home: Path) -> int | None:
    """Major version of the Java whose ``bin/java`` is in `home`, or None if it does not run."""
    try:
        done = subprocess.run(
            [home / "bin" / "java", "-version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(found[1]) if found else None


def find_java() -> tuple[Path, int]:
    """Find a Java that Hadoop 3.4 runs on.

    ``JAVA_HOME`` is looked at first, then ``java`` on ``PATH``, then ``/usr/lib/jvm``.

    Returns
    -------
    home : Path
    version : int
        One of `JAVA_VERSIONS`.

    Raises
    ------
    UnavailableError
        If there is none; the message lists what was found.
    """
    homes = []
    if os.environ.get("JAVA_HOME"):
        homes.append(Path(os.environ["JAVA_HOME"]))
    if on_path := shutil.which("java"):
        homes.append(Path(on_path).resolve().parent.parent)
    homes.extend(sorted(Path("/usr/lib/jvm").glob("*")))
    seen = {}
    for home in homes:
        version = java_version(home)
        if version in JAVA_VERSIONS:
            return home, version
        if version is not None:
            seen[str(home.resolve())] = version
    found = ", ".join(f"Java {version} in {home}" for home, version in seen.items()) or "no java"
    raise UnavailableError(
        f"Hadoop needs Java 8, 11 or 17. Found: {found}. "
        "Install one (Debian, Ubuntu: apt install openjdk-17-jre-headless) or set JAVA_HOME to it."
    )


def hadoop_folder() -> Path:
    """Where Hadoop lies, or will: a cache folder named after ``pom.xml``'s content.

    The cache is ``$DTL_HADOOP_CACHE``, else ``$XDG_CACHE_HOME/dtl``, else ``~/.cache/dtl``.
    """
    pom = POM.read_text()
    version = pom.partition("<hadoop.version>")[2].partition("<")[0]
    digest = hashlib.sha256(pom.encode()).hexdigest()[:12]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = os.environ.get("DTL_HADOOP_CACHE") or os.path.join(base, "dtl")
    return Path(cache).absolute() / f"hadoop-{version}-{digest}"


def fetch_hadoop(java_home: Path) -> Path:
    """Have Maven copy Hadoop's jars and web pages into the cache, unless they are there.

    Parameters
    ----------
    java_home : Path
        The Java that Maven runs on.

    Returns
    -------
    Path
        A folder with ``jars/`` and ``web/``.

    Raises
    ------
    UnavailableError
        If the jars are not in the cache and there is no Maven.
    RuntimeError
        If Maven fails, with the end of what it said.
    """
    folder = hadoop_folder()
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise UnavailableError(
            f"Hadoop is not in {folder} and there is no mvn on PATH to fetch it. Install Maven "
            "(Debian, Ubuntu: apt install maven), or copy that folder from a machine that has it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "hadoop.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        # Renamed when whole: a download that was cut off is never taken for Hadoop.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".hadoop-") as partial:
            say(f"fetching {folder.name} from Maven Central, once (about 90 MB)")
            target = Path(partial) / "hadoop"
            command = [maven, "--batch-mode", "--quiet", "--file", str(POM), "generate-resources"]
            done = subprocess.run(
                [*command, f"-Dtarget={target}"],
                env={**os.environ, "JAVA_HOME": str(java_home)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(
                    f"Maven could not fetch Hadoop (status {done.returncode}). Is "
                    "repo.maven.apache.org, or a mirror named in ~/.m2/settings.xml, reachable? "
                    f"The end of what it said:\n{tail(done.stdout)}"
                )
            target.rename(folder)
    return folder


def choose_ports(names: Iterable[str], wanted: Mapping[str, int]) -> dict[str, int]:
    """Choose a free TCP port of the loopback for each name.

    Parameters
    ----------
    names : iterable of str
    wanted : mapping of str to int
        Ports that must be taken as they are.

    Returns
    -------
    dict of str to int

    Raises
    ------
    ValueError
        If `wanted` holds a name that is not in `names`, or a port that is busy.
    """
    names = list(names)
    if unknown := sorted(set(wanted) - set(names)):
        raise ValueError(f"Ports are named {', '.join(names)}. Received: {', '.join(unknown)}.")
    # Below what the kernel gives to outgoing connections: while a killed daemon is away, one of
    # those could sit down on its port, even a client's own attempt to reach it.
    highest = 32768
    with contextlib.suppress(OSError):
        highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    pool = list(range(15000, max(highest, 20000)))
    random.shuffle(pool)
    chosen = dict(wanted)
    with contextlib.ExitStack() as held:
        for name, port in wanted.items():
            if not _hold(port, held):
                raise ValueError(
                    f"Port {port}, wanted for {name}, is busy. Give another, or leave it out to "
                    "have a free one chosen."
                )
        free = (port for port in pool if _hold(port, held))
        for name in names:
            if name not in chosen:
                chosen[name] = next(free)
    return chosen


def _hold(port: int, held: contextlib.ExitStack) -> bool:
    listener = socket.socket()
    # As Java's servers do: a port whose old connections are still timing out is free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(1)
    except OSError:
        listener.close()
        return False
    held.enter_context(listener)
    return True


def tail(text: str, n_lines: int = 20) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-n_lines:])


def say(message: str) -> None:
    """Tell the person at the terminal; standard output is for results."""
    print(f"minicluster: {message}", file=sys.stderr, flush=True)
