"""A run on YARN without a driver here: submitted, watched, ended."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import tomli_w

from dtl import config, storage
from dtl.cluster.yarn import submission
from dtl.pipeline.messages import print_line
from dtl.pipeline.run import Run, list_hdfs_urls


def submit(run: Run, arguments: argparse.Namespace) -> int:
    """Submit `run` to YARN, and print the application's id."""
    run.options = c = replace(run.options, cluster=replace(run.options.cluster, address="yarn"))
    storage.check_writable(run.results.url)
    run.check_worker_memory()
    with tempfile.TemporaryDirectory(prefix="dtl-") as folder:
        file = Path(folder, "dtl.toml")
        # The driver opens URLs, so it needs what is secret in them; YARN hands it to this user's
        # container only. Variables are set by YARN in all containers.
        tables = config.to_dict(c)
        tables["yarn"]["env"] = config.hide_options(tables["yarn"])["env"]
        file.touch(mode=0o600)
        file.write_text(tomli_w.dumps(tables))
        argv, urls = ["run", "--config", file.name], list_hdfs_urls(c)
        app_id = submission.submit(c.cluster, c.yarn, argv, [str(file)], file_systems=urls)
    print_line(app_id)
    if not arguments.wait:
        return 0
    text, status = submission.wait(app_id)
    print_line(text)
    return status


def show_status(arguments: argparse.Namespace) -> int:
    """Print the state of an application, and exit as it did."""
    text, status = submission.get_status(arguments.application)
    print_line(text)
    return status


def show_logs(arguments: argparse.Namespace) -> int:
    """Print the logs of an application."""
    return submission.print_logs(arguments.application)


def kill(arguments: argparse.Namespace) -> None:
    """End an application."""
    print_line(submission.kill(arguments.application))
