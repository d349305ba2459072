"""The way to YARN: a client of its ResourceManager."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import skein

from dtl.config.errors import UserError

_ANSWER_S = 25.0
"""A ResourceManager that has not answered by then is taken to be down."""

LOOK_EVERY_S = 0.3
_END_S = 30.0

_LOGS_S = 60.0
"""How long YARN may take to gather the logs of an application that has ended."""

_ACTIVE = ("NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED", "RUNNING")


def check_client() -> str:
    """Refuse a machine whose Hadoop client is incomplete; return its configuration's folder.

    Raises
    ------
    FileNotFoundError
        Naming the part that is missing.
    """
    folder = os.environ.get("HADOOP_CONF_DIR", "")
    if not folder or not Path(folder, "yarn-site.xml").is_file():
        state = f"{folder} has no yarn-site.xml" if folder else "it is not set"
        raise FileNotFoundError(
            f"HADOOP_CONF_DIR must name the folder of the Hadoop client's configuration; {state}. "
            "For example: export HADOOP_CONF_DIR=/etc/hadoop/conf"
        )
    java_home = os.environ.get("JAVA_HOME")
    if shutil.which(f"{java_home}/bin/java" if java_home else "java") is None:
        raise FileNotFoundError(
            "No Java found, which a client of YARN needs. Install Java 8, 11 or 17, and set "
            f"JAVA_HOME (now: {java_home or 'not set'}) or PATH."
        )
    if shutil.which("yarn") is None:
        raise FileNotFoundError(
            "No `yarn` command on PATH, which finds Hadoop's jars. Put the Hadoop client's bin "
            "folder on PATH."
        )
    return folder


_QUICK_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Options of the client's JVM: it lives for seconds, and compiles half of them otherwise."""


class _Client(skein.Client):  # type: ignore[misc]
    """Skein's client, whose own `__del__` fails when its JVM did not start."""

    __slots__ = ()

    def __del__(self) -> None:
        if hasattr(self, "_proc"):
            super().__del__()


@contextmanager
def connect_to_yarn() -> Iterator[skein.Client]:
    """Start skein's client of YARN: a JVM beside this process, which ends with the block.

    Raises
    ------
    FileNotFoundError
        If the Hadoop client is not complete on this machine.
    ConnectionError
        If the ResourceManager does not answer.
    """
    conf_dir = check_client()
    with tempfile.TemporaryDirectory(prefix="dtl-yarn-") as folder:
        output = Path(folder, "skein.log")
        try:
            # A certificate of this command alone, instead of one for all in ~/.skein.
            credentials = skein.Security.new_credentials()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # skein leaves its log open
                client = _Client(
                    security=credentials, log=str(output), log_level="WARN",
                    java_options=os.environ.get("SKEIN_DRIVER_JAVA_OPTIONS", _QUICK_START),
                )  # fmt: skip
        except (skein.SkeinError, OSError, subprocess.CalledProcessError) as error:
            raise ConnectionError(
                f"YARN's client did not start: {error}.\n{last_lines(output.read_text())}"
            ) from error
        try:
            _check_answer(client, conf_dir)
            yield client
        except skein.SkeinError as error:
            raise ConnectionError(f"YARN: {first_line(error)}") from error
        finally:
            client.close()


def _check_answer(client: skein.Client, conf_dir: str) -> None:
    # Hadoop's client itself would wait for a quarter of an hour.
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            answer.set_result(client.get_nodes(states=["RUNNING"]))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="dtl-yarn", daemon=True).start()
    try:
        answer.result(_ANSWER_S)
    except TimeoutError:
        raise ConnectionError(
            f"YARN's ResourceManager does not answer within {_ANSWER_S:.0f} s. Is it running, and "
            f"is its address in {conf_dir}/yarn-site.xml right?"
        ) from None


def submit_application(manager: skein.Client, spec: skein.ApplicationSpec) -> str:
    """Hand an application to YARN; return its id."""
    try:
        return str(manager.submit(spec))
    except (skein.SkeinError, ValueError) as error:
        raise ConnectionError(f"YARN refused the application: {without_trace(error)}") from error


def get_report(manager: skein.Client, app_id: str) -> Any:
    """Return YARN's report of an application; a UserError says that it knows none of this id."""
    try:
        return manager.application_report(app_id)
    except (KeyError, ValueError, skein.SkeinError) as error:
        raise UserError(
            f"YARN knows no application {app_id!r}. `submit` prints ids; `yarn application -list "
            "-appStates ALL` lists them."
        ) from error


def has_ended(report: Any) -> bool:
    """Return whether the application of a report has ended."""
    return str(report.state) not in _ACTIVE


def wait_for_end(manager: skein.Client, app_id: str) -> None:
    """Wait until an application has ended, but not longer than 30 s."""
    until = time.monotonic() + _END_S
    while not has_ended(manager.application_report(app_id)) and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)


def read_logs(app_id: str, pattern: str, *, wait: bool) -> subprocess.CompletedProcess[str]:
    """Read log files of an application's containers, whose names match a regular expression.

    ``yarn logs`` finds them, and fails until YARN has gathered them: `wait` for that up to 60 s.
    """
    command = ["yarn", "logs", "-applicationId", app_id, "-log_files_pattern", pattern]
    until = time.monotonic() + (_LOGS_S if wait else 0)
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 or time.monotonic() >= until:
            return done
        time.sleep(LOOK_EVERY_S)


def first_line(text: object) -> str:
    """Return the first line of a message."""
    return (str(text).strip().splitlines() or ["no reason given"])[0]


def last_lines(text: str, n_lines: int = 8) -> str:
    """Return the end of a log."""
    return "\n".join(text.strip().splitlines()[-n_lines:])


def without_trace(text: object) -> str:
    """Return Java's words in one line, without the stack trace."""
    return " ".join(line for line in str(text).splitlines() if not line.startswith("\tat "))
