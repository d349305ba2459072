#!/usr/bin/env python3
"""A real Hadoop on one machine: HDFS and YARN daemons on loopback, from Maven Central's jars.

``start``, ``status``, ``kill``, ``restart`` and ``stop`` work on a folder; ``run -- COMMAND``
starts, runs the command with the cluster in its environment, and stops. In Python,
:class:`MiniCluster` is a context manager. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from localhadoop.cluster import MiniCluster
from localhadoop.machine import UnavailableError, fetch_hadoop, find_java, say

__all__ = ["MiniCluster", "UnavailableError", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "fetch":
            print(fetch_hadoop(find_java()[0]))
        elif args.command == "run":
            return _run(args)
        elif args.command == "start":
            _report(_new_cluster(args).start(detach=True))
        else:
            cluster = MiniCluster.attach(args.dir)
            if args.command == "stop":
                cluster.stop(keep=args.keep)
            elif args.command == "kill":
                cluster.kill(args.daemon)
            elif args.command == "restart":
                cluster.restart(args.daemon)
            else:
                _report(cluster)
    except (RuntimeError, ValueError) as error:
        say(str(error))
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    start = commands.add_parser("start", help="start the daemons and leave them running")
    run = commands.add_parser("run", help="start, run a command in it, stop")
    for command in (start, run):
        add = command.add_argument
        add("--no-yarn", action="store_true", help="HDFS only")
        add("--replication", type=int, default=2, metavar="N", help="copies of a block (2)")
        add("--heap-mb", type=int, default=256, metavar="N", help="of each daemon (256)")
        add("--yarn-memory-mb", type=int, default=8192, metavar="N", help="for containers (8192)")
        add("--yarn-vcores", type=int, default=4, metavar="N", help="for containers (4)")
        add(
            "--no-memory-check",
            action="store_true",
            help="let containers use more memory than granted",
        )
        ports = "such as namenode=8020, namenode-http=9870 or resourcemanager-http=8088"
        add("--port", type=_port, action="append", default=[], metavar="NAME=PORT", help=ports)
    stop = commands.add_parser("stop", help="stop the daemons and remove their files")
    stop.add_argument("--keep", action="store_true", help="leave the files for a later start")
    status = commands.add_parser("status", help="say what runs and where")
    kill = commands.add_parser("kill", help="kill -9 a daemon, to see what happens")
    restart = commands.add_parser("restart", help="kill -9 a daemon, if it runs, and start it")
    commands.add_parser("fetch", help="only download Hadoop")

    for command in (start, stop, status, kill, restart):
        folder = "the cluster's folder (build/hadoop)"
        command.add_argument("--dir", default="build/hadoop", metavar="DIR", help=folder)
    run.add_argument("--dir", metavar="DIR", help="the cluster's folder (a temporary one)")
    run.add_argument("argv", nargs="+", metavar="-- COMMAND")
    for command in (kill, restart):
        command.add_argument("daemon", help="such as namenode, datanode-0 or nodemanager")
    return parser


def _port(text: str) -> tuple[str, int]:
    name, _, port = text.partition("=")
    if not port.isdigit():
        raise argparse.ArgumentTypeError(f"expected NAME=PORT, received {text!r}")
    return name, int(port)


def _new_cluster(args: argparse.Namespace) -> MiniCluster:
    return MiniCluster(
        args.dir,
        yarn=not args.no_yarn,
        replication=args.replication,
        heap_mb=args.heap_mb,
        yarn_memory_mb=args.yarn_memory_mb,
        yarn_vcores=args.yarn_vcores,
        check_memory=not args.no_memory_check,
        ports=dict(args.port),
    )


def _report(cluster: MiniCluster) -> None:
    pids = cluster.pids
    for name in cluster.daemons:
        print(f"{name:<16} {f'pid {pids[name]}' if name in pids else 'does not run'}")
    print(f"{'hdfs':<16} {cluster.url}")
    print(f"{'webhdfs':<16} {cluster.webhdfs_url}")
    print(f"{'hdfs page':<16} {cluster.namenode_url}")
    if "resourcemanager" in pids:
        print(f"{'yarn page':<16} {cluster.resourcemanager_url}")
    print(f"{'use it with':<16} . {shlex.quote(str(cluster.home / 'env.sh'))}")


def _run(args: argparse.Namespace) -> int:
    # SIGTERM must stop the cluster too: let it end this process as an exception.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with _new_cluster(args) as cluster:
        try:
            command = subprocess.Popen(args.argv, env={**os.environ, **cluster.environment})
        except OSError as error:
            say(f"cannot run {args.argv[0]}: {error.strerror}")
            return 127
        try:
            while True:
                try:
                    status = command.wait()
                except KeyboardInterrupt:
                    continue  # the command got it too, and decides
                return status if status >= 0 else 128 - status
        finally:
            if command.poll() is None:
                command.terminate()
                command.wait()


if __name__ == "__main__":
    sys.exit(main())
