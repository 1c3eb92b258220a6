"""The long run: commands are disturbed in every way, looked at, run again, and compared with undisturbed ones.

    make faults                                        # 600 injections, most into the write, which is quick
    python -m tests.faults --injections 5000 --seed 1 --job evaluate

At its end a training run is killed again and again, and goes on each time. Prints what was injected, as the table of
docs/reliability.md. A fault that does harm ends in status 1, and the folder in which it did is kept.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.trial import Broken, Trials, jobs, temporary_root


def main() -> int:
    """Run the injections that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Disturb commands.")
    parser.add_argument("--injections", type=int, default=600, help="in all (default: 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", action="append", help="only this one; can be given again")
    parser.add_argument("--kills", type=int, default=20, help="of a training run that goes on (default: 20)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start none after that time")
    parser.add_argument("--at-once", type=int, default=2, help="how many at a time (default: 2)")
    arguments = parser.parse_args()
    started = time.monotonic()
    done: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    with temporary_root() as name:
        root = Path(name)
        trials = Trials(root)
        chosen = [job for job in jobs(root).values() if not arguments.job or job.name in arguments.job]
        for job in chosen:
            expected = trials.undisturbed(job)
            print(
                f"{job.name}: {expected.operations} file operations, {expected.seconds:.1f} s undisturbed", flush=True
            )

        def one(number: int) -> None:
            if time.monotonic() - started > 60 * arguments.minutes:
                return
            rng = random.Random(f"{arguments.seed} {number}")
            (job,) = rng.choices(chosen, [job.share for job in chosen])
            try:
                kind = trials.inject(job, rng)
            except Broken as broken:
                failures.append(str(broken))
                print(broken, file=sys.stderr, flush=True)
            else:
                done[job.name, kind] += 1
                if done.total() % 50 == 0:
                    print(f"{done.total()} of {arguments.injections}", flush=True)

        with ThreadPoolExecutor(arguments.at_once) as pool:
            list(pool.map(one, range(arguments.injections)))
        again = next((job for job in chosen if job.name == "resume"), None)
        if again is not None and arguments.kills:
            try:
                ended = trials.kill_again_and_again(again, arguments.kills, random.Random(arguments.seed))
                done["resume", "SIGKILL"] += arguments.kills
                print(f"{arguments.kills} kills of a run that goes on after each; {ended} runs came to their ends")
            except Broken as broken:
                failures.append(str(broken))
                print(broken, file=sys.stderr, flush=True)
        if failures:
            kept = tempfile.mkdtemp(prefix="faults-")
            shutil.copytree(root, kept, dirs_exist_ok=True)
            print(f"{len(failures)} faults did harm; the folders are kept in {kept}", file=sys.stderr)
    kinds = sorted({kind for _, kind in done})
    names = [job.name for job in chosen]
    print(f"\n| | {' | '.join(names)} |\n|---{'|---:' * len(names)}|")
    for kind in kinds:
        print(f"| {kind} | {' | '.join(str(done[name, kind]) for name in names)} |")
    minutes = (time.monotonic() - started) / 60
    print(f"\n{sum(done.values())} injections without harm, {len(failures)} with harm, in {minutes:.0f} minutes")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
