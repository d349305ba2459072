"""The cost of a run on any number of workers, from its work and from measured rates.

Pure arithmetic. Stages follow one another. Within the first, chunks are handed out whole; within
the second, rounds follow one another, and in a round the shards of a thread do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dtl.cluster.spread import choose_group_size


@dataclass(frozen=True)
class Work:
    """What is left to do.

    Parameters
    ----------
    n_images, n_pending : int
        Rows of the store, and those without features.
    chunk_images : int
    image_bytes : float
        Mean size of an image's file.
    row_bytes : int
        Of the layer that trains, as float32.
    n_train, n_held_out : int
        Rows that train, and that validate.
    n_shards : int
        Replicas.
    steps_per_round : float
        Of each replica.
    n_rounds, n_validations : int
        Left of the training; none where there is a head.
    round_flop, novelty_flop : float
        Operations of a round besides its steps, and of all that novelty takes.
    evaluates, reports : bool
        Whether these stages are left.
    """

    n_images: int
    n_pending: int
    chunk_images: int
    image_bytes: float
    row_bytes: int
    n_train: int
    n_held_out: int
    n_shards: int
    steps_per_round: float
    n_rounds: int
    n_validations: int
    round_flop: float = 0.0
    novelty_flop: float = 0.0
    evaluates: bool = True
    reports: bool = True

    @property
    def n_chunks(self) -> int:
        """Chunks that are pending; all but the last are whole."""
        return -(-self.n_pending // self.chunk_images)

    @property
    def trains(self) -> bool:
        """Whether a head is trained."""
        return self.n_rounds > 0


@dataclass(frozen=True)
class Rates:
    """What was measured, in seconds unless its name says otherwise.

    Parameters
    ----------
    n_workers, n_threads : int
        Workers, and threads of each.
    start_s : float
        From the command to workers that are connected; `listing_s` for the list.
    load_s, first_s : float
        The network on each worker, and what its first batch takes longer than others.
    image_s : float
        An image on a worker, read, decoded and computed.
    stored_bytes : float
        Of an image's row, as it is stored.
    submit_s : float
        An empty task, from the driver and back, among many.
    train_s, evaluate_s, report_s : float
        The stages on hardly any rows: imports, tasks, pictures, pages.
    step_s : float
        A step of one shard. `round_s` is what a round takes besides its steps.
    score_row_s, read_byte_s : float
        A row's scores on a thread, and a byte of stored features, decoded.
    flop_s : float
        An operation of a product on a thread.
    memory_bytes, limit_bytes : int
        That a worker needs for the network, and may use; 0 if there is no limit.
    """

    n_workers: int
    n_threads: int
    start_s: float
    listing_s: float
    load_s: float = 0.0
    first_s: float = 0.0
    image_s: float = 0.0
    stored_bytes: float = 0.0
    submit_s: float = 0.0
    train_s: float = 0.0
    step_s: float = 0.0
    round_s: float = 0.0
    score_row_s: float = 0.0
    read_byte_s: float = 0.0
    flop_s: float = 0.0
    evaluate_s: float = 0.0
    report_s: float = 0.0
    memory_bytes: int = 0
    limit_bytes: int = 0


@dataclass(frozen=True)
class Forecast:
    """How long the stages of a run take on `n_workers`, in seconds."""

    n_workers: int
    start_s: float
    features_s: float
    train_s: float
    evaluate_s: float
    report_s: float

    @property
    def total_s(self) -> float:
        """From the command to its end."""
        parts = (self.start_s, self.features_s, self.train_s, self.evaluate_s, self.report_s)
        return sum(parts)


_PASSES = 6
"""Times that training reads all rows: twice for the scaling, once for the shards, once for the
temperature, and twice for novelty. Evaluation reads them once more."""


def predict(work: Work, rates: Rates, n_workers: int | None = None) -> Forecast:
    """Return what a run takes on some number of workers like the measured ones.

    Examples
    --------
    >>> work = Work(1000, 1000, 100, 1e5, 2048, 0, 0, 8, 10, 0, 0, evaluates=False, reports=False)
    >>> rates = Rates(1, 2, start_s=5, listing_s=1, load_s=4, image_s=0.1)
    >>> [predict(work, rates, n).features_s for n in (1, 4, 10, 1000)]  # 10 chunks of 10 s
    [104.0, 34.0, 14.0, 14.0]
    """
    n = n_workers or rates.n_workers
    n_threads = n * rates.n_threads  # none where no cluster is started
    per_pass = work.n_images * work.row_bytes * rates.read_byte_s
    train = evaluate = 0.0
    if work.trains:
        scores = work.n_validations * (work.n_train + work.n_held_out) * rates.score_row_s
        spread = (_PASSES * per_pass + work.novelty_flop * rates.flop_s) / n_threads
        spread += scores / min(n_threads, work.n_shards)
        train = rates.train_s + spread + work.n_rounds * predict_round(work, rates, n)
    if work.evaluates:
        spread = per_pass + work.n_images * rates.score_row_s
        evaluate = rates.evaluate_s + spread / n_threads
    return Forecast(
        n, rates.start_s + rates.listing_s, _predict_features(work, rates, n), train, evaluate,
        rates.report_s * work.reports,
    )  # fmt: skip


def _predict_features(work: Work, rates: Rates, n_workers: int) -> float:
    if not work.n_pending:
        return 0.0
    # The busiest worker has one chunk more than others, unless they share out evenly.
    n_busiest = min(-(-work.n_chunks // n_workers) * work.chunk_images, work.n_pending)
    computed = n_busiest * rates.image_s
    handed_out = work.n_chunks * rates.submit_s
    return rates.load_s + rates.first_s + max(computed, handed_out)


def predict_round(work: Work, rates: Rates, n_workers: int) -> float:
    """Return the critical path of a round: the steps of the busiest thread, and the average.

    Examples
    --------
    >>> work = Work(1, 0, 1, 1, 1, 1, 0, 8, 10, 9, 1)  # rounds of 10 steps, by 8 shards
    >>> rates = Rates(1, 2, 0, 0, step_s=0.01, round_s=0.05)
    >>> [round(predict_round(work, rates, n), 3) for n in (1, 2, 4, 1000)]
    [0.45, 0.25, 0.15, 0.15]
    """
    steps_s = count_turns(work, rates, n_workers) * work.steps_per_round * rates.step_s
    n_busy = min(n_workers * rates.n_threads, work.n_shards)
    return rates.round_s + steps_s + work.round_flop * rates.flop_s / n_busy


def count_turns(work: Work, rates: Rates, n_workers: int) -> int:
    """Count the shards that the busiest thread trains in turn."""
    n_threads = n_workers * rates.n_threads
    size = choose_group_size(work.n_shards, n_threads)
    n_groups = -(-work.n_shards // size)
    return min(-(-n_groups // n_threads) * size, work.n_shards)


# --- limits --------------------------------------------------------------------------------------


_MANY, _SMALL_CHUNK = 1000, 16
"""Chunks for many workers, if they have no fewer images than this."""


@dataclass(frozen=True)
class Limit:
    """A number of workers beyond which a stage is no quicker, why, and what to change."""

    stage: str
    n_workers: int
    reason: str


def find_limits(work: Work, rates: Rates) -> list[Limit]:
    """List where stages stop scaling, the first first."""
    limits = []
    if work.n_pending:
        n_chunks, wanted = work.n_chunks, max(work.n_pending // _MANY, _SMALL_CHUNK)
        whole = f"{n_chunks:,} whole chunks of {work.chunk_images} images are handed out"
        reason = whole if n_chunks > 1 else f"one chunk of {work.chunk_images} images has them all"
        if wanted < work.chunk_images:
            reason += f"; features.chunk_images = {wanted} makes {-(-work.n_pending // wanted):,}"
        limits.append(Limit("features", n_chunks, reason))
    if work.n_pending and rates.submit_s and rates.image_s:
        n = max(int(work.chunk_images * rates.image_s / rates.submit_s), 1)
        reason = f"the driver hands out {1 / rates.submit_s:,.0f} chunks per second"
        limits.append(Limit("features", n, reason))
    if work.trains:
        n = -(-work.n_shards // rates.n_threads)
        share = rates.round_s / max(predict_round(work, rates, n), 1e-9)
        reason = (
            f"each of {work.n_shards} replicas has a thread (train.n_shards), and rounds follow "
            f"one another; {share:.0%} of a round are its tasks and its average"
        )
        limits.append(Limit("training", n, reason))
    return sorted(limits, key=lambda limit: limit.n_workers)


def count_rows_in_memory(work: Work, rates: Rates, n_workers: int) -> int:
    """Return the bytes of rows that the busiest worker holds while it trains."""
    n_rows = work.n_train + work.n_held_out
    holders = min(n_workers * rates.n_threads, work.n_shards)
    per_worker = -(-holders // n_workers)
    return math.ceil(n_rows * work.row_bytes * per_worker / max(holders, 1))
