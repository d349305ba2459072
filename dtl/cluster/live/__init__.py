"""The live page: what a run does, in the dashboard of its scheduler, while it does it.

Stages `tell` events, and know nothing of the page. `follow` sends them to the scheduler, where a
plugin keeps a bounded `State`, and serves it as JSON beside a page that asks for it each second.
The plugin also keeps what the workers do (`dtl.cluster.timeline`), for who asks by `read_record`.
"""

from dtl.cluster.live.feed import (
    PAGE,
    begin_record,
    find_page,
    follow,
    name_other,
    read_record,
    tell,
)

__all__ = ["PAGE", "begin_record", "find_page", "follow", "name_other", "read_record", "tell"]
