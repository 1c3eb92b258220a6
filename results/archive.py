"""Pack the harness's results files into one small file, and unpack them: python -m results.archive FOLDER

A run leaves some hundred kilobytes, most of them the tasks' settings, once for every language. An archive holds only
what `lm_eval_spt.analysis` reads: of compact samples all but the log-likelihoods. What is unpacked are results and
samples files again, for every command that reads some.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, Table, parquet

from lm_eval_spt.analysis.results import CONTEXT, read_runs, results_files
from lm_eval_spt.common.errors import UserError, show_user_errors_in_one_line
from lm_eval_spt.common.files import MAX_RESULTS_FILE, parse_json, read_text, write
from lm_eval_spt.harness.samples import as_parquet, samples_path

KEPT = (
    "results",
    "group_subtasks",
    "versions",
    "n-shot",
    "n-samples",
    "higher_is_better",
    "config",
    "date",
    "lm_eval_version",
    "model_name",
    *CONTEXT,
)


def pack(folder: Path, archive: Path) -> None:
    """Write all results files under `folder` into one file.

    Args:
        folder: the files' paths in the archive are relative to it.
        archive: what to write, `.tar.xz`. The same results give the same bytes.

    Raises:
        UserError: there is no results file in `folder`, or one that can not be read.
    """
    results, samples = {}, {}
    for path in results_files(folder):
        samples_of_run = compact_samples(path)  # refuses what no command could read later
        content = parse_json(read_text(path, MAX_RESULTS_FILE))
        results[path] = json.dumps({key: content[key] for key in KEPT if key in content}).encode()
        if samples_of_run is not None:
            samples[samples_path(path)] = _without_loglikelihoods(samples_of_run)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:xz", preset=9) as tar:
        for path, content in (results | samples).items():  # what is alike is packed side by side: it takes less room
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write(archive, target.getvalue())


def compact_samples(path: Path) -> Table | None:
    """Return the samples of a results file in their compact form, also those that the harness wrote as JSON lines.

    Raises:
        UserError: the results, or the samples, can not be read.
    """
    runs, compact = read_runs(path), samples_path(path)
    lines = {task: run.samples_file(language) for run in runs for language, task in run.tasks.items()}
    try:
        if compact.is_file():
            return parquet.read_table(compact)
        if not all(file.is_file() for file in lines.values()):
            return None
        return parquet.read_table(io.BytesIO(as_parquet({task: _parsed(file) for task, file in lines.items()})))
    except (OSError, ValueError, KeyError, TypeError, ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the samples of {path} can not be read ({reason}): expected what the harness wrote") from None


def _parsed(lines: Path) -> list[Any]:
    with lines.open(encoding="utf-8") as file:
        return [parse_json(line) for line in file if line.strip()]


def _without_loglikelihoods(samples: Table) -> bytes:
    table = samples.drop_columns(["loglikelihoods"]) if "loglikelihoods" in samples.column_names else samples
    target = io.BytesIO()
    # The archive is compressed as a whole, which finds what files have in common: half the size.
    parquet.write_table(table, target, compression="none", use_dictionary=False, write_statistics=False)
    return target.getvalue()


def unpack(archive: Path, folder: Path) -> Path:
    """Write the results files in an archive under `folder`, and return the folder.

    Raises:
        UserError: there is no such archive, or it is none.
    """
    try:
        # All of it is read before a file is written: `tarfile` takes an archive that lacks its end.
        with tarfile.open(fileobj=io.BytesIO(lzma.decompress(archive.read_bytes()))) as tar:
            files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            contents = {name: file.read() for name, file in files.items() if file is not None}
    except (OSError, lzma.LZMAError, tarfile.TarError) as error:
        expected = "expected what python -m results.archive writes"
        raise UserError(f"{archive} can not be read ({error}): {expected}") from None
    for name, content in contents.items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{archive} holds {name}, which is outside of {folder}: do not use it")
        write(folder / name, content)
    return folder


def main() -> None:
    show_user_errors_in_one_line()
    parser = argparse.ArgumentParser(prog="python -m results.archive", description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path, help="folder with results files; FOLDER.tar.xz is written from them")
    parser.add_argument("--unpack", action="store_true", help="write the files from FOLDER.tar.xz instead")
    arguments = parser.parse_args()
    archive = arguments.folder.with_name(f"{arguments.folder.name}.tar.xz")
    if arguments.unpack:
        unpack(archive, arguments.folder)
    else:
        pack(arguments.folder, archive)


if __name__ == "__main__":
    main()
