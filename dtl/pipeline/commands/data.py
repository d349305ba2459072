"""Photographs, and the Python that runs, brought to where the work is."""

from __future__ import annotations

import argparse
import functools
import logging

from dtl import storage
from dtl.cluster import environment
from dtl.config.errors import UserError
from dtl.config.provenance import Claim
from dtl.images import fetching, listing, packing
from dtl.pipeline.messages import print_line
from dtl.pipeline.run import Run

log = logging.getLogger(__name__)


def pack(run: Run, _: argparse.Namespace) -> None:
    """Pack image files into tars."""
    c, url = run.options, run.results.url
    if f"{url}/".startswith(f"{c.images.url.rstrip('/')}/"):
        raise UserError(
            f"`out` = {url} lies in `images.url` = {c.images.url}: the tars would be listed as "
            "images of it, too. Choose a place beside it."
        )
    listed = listing.list_images(c.images, c.seed)
    ledger = packing.open_ledger(url, listed, c.pack)
    if ledger.inspect(overwrite=c.overwrite) is Claim.FINISHED:
        log.info("packing: done before")
    else:
        run.claim_folder()
        packing.pack(url, listed, c.pack, run.client, overwrite=c.overwrite)
    print_line(f"{len(listed)} images in tars: {url}")


def fetch(run: Run, a: argparse.Namespace) -> None:
    """Download a public data set, and store its images."""
    run.claim_folder()
    fetching.fetch(
        a.dataset, run.options, source=a.source, md5=a.md5, layout=a.layout, scratch=a.scratch
    )
    print_line(f"{a.dataset}: {run.results.url}")


def add_fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fetch`."""
    add = functools.partial(parser.add_argument, default="")
    parser.add_argument("dataset", choices=sorted(fetching.DATASETS), help="which data set")
    add("--to", dest="out", metavar="URL", default=argparse.SUPPRESS, help="same as --out")
    add("--from", dest="source", metavar="URL", help="its archive elsewhere: a mirror, or a file")
    add("--md5", metavar="HEX", help="of another archive than the official one; none: unchecked")
    add("--scratch", metavar="DIR", help="where it is downloaded to (default: ~/.cache/dtl)")
    layouts = "class folders (default); those in train/, validation/ and test/; tars"
    add("--layout", choices=fetching.LAYOUTS, default="folders", help=layouts)


def pack_environment(arguments: argparse.Namespace) -> None:
    """Pack the Python that runs into an archive for YARN's containers."""
    url = storage.absolute(arguments.out)
    written = environment.pack(url)
    print_line(f"Environment: {url}" + ("" if written else " (there already, unchanged)"))
