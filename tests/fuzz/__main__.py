"""The long run: every reader is given damaged files until one fails or there were enough.

    make fuzz                                                  # all readers, 200,000 files each
    python -m tests.fuzz prompt results --inputs 1000000       # these two
    python -m tests.fuzz --seed 1                              # other files

With atheris installed (``pip install 'lm_eval_spt[fuzz]'``) half of the files are guided by the code that they reach;
without it all are drawn as in the short run. What fails is kept in ``tests/fuzz/failures``, and every ``make test``
repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["lm_eval_spt"]) if atheris else contextlib.nullcontext():
    from tests.fuzz.mutations import mutate
    from tests.fuzz.readers import READERS, Reader
    from tests.fuzz.run import MAX_GROWTH, Failure, Outcome, give, peak, read_valid_files, run, save_record, workplace


def main() -> int:
    """Fuzz the readers that the command line names, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Give readers damaged files.")
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}; default: all")
    parser.add_argument("--inputs", type=int, default=200_000, help="files for each reader (default: 200000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.readers) - set(READERS):
        parser.error(f"there is no reader {', '.join(unknown)}: expected some of {', '.join(READERS)}")
    if arguments.alone:
        fuzz(READERS[arguments.readers[0]], arguments.inputs, arguments.seed)
        return 0
    failed = []
    for name in arguments.readers or READERS:
        command = [sys.executable, "-m", "tests.fuzz", name, "--alone"]
        command += ["--inputs", str(arguments.inputs), "--seed", str(arguments.seed)]
        done = subprocess.run(command, stdout=None, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: FAILED\n{done.stderr[-4000:]}", file=sys.stderr)
            failed.append(name)
    return 1 if failed else 0


def fuzz(reader: Reader, inputs: int, seed: int) -> None:
    """Fuzz one reader and print what came of it."""
    started = time.perf_counter()
    with workplace() as folder:
        if atheris is None:
            _print(reader, "drawn", run(reader, inputs, seed, folder), started)
        else:
            _guided(reader, inputs, seed, folder, started)


def _guided(reader: Reader, inputs: int, seed: int, folder: Path, started: float) -> None:
    """Let libFuzzer decide which files to damage further. It ends the process, so that nothing comes after."""
    read_valid_files(reader, folder)
    outcome, before = Outcome(), peak()

    def one(data: bytes) -> None:
        try:
            give(reader, data, folder, outcome)
            outcome.growth = peak() - before
            if outcome.growth > MAX_GROWTH:
                raise Failure(f"{reader.name}: the process grew by {outcome.growth / 2**20:.0f} MiB")
        except Failure:
            print(f"the file is kept: {save_record(reader, data)}", file=sys.stderr)
            raise
        if outcome.read + outcome.refused == inputs:
            _print(reader, "guided by coverage", outcome, started)

    def damage(data: bytes, max_size: int, chosen: int) -> bytes:
        rng = random.Random(chosen)
        # What reaches new code is mostly refused, and so is what comes of it: half of the files start from valid ones.
        return mutate(rng.choice((data, rng.choice(reader.seeds))), reader.kind, rng)[:max_size]

    corpus = Path(tempfile.mkdtemp(dir=folder))
    for number, content in enumerate(reader.seeds):
        (corpus / str(number)).write_bytes(content)
    limits = [f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=65536", "-timeout=60", "-rss_limit_mb=4096"]
    quiet = ["-print_final_stats=0", "-verbosity=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, *quiet, str(corpus)], one, custom_mutator=damage)
    atheris.Fuzz()


def _print(reader: Reader, how: str, outcome: Outcome, started: float) -> None:
    print(
        f"{reader.name}: {outcome.read + outcome.refused:,} files ({how}), {outcome.read:,} read, {outcome.refused:,} "
        f"refused, slowest {1000 * outcome.slowest:.0f} ms, memory grew by {outcome.growth / 2**20:.0f} MiB, "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
