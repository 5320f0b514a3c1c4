"""The batches of a training, made ahead by several processes: one alone can't keep a GPU busy."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.float32], NDArray[np.float32]]
Make = Callable[[NDArray[np.intp], np.random.Generator], Batch]
WORKERS = max(1, (os.cpu_count() or 1) - 1)
"""One processor is left to what learns."""
WAITING = 2
"""Batches that wait or are in the making for each worker."""


class Batches:
    """Shuffled batches, others in every epoch, and the same whatever number of workers makes them.

    `make` gives the inputs and targets of a batch from its examples' numbers (of `count`) and a source of chance. With
    one worker it runs in a thread; the processes of several are forked at once and share what `make` knows, so make
    this before Keras computes anything: beside its threads, a fork can hang. `most` examples are shown in an epoch.
    """

    def __init__(self, make: Make, count: int, batch: int, seed: int, workers: int, most: int | None = None) -> None:
        self._make, self._count, self._batch, self._seed, self._workers = make, count, batch, seed, workers
        self._steps = max(1, min(count, most or count) // batch)
        self._executor: Executor
        if workers == 1:
            self._executor = ThreadPoolExecutor(1, initializer=_start, initargs=(self,))
        else:
            cv2.setNumThreads(1)  # its threads don't outlive a fork
            context = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(self,))
            self._executor.submit(int).result()  # forks them all

    def close(self) -> None:
        """End the workers."""
        self._executor.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        """Batches in an epoch; what doesn't fill one is left out."""
        return self._steps

    def epochs(self, first: int, end: int | None = None) -> Iterator[Batch]:
        """The batches of some epochs, one after another; without an end, for ever."""
        numbers = itertools.count(first) if end is None else range(first, end)
        keys = ((epoch, index) for epoch in numbers for index in range(self._steps))
        waiting: deque[Future[Batch]] = deque()
        for key in keys:
            waiting.append(self._executor.submit(_make, *key))
            if len(waiting) == WAITING * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def made(self, epoch: int, index: int) -> Batch:
        """One batch."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._count)
        rows = order[index * self._batch : (index + 1) * self._batch]
        return self._make(rows, np.random.default_rng((self._seed, epoch, index)))


_batches: Batches
"""A worker's: what is handed to it with each batch is only which one."""


def _start(batches: Batches) -> None:
    global _batches  # noqa: PLW0603  # a process pool has no other place for what its workers share
    _batches = batches
    if parent := multiprocessing.parent_process():
        # Ctrl-C is the trainer's; without it, however it ended, there is nothing to do.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _make(epoch: int, index: int) -> Batch:
    return _batches.made(epoch, index)
