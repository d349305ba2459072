"""Where work runs: this machine, YARN or a running scheduler; and how work is spread."""
