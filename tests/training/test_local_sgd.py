from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import threadpoolctl

from dtl.head import blas
from dtl.head.blas import one_blas_thread


def n_threads() -> set[int]:
    found = threadpoolctl.ThreadpoolController().select(user_api="blas")
    # OpenMP counts them for each thread that asks: so does faiss's, which only tests import.
    layers = [(library.num_threads, library.info()) for library in found.lib_controllers]
    return {n for n, info in layers if info.get("threading_layer") != "openmp"}


def test_one_blas_thread_whichever_thread_asks() -> None:
    """Tasks come in threads that live on, and the last one out is seldom the first one in."""
    blas._blas.cache_clear()  # another test may have imported a library with a BLAS of its own
    with (
        threadpoolctl.threadpool_limits(3, user_api="blas"),
        ThreadPoolExecutor(1) as a,
        ThreadPoolExecutor(1) as b,
    ):
        assert n_threads() == {3}
        for first, second in ((a, b), (b, a), (a, a), (b, b)):
            one, other = one_blas_thread(), one_blas_thread()
            first.submit(one.__enter__).result()
            assert n_threads() == {1}
            second.submit(other.__enter__).result()
            first.submit(one.__exit__, None, None, None).result()
            assert n_threads() == {1}
            second.submit(other.__exit__, None, None, None).result()
            assert n_threads() == {3}
