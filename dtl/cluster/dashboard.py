"""Dask's dashboard, made when somebody first looks at it."""

from __future__ import annotations

from typing import Any

from distributed import Scheduler
from tornado import web


class _Dashboard(web.Application):
    """Makes the pages of a scheduler when the first of them is asked for.

    Their imports take half a second, in which no worker could start, and 40 MB.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler: Scheduler | None = scheduler

    def find_handler(self, request: Any, **options: Any) -> Any:
        """Find no handler: the pages, an application behind this one, are asked next."""
        if self._scheduler is not None:
            from distributed.dashboard.scheduler import connect

            scheduler, self._scheduler = self._scheduler, None
            connect(scheduler.http_application, scheduler.http_server, scheduler)
        return super().find_handler(request, **options)


def serve_dashboard(scheduler: Scheduler) -> None:
    """Serve the dashboard of a scheduler that was started without it."""
    scheduler.http_application.add_application(_Dashboard(scheduler))
