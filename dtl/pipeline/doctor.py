"""The checks before a run, on the driver and on every worker, made as the run makes them.

Nothing is computed or stored, but for small files that are removed again. What a check looks at,
and how, lies with what it is about: `dtl.storage`, `dtl.cluster`, `dtl.images`, `dtl.features`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dtl import config, storage
from dtl.config.errors import Fault, refuse
from dtl.features.columns import ROW_BYTES
from dtl.features.store import FeatureStore
from dtl.features.values import ExtractionSpec
from dtl.images import listing, split
from dtl.images.values import SPLITS, ImageList
from dtl.pipeline.findings import Examination, UnseenError
from dtl.pipeline.run import Run, list_hdfs_urls
from dtl.storage import kerberos, lock
from dtl.storage.hdfs import UnreachableError, ask_namenode, find_server

if TYPE_CHECKING:
    from dtl.features.extraction import Extractor
    from dtl.features.trial import Trial

_T = TypeVar("_T")

_ANSWER_S = 25.0
"""A NameNode that has not answered by then is taken to be down; its client waits for minutes."""

_SOME_IMAGES = 1000


def examine(run: Run) -> Examination:
    """Make all checks of a run."""
    found = Examination()
    o = run.options
    check_reach(found, o)
    images: ImageList | None = found.check(
        "images", functools.partial(_list_images, o), needs=["hdfs"]
    )
    found.check("split", lambda: _split(images, o), needs=["images"])
    found.check("weights", lambda: _find_weights(run.extraction), needs=["hdfs"])
    found.check("results", lambda: _find_results(run, images), needs=["images", "weights", "hdfs"])
    found.check("output", lambda: _try_output(run), needs=["hdfs"])
    if o.cluster.address == "yarn":
        found.check("yarn", lambda: _ask_yarn(run), needs=["kerberos"])
    if o.cluster.address == "local":
        found.check("dashboard", lambda: try_port(o.cluster.dashboard_address), warns=True)
    _examine_workers(found, run, images)
    return found


def check_reach(found: Examination, o: config.Config) -> None:
    """Check that Hadoop lets this user in, and that each HDFS answers."""
    urls = list_hdfs_urls(o)
    if (urls or o.cluster.address == "yarn") and kerberos.is_needed():
        found.check("kerberos", _find_ticket)
    servers = dict.fromkeys(map(find_server, urls))
    for server in servers:
        found.check("hdfs", functools.partial(_ask_namenode, server), needs=["kerberos"])


def _find_ticket() -> str:
    ticket = kerberos.check_ticket(kerberos.LEAST_S)
    if ticket is None:
        raise UnseenError("tickets are kept where `klist` alone reads them. Type: klist")
    left = (ticket.ends - time.time()) / 3600
    renewable = max(ticket.renew_until - time.time(), 0) / 86400
    return (
        f"the ticket of {ticket.principal} lasts {left:.1f} h, renewable for {renewable:.1f} days"
    )


def _ask_namenode(server: str) -> str:
    began = time.monotonic()
    try:
        _within(_ANSWER_S, functools.partial(ask_namenode, server))
    except (TimeoutError, UnreachableError):
        where = os.environ.get("HADOOP_CONF_DIR", "not set")
        refuse([Fault(
            "hdfs", f"No NameNode answers at {server}.",
            "Check the address, and that HADOOP_CONF_DIR names the cluster's configuration "
            f"(now: {where}). Type: hdfs dfs -ls {server}",
        )])  # fmt: skip
    return f"{server} answers after {time.monotonic() - began:.1f} s"


def _within(seconds: float, function: Callable[[], _T]) -> _T:
    """Call a function in a thread, or raise `TimeoutError` and leave it to itself."""
    answer: Future[_T] = Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=call, name="dtl-doctor", daemon=True).start()
    return answer.result(seconds)


def _list_images(o: config.Config) -> tuple[ImageList, str]:
    if not o.images.url:
        refuse([Fault("images", "No images are given.", "Set `images.url`.")])
    images = listing.list_images(o.images, o.seed)
    n_bytes = storage.format_bytes(int(images.size_bytes.sum()))
    return images, f"{len(images):,} of {len(images.class_names):,} classes, {n_bytes}"


def _split(images: ImageList | None, o: config.Config) -> str:
    assert images is not None
    of_rows = split.assign_splits(images, o.split, o.seed)
    counts = [f"{int((of_rows == k).sum()):,} {name}" for k, name in enumerate(SPLITS)]
    return ", ".join(counts)


def _find_weights(spec: ExtractionSpec) -> str:
    if spec.network != spec.features.network:
        return f"{spec.features.network}: {spec.file_url}"
    return f"{spec.features.network}: {spec.weights}"


def _find_results(run: Run, images: ImageList | None) -> str:
    assert images is not None
    store = run.find_store(images)
    run.check_start()
    if store is None:
        return "none yet"
    return f"{store.n_done:,} of {store.n_images:,} images have their features"


def _try_output(run: Run) -> str:
    url = run.results.url
    lock.check_free(url)
    with _leaving_nothing(url):
        storage.check_writable(url)
    free = storage.find_free_bytes(url)
    return f"{url} is writable" + (f", {storage.format_bytes(free)} free" if free else "")


@contextlib.contextmanager
def _leaving_nothing(url: str) -> Iterator[None]:
    """Remove a folder that was not there before."""
    there = storage.exists(url)
    try:
        yield
    finally:
        if not there and storage.exists(url) and not storage.list_names(url):
            storage.remove(url)


def _ask_yarn(run: Run) -> str:
    from dtl.cluster.yarn import capacity, containers, resource_manager  # skein is an extra

    if containers.in_container():
        return "this is one of its containers"
    run.check_worker_memory()
    with resource_manager.connect_to_yarn() as manager:
        capacity.check_capacity(manager, run.options.yarn)
        return capacity.describe_room(manager, run.options.yarn)


def try_port(address: str) -> str:
    """Refuse an address of the dashboard that cannot be listened on."""
    from dtl.cluster.security import keep_local

    host, _, port = keep_local(address).rpartition(":")
    try:
        with socket.create_server((host, int(port))):
            return f"{host}:{port}" if int(port) else "any free port of this machine"
    except OSError as error:
        refuse([Fault(
            "dashboard", f"{host}:{port} cannot be listened on: {error.strerror}. A run would take "
            "another port.", "Set `cluster.dashboard_address` = :0, or end what has the port.",
        )])  # fmt: skip
        raise


# --- on the workers ------------------------------------------------------------------------------


def _examine_workers(found: Examination, run: Run, images: ImageList | None) -> None:
    needed = ["kerberos", "yarn"]
    n = found.check("cluster", lambda: _start(run), needs=needed)
    where = "all workers" if n is None else f"{n} worker{'s' * (n != 1)}"

    def check(name: str, make: Callable[[], Any], *needs: str, warns: bool = False) -> Any:
        return found.check(name, make, needs=["cluster", *needs], where=where, warns=warns)

    check("versions", lambda: _compare_versions(run))
    check("clocks", lambda: _compare_clocks(run))
    check("output", lambda: _try_output_of_workers(run), "output")
    check("sample", lambda: _read_sample(run, images), "images")
    if run.extraction.engine != "openvino":  # whose network tells it once it is converted
        check("memory", lambda: _compare_memory(run), "weights")
    with _converted_elsewhere(run) as spec:
        load = functools.partial(_load, run, spec, images)
        extractor = check("weights", load, "memory", "weights", "images")
        trials = check("network", lambda: _try_network(run, images, extractor), "weights", "images")
    check("processors", lambda: _compare_processors(run), "weights", warns=True)
    found.check("space", lambda: _compare_space(run, images, trials),
                needs=["images", "network", "output", "cluster", "weights"])  # fmt: skip


def _start(run: Run) -> tuple[int, str]:
    from dtl.cluster.workers import known_workers

    workers = known_workers(run.client)
    threads = sum(worker["nthreads"] for worker in workers.values())
    memory = [worker["memory_limit"] for worker in workers.values()]
    limit = storage.format_bytes(min(memory)) if all(memory) else "no limit of memory"
    return len(workers), f"{threads} threads, {limit} each at least"


def _compare_versions(run: Run) -> str:
    from dtl.cluster import versions

    versions.check_versions(run.client)
    return versions.describe(versions.list_versions())


def _compare_clocks(run: Run) -> str:
    from dtl.cluster import clocks

    return f"at most {clocks.check_clocks(run.client):.1f} s from the driver's"


def _try_output_of_workers(run: Run) -> str:
    from dtl.cluster.workers import check_output, check_shared

    url = run.results.url
    check_shared(run.client, run.options.images.url, url)
    with _leaving_nothing(url):
        check_output(run.client, url)
    return "each writes a file, removes it, and sees the driver's"


def _read_sample(run: Run, images: ImageList | None) -> str:
    from dtl.cluster.workers import check_visible
    from dtl.images.sampling import check_sample

    assert images is not None
    check_visible(run.client, images.root)
    n = check_sample(run.client, images, run.options.images)
    return f"{n} images were read and decoded"


def _compare_memory(run: Run) -> str:
    from dtl.cluster.workers import known_workers
    from dtl.features import extraction

    needed = extraction.count_needed_bytes(run.client, run.extraction)
    extraction.check_memory(run.client, run.options.features, needed)
    least = min(worker["memory_limit"] for worker in known_workers(run.client).values())
    has = f"each has {storage.format_bytes(least)} or more" if least else "they have no limit"
    return f"the network needs {storage.format_bytes(needed)}; {has}"


@contextlib.contextmanager
def _converted_elsewhere(run: Run) -> Iterator[ExtractionSpec]:
    """Yield what features follow from, with a network that is converted to a place of its own.

    int8 is not made for a check, for that takes minutes.
    """
    spec = run.extraction
    if spec.engine != "openvino":
        yield spec
        return
    if spec.features.precision == "int8":
        spec = replace(spec, features=replace(spec.features, precision="auto"))
    if storage.exists(spec.network_url):
        yield spec
        return
    url = storage.join(run.results.url, f".dtl-{uuid.uuid4().hex}.partial")
    with _leaving_nothing(run.results.url):
        try:
            yield replace(spec, network_url=url)
        finally:
            with contextlib.suppress(OSError):  # whose check has said it
                storage.remove(url)


def _load(run: Run, spec: ExtractionSpec, images: ImageList | None) -> tuple[Extractor, str]:
    from dtl.cluster.workers import check_visible
    from dtl.features import extraction

    assert images is not None
    check_visible(run.client, *filter(None, [spec.file_url]))
    # So few that `auto` does not make an int8 network.
    some = images.take(np.arange(min(len(images), _SOME_IMAGES)))
    extractor = extraction.prepare(run.client, spec, images=some)
    sha256 = extractor.weights_sha256[:16]
    return extractor, f"SHA-256 {sha256}… on all, in {extractor.network.precision}"


def _try_network(run: Run, images: ImageList | None, extractor: Extractor) -> tuple[Any, str]:
    from dtl.features.trial import try_images

    assert images is not None
    trials = try_images(run.client, images, extractor, run.options.features.dtype, 1)
    seconds = sum(t.seconds / t.n_images for t in trials.values()) / len(trials)
    return trials, f"features are finite; about {1000 * seconds:.0f} ms an image on each"


def _compare_processors(run: Run) -> str:
    from dtl.cluster import processors
    from dtl.cluster.workers import run_on_each_worker
    from dtl.features.trial import describe_machine

    machines = run_on_each_worker(run.client, describe_machine)
    names = {machine.instruction_set for machine in machines.values()}
    if mixture := processors.describe_mixture(names):
        few = min(names, key=lambda n: sum(m.instruction_set == n for m in machines.values()))
        advice = "Set ONEDNN_MAX_CPU_ISA to the least of them on all workers."
        refuse([
            Fault("processors", f"It computes with {few}: {mixture}", advice, worker)
            for worker, machine in sorted(machines.items()) if machine.instruction_set == few
        ])  # fmt: skip
    threads = sorted({machine.n_threads for machine in machines.values()})
    gpus = sorted({len(machine.gpus) for machine in machines.values()})
    counts = ["-".join(map(str, sorted({c[0], c[-1]}))) for c in (threads, gpus)]
    return f"{names.pop()}, {counts[0]} threads and {counts[1]} GPUs for the network of each"


def _compare_space(run: Run, images: ImageList | None, trials: dict[str, Trial]) -> str:
    assert images is not None
    url, n_pending = run.results.url, len(images)
    with contextlib.suppress(FileNotFoundError):
        n_pending -= FeatureStore(run.results.features).n_done
    row_bytes = max(trial.stored_bytes for trial in trials.values()) + ROW_BYTES
    needed = int(max(n_pending, 0) * row_bytes)
    free = storage.check_space(url, needed, f" for {n_pending:,} rows")
    known = storage.format_bytes(free) if free is not None else "its storage does not say how much"
    return f"{storage.format_bytes(needed)} will be written, {known} free"
