"""Stored images that are like others."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dtl import storage
from dtl.config import hide
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.images import listing
from dtl.images.values import NO_SPLIT, SPLITS
from dtl.neighbours.search import Neighbours, find_nearest
from dtl.neighbours.values import Match, Matched
from dtl.pipeline.messages import print_line
from dtl.pipeline.pictures import make_thumbnails, read_pictures
from dtl.pipeline.results import Results
from dtl.pipeline.run import Run
from dtl.pipeline.tables import align_columns
from dtl.report.similar import render_similar
from dtl.storage import Extent

_MOST_IMAGES = 200
_MOST_LINES = 5
"""Neighbours of each image in the terminal; all are on the page."""
_PICTURE_SIDE = 200


def add_similar_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `similar`."""
    parser.add_argument("image", metavar="IMAGE", nargs="+", help="images, folders or tars")
    parser.add_argument("--k", type=int, default=12, metavar="N", help="neighbours (default: 12)")
    parser.add_argument("--page", metavar="URL", default="", help="default: similar.html in MODEL")


def similar(run: Run, arguments: argparse.Namespace) -> None:
    """Find the stored images that are nearest to images, as lines and as a page."""
    if arguments.k < 1:
        raise UserError(f"Expected at least 1 neighbour. Received: k = {arguments.k}.")
    model = Results(arguments.model)
    store = model.store()
    store.check_options(run.extraction)
    files = _find_files(arguments.image)
    page = storage.absolute(arguments.page or storage.join(model.url, "similar.html"))
    if storage.is_file(page) and not storage.base_name(page).endswith(".html"):
        raise UserError(f"{page} is a file that is no page. Choose another `page`.")
    head = model.head()
    layer = head.provenance["layer"] if head else run.options.layer
    features, errors = _extract(run, model, store, layer, files)
    read = np.array([not error for error in errors])
    found = find_nearest(features[read], store, layer, run.client, arguments.k)
    named = iter(_name_matches(store, found))
    matched = [
        Matched(hide(path), error=error) if error else Matched(hide(path), next(named))
        for path, error in zip(files, errors, strict=True)
    ]
    most = run.options.images.max_pixels
    shown = {match.path for image in matched for match in image.matches}
    files_by_name = dict(zip(map(hide, files), files.values(), strict=True))
    own = make_thumbnails(files_by_name, most, page="page", side=_PICTURE_SIDE)
    stored = read_pictures(
        run.options.images.url, store, sorted(shown), most, page="page", side=_PICTURE_SIDE
    )
    n_images, title = int(store.read_usable().sum()), storage.base_name(hide(store.attrs["root"]))
    html = render_similar(matched, own, stored, title, layer, n_images)
    storage.write_bytes(page, html.encode())
    print_line(f"{_format(matched)}\n\nPage: {page}")


def _find_files(urls: list[str]) -> dict[str, str | Extent]:
    """Return the place of each image by its URL, or its path in a tar."""
    files: dict[str, str | Extent] = {}
    for url in urls:
        found = listing.find_images(url)
        found.sort()
        places = (storage.join(found.root, path) for path in found.paths)
        files |= dict(zip(places, found.files(), strict=True))
    if not 0 < len(files) <= _MOST_IMAGES:
        raise UserError(
            f"Expected 1 to {_MOST_IMAGES} images. Received: {len(files)}, in {', '.join(urls)}."
        )
    return files


def _extract(
    run: Run, model: Results, store: FeatureStore, layer: str, files: Mapping[str, str | Extent]
) -> tuple[np.ndarray, list[str]]:
    """Compute the features of images as those of the store were."""
    from dtl.cluster.chunks import map_chunks
    from dtl.features import extraction

    run.check_worker_memory()
    spec = replace(run.extraction, network_url=model.network)
    extractor = extraction.prepare_as_stored(run.client, spec, store, len(files))
    tasks = map_chunks(run.client, extraction.extract, [[*files.values()]], extractor=extractor)
    extracted = next(iter(tasks))
    return extracted.features[layer], extracted.errors


def _name_matches(store: FeatureStore, found: Neighbours) -> list[tuple[Match, ...]]:
    """Name the neighbours of each row that was asked for."""
    path, label, split = store.read("path"), store.read("label"), store.read_split()
    names = store.class_names

    def name(row: int, cosine: float) -> Match:
        k, part = int(label[row]), int(split[row])
        return Match(
            str(path[row]), names[k] if k >= 0 else "",
            SPLITS[part] if part != NO_SPLIT else "", min(1.0, cosine),
        )  # fmt: skip

    def name_row(rows: Sequence[int], cosines: Sequence[float]) -> tuple[Match, ...]:
        pairs = zip(rows, cosines, strict=True)
        return tuple(name(row, cosine) for row, cosine in pairs if row >= 0)

    return [
        name_row(rows, cosines)
        for rows, cosines in zip(found.index.tolist(), found.cosine.tolist(), strict=True)
    ]


def _format(found: list[Matched]) -> str:
    """Lay out the nearest of each image."""
    lines: list[str] = []
    for image in found:
        lines.append(f"\n{image.path}" + (f": {image.error}" if image.error else ""))
        rows = [
            (f"  {m.cosine:.3f}", m.class_name, m.split, m.path)
            for m in image.matches[:_MOST_LINES]
        ]
        lines += [align_columns(rows, right=set())] if rows else []
    return "\n".join(lines).strip()
