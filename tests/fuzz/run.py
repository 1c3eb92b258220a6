"""Give a reader damaged files and see what comes of it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import mutate
from tests.fuzz.readers import Reader

FAILURES = Path(__file__).parent / "failures"
MAX_SECONDS = 2.0  # of processor time for one file: what others do on the machine does not count
MAX_GROWTH = 256 * 2**20  # bytes that the process may grow by over a run


class Failure(AssertionError):
    """A reader did something else than read or refuse."""


@dataclass
class Outcome:
    """What a run came to: how many files were read and how many refused, the slowest one, and the memory taken."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    growth: int = 0


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Within this context there is a folder, in memory where the system offers that, and it is the current one."""
    memory, before = Path("/dev/shm"), Path.cwd()
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def give(reader: Reader, data: bytes, folder: Path, outcome: Outcome) -> None:
    """Let a reader read one file.

    Raises:
        Failure: it raised what it does not document, an error of several lines, or took too long.
    """
    path = folder / reader.file
    path.write_bytes(data)
    started = time.process_time()
    try:
        reader.read(path)
        outcome.read += 1
    except reader.errors as error:
        outcome.refused += 1
        if not str(error) or "\n" in str(error) or len(str(error)) > 4000:
            raise Failure(f"{reader.name}: an error is one line, this is {str(error)[:500]!r}") from error
    except Exception as error:
        raise Failure(f"{reader.name}: {type(error).__name__}: {str(error)[:200]}") from error
    taken = time.process_time() - started
    outcome.slowest = max(outcome.slowest, taken)
    if taken > MAX_SECONDS:
        raise Failure(f"{reader.name}: {taken:.1f} s of processor time")


def read_valid_files(reader: Reader, folder: Path) -> None:
    """Let a reader read the valid files; what it loads only once is then loaded."""
    for data in reader.seeds:
        (folder / reader.file).write_bytes(data)
        reader.read(folder / reader.file)


def run(reader: Reader, inputs: int, seed: int, folder: Path) -> Outcome:
    """Give a reader `inputs` damaged files; a failing one is kept in ``failures``.

    Half of the files are valid ones that were damaged; the others were damaged before, and got as far as any.
    """
    rng = random.Random(f"{seed} {reader.name}")
    outcome = Outcome()
    read_valid_files(reader, folder)
    pool = list(reader.seeds)
    before = peak()
    for _ in range(inputs):
        data = mutate(rng.choice(reader.seeds if rng.random() < 0.5 else pool), reader.kind, rng)[: 2**16]
        refused = outcome.refused
        try:
            give(reader, data, folder, outcome)
        except Failure as failure:
            raise Failure(f"{failure}\nthe file is kept: {save_record(reader, data)}") from failure.__cause__
        if outcome.refused == refused and data not in pool:  # still read: what comes next is damaged twice
            pool.append(data)
            if len(pool) > 200:
                del pool[rng.randrange(len(reader.seeds), len(pool))]
    outcome.growth = peak() - before
    if outcome.growth > MAX_GROWTH:
        raise Failure(f"{reader.name}: the process grew by {outcome.growth / 2**20:.0f} MiB")
    return outcome


def save_record(reader: Reader, data: bytes) -> Path:
    """Put a file that a reader failed on where the short run finds it."""
    folder = FAILURES / reader.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{random.Random(data).getrandbits(48):012x}"
    path.write_bytes(data)
    return path


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
