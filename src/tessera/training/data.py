"""What the trainer reads from: batches that are a function of the step alone, prepared ahead of time.

Because the samples of step s depend on (seed, s) and on nothing that happened before, a run resumes exactly
and does not depend on the number of processes: each takes its slice.
"""

from __future__ import annotations

import functools
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from tessera.errors import TesseraError
from tessera.training.plan import TrainConfig, stage_of

Batch = dict[str, Any]
Request = tuple[int, int]
"""(step, micro-batch)."""
COUNTED = ("samples", "questions", "tokens")


class TrainingData(Protocol):
    """Anything that gives batches.

    `batch` returns the keyword arguments of the model's forward (tensors). Entries that are not tensors are
    not passed on: `image_keys` (a string per image of `pixel_values`) names images for the store of frozen
    encoders' outputs. It is called from another thread or process, must not depend on earlier calls and must
    not touch global random state.
    """

    @property
    def finite(self) -> bool:
        """Whether the same images come again (epochs of a data set, in contrast to an endless world)."""
        ...

    def batch(self, step: int, rank: int, world_size: int, micro: int) -> Batch:
        """The slice of step `step` (from 0) for process `rank` of `world_size` and micro-batch `micro`."""
        ...


def sample_numbers(step: int, rank: int, world_size: int, micro: int, config: TrainConfig) -> range:
    """Running numbers (0, 1, ...) of a slice's samples; those of a step are `batch_size` consecutive ones."""
    slices, index = config.accumulation * world_size, micro * world_size + rank
    first = step * config.batch_size
    return range(first + index * config.batch_size // slices, first + (index + 1) * config.batch_size // slices)


def place_of(number: int, length: int, seed: int) -> tuple[int, int]:
    """(epoch, sample) of running number `number` where every epoch is a new permutation of `length` samples."""
    epoch, place = divmod(number, length)
    return epoch, int(_permutation(seed, epoch, length)[place])


def count(batch: Batch) -> Counter[str]:
    """`COUNTED` of a batch; padding is no token, a packed row has as many questions as segments."""
    segments, ids, pixels = batch.get("segment_ids"), batch.get("input_ids"), batch.get("pixel_values")
    if segments is not None:
        questions, tokens = int(segments.amax(-1).clamp(min=0).sum()), int((segments >= 0).sum())
        return Counter(samples=len(segments), questions=questions, tokens=tokens)
    if ids is not None:
        mask = batch.get("attention_mask")
        return Counter(samples=len(ids), questions=len(ids), tokens=ids.numel() if mask is None else int(mask.sum()))
    return Counter(samples=0 if pixels is None else len(pixels))


class Batches:
    """`TrainingData` from a function of sample indices.

    Endless (`length` None): indices 0, 1, 2, ...; finite: every epoch a new permutation of `length` samples,
    drawn from (seed, epoch).
    """

    def __init__(self, collate: Callable[[Sequence[int]], Batch], config: TrainConfig, length: int | None = None) -> None:
        self.collate = collate
        self.config = config
        self.length = length

    @property
    def finite(self) -> bool:
        return self.length is not None

    def indices(self, step: int, rank: int, world_size: int, micro: int) -> list[int]:
        """Sample indices of a slice, in order."""
        numbers = sample_numbers(step, rank, world_size, micro, self.config)
        if self.length is None:
            return list(numbers)
        return [place_of(number, self.length, self.config.seed)[1] for number in numbers]

    def batch(self, step: int, rank: int, world_size: int, micro: int) -> Batch:
        return self.collate(self.indices(step, rank, world_size, micro))


class StagedBatches:
    """Other data in every stage of a run."""

    def __init__(self, stages: Sequence[TrainingData], config: TrainConfig) -> None:
        self.stages, self.config = stages, config

    @property
    def finite(self) -> bool:
        return any(data.finite for data in self.stages)

    def batch(self, step: int, rank: int, world_size: int, micro: int) -> Batch:
        return self.stages[stage_of(self.config, step)[0]].batch(step, rank, world_size, micro)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


class Prefetch:
    """Gives the batches of `steps` in order, prepared ahead by one thread or by `workers` processes."""

    def __init__(self, data: TrainingData, steps: range, rank: int, world_size: int, config: TrainConfig, pin: bool) -> None:
        requests = [(step, micro) for step in steps for micro in range(config.accumulation)]
        source = _Source(data, rank, world_size)
        self._pool: ThreadPoolExecutor | None = None
        self._batches: Iterator[Any]
        if config.workers:
            loader: DataLoader[Any] = DataLoader(
                source,
                batch_size=None,
                sampler=requests,
                num_workers=config.workers,
                prefetch_factor=config.prefetch,
                collate_fn=_same,
                pin_memory=pin,
                worker_init_fn=_ignore_signals,
            )
            self._batches = iter(loader)
        else:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="tessera-data")
            self._batches = self._ahead(source, requests, config.prefetch, self._pool)

    def next(self) -> Batch:
        """The next batch. Raises what `data.batch` raised."""
        batch: Batch | TesseraError = next(self._batches)
        if isinstance(batch, TesseraError):
            raise batch
        return batch

    def close(self) -> None:
        """Stops the thread or the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._batches = iter(())

    @staticmethod
    def _ahead(source: _Source, requests: Sequence[Request], depth: int, pool: ThreadPoolExecutor) -> Iterator[Any]:
        pending: deque[Future[Any]] = deque()
        for request in requests:
            pending.append(pool.submit(source.__getitem__, request))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Source(Dataset[Any]):
    """A request to its batch; an error for people travels as a value, so that its sentence stays whole."""

    def __init__(self, data: TrainingData, rank: int, world_size: int) -> None:
        self.data, self.rank, self.world_size = data, rank, world_size

    def __getitem__(self, request: Request) -> Any:
        try:
            return self.data.batch(request[0], self.rank, self.world_size, request[1])
        except TesseraError as error:
            return error


def _same(batch: Any) -> Any:
    return batch


def _ignore_signals(worker: int) -> None:
    # They go to the whole process group; the trainer finishes its step and ends its workers itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
