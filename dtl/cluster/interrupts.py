"""Preload of worker processes: they ignore Ctrl-C, which a terminal sends to them, too.

The driver ends them, in its own order; they would only print where they were.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
