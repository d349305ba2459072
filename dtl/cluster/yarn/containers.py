"""Code that runs inside YARN's containers: beside Dask's scheduler, and around a submitted driver.

The scheduler of an application loads this module (``--preload``). It publishes the address, gives
all containers back when the driver is gone, and lets the number of workers follow the work, if so
configured.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import click
import skein
from distributed import Scheduler
from distributed.deploy.adaptive_core import AdaptiveCore

log = logging.getLogger(__name__)

SCHEDULER, WORKER, DRIVER = "dask.scheduler", "dask.worker", "dask.client"
"""The services, as dask-yarn named them."""

ADDRESS, DASHBOARD = "dask.scheduler", "dask.dashboard"
"""Keys of skein's store: the addresses of the scheduler and of its page, as dask-yarn had them."""

PAGE = "dashboard"
"""The name of that page below the application's own, which YARN's proxy serves."""

_LEFT_S = 20.0
"""A driver that has been gone for this long does not come back. Dask takes up to 30 s to notice a
machine that does not answer, so an application outlives its driver by less than a minute."""

_NEVER_CAME_S = 45.0
"""A driver connects as soon as the scheduler has published its address."""

_ADAPT_EVERY_S = 2.0
_SECONDS_OF_WORK = "60s"
"""Waiting work of this length justifies another container, which helps after some 20 s."""

_watchers: list[asyncio.Future[None]] = []
"""Kept here, because an event loop holds its tasks by weak references only."""


def in_container() -> bool:
    """Return whether this process runs in a container of an application that skein started."""
    return skein.properties.application_id is not None


@click.command()
@click.option("--min-workers", default=0)
@click.option("--max-workers", default=0)
async def dask_setup(scheduler: Scheduler, min_workers: int, max_workers: int) -> None:
    """Publish the addresses, then watch over the application; Dask calls this in the scheduler."""
    app = skein.ApplicationClient.from_current()
    port = scheduler.services["dashboard"].port
    page = f"http://{urlsplit(scheduler.address).hostname}:{port}"
    # Others wait for this address, so it comes last.
    app.kv[DASHBOARD] = page.encode()
    app.ui.add_page(PAGE, page, "Dask dashboard")
    app.kv[ADDRESS] = scheduler.address.encode()
    watchers = []
    if DRIVER not in app.get_specification().services:  # YARN itself watches over that one
        watchers.append(_end_without_driver(scheduler, app))
    if max_workers:
        watchers.append(_adapt(_Adaptive(scheduler, app, min_workers, max_workers)))
    _watchers.extend(asyncio.ensure_future(watcher) for watcher in watchers)


async def _end_without_driver(scheduler: Scheduler, app: skein.ApplicationClient) -> None:
    seen, last = False, time.monotonic()
    while True:
        await asyncio.sleep(1)
        now = time.monotonic()
        if set(scheduler.clients) - {"fire-and-forget"}:
            seen, last = True, now
        elif now - last > (_LEFT_S if seen else _NEVER_CAME_S):
            break
    message = "The driver is gone, so its containers were given back."
    log.error(message)
    app.shutdown("FAILED", message)


class _Adaptive(AdaptiveCore):  # type: ignore[misc]
    """Adaptation of the number of worker containers to the work, within limits."""

    def __init__(
        self, scheduler: Scheduler, app: skein.ApplicationClient, minimum: int, maximum: int
    ) -> None:
        # A worker is closed after ten recommendations in a row, 20 s: a pause between two rounds of
        # training must not close what the next round needs.
        super().__init__(minimum, maximum, wait_count=10)
        self._scheduler, self._app = scheduler, app
        self._containers: set[str] = set()

    async def update(self) -> None:
        """Ask skein which worker containers there are."""
        active = await asyncio.to_thread(self._app.get_containers, services=[WORKER])
        self._containers = {container.id for container in active}

    @property
    def plan(self) -> set[str]:
        return self._containers

    @property
    def requested(self) -> set[str]:
        return self._containers

    @property
    def observed(self) -> set[str]:
        return {str(worker.name) for worker in self._scheduler.workers.values()}

    async def target(self) -> int:
        return int(self._scheduler.adaptive_target(target_duration=_SECONDS_OF_WORK))

    async def workers_to_close(self, target: int) -> list[str]:
        return list(self._scheduler.workers_to_close(target=target, attribute="name"))

    async def scale_up(self, n: int) -> None:
        log.info("%d worker containers, to be %d", len(self._containers), n)
        await asyncio.to_thread(self._app.scale, WORKER, n)

    async def scale_down(self, workers: Iterable[str]) -> None:
        # Retiring first copies what only they hold to other workers.
        names = set(workers)
        log.info("closing worker containers %s", ", ".join(sorted(names)))
        await self._scheduler.retire_workers(names=list(names & self.observed))
        for name in names:
            await asyncio.to_thread(self._app.kill_container, name)


async def _adapt(adaptive: _Adaptive) -> None:
    while True:
        await adaptive.update()
        await adaptive.adapt()
        await asyncio.sleep(_ADAPT_EVERY_S)


def drive(arguments: Sequence[str]) -> None:
    """Run dtl's command line, the driver, and end the application with its result."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dtl.pipeline", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    message = ""
    for line in process.stderr:
        sys.stderr.write(line)
        # An error is the last that it writes, in one line or more.
        message = line if line.startswith("error: ") or not message else message + line
    status = process.wait()
    app = skein.ApplicationClient.from_current()
    if status == 0:
        app.shutdown("SUCCEEDED", "Finished.")
    else:
        app.shutdown("FAILED", message.strip()[-2000:] or f"The driver ended with status {status}.")


if __name__ == "__main__":
    drive(sys.argv[1:])
