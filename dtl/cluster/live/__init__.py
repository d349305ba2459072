"""The live page: what a run does, in the dashboard of its scheduler, while it does it.

Stages `tell` events, and know nothing of the page. `follow` sends them to the scheduler, where a
plugin keeps a bounded `State`, and serves it as JSON beside a page that asks for it each second.
"""

from dtl.cluster.live.feed import PAGE, find_page, follow, tell

__all__ = ["PAGE", "find_page", "follow", "tell"]
