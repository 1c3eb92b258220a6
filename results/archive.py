"""Pack the harness's results files into one small file, and unpack them: python -m results.archive FOLDER

A run leaves some hundred kilobytes, most of them the tasks' settings, once for every language. An archive holds only
what `lm_eval_spt.analysis` reads: of compact samples all but the log-likelihoods. What is unpacked are results and
samples files again, for every command that reads some.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import zlib
from pathlib import Path

from pyarrow import ArrowException, parquet

from lm_eval_spt.analysis.results import read_runs, results_files
from lm_eval_spt.common.errors import UserError, show_user_errors_in_one_line
from lm_eval_spt.common.files import MAX_RESULTS_FILE, parse_json, read_text, write
from lm_eval_spt.harness.samples import samples_path

KEPT = (
    "results",
    "group_subtasks",
    "versions",
    "n-shot",
    "n-samples",
    "config",
    "date",
    "lm_eval_version",
    "model_name",
)


def pack(folder: Path, archive: Path) -> None:
    """Write all results files under `folder` into one file.

    Args:
        folder: the files' paths in the archive are relative to it.
        archive: gzipped JSON, path to content, which is base64 for samples. The same results give the same bytes.

    Raises:
        UserError: there is no results file in `folder`, or one that can not be read.
    """
    lines = []
    for path in results_files(folder):
        read_runs(path)  # refuses what no command could read later
        content = parse_json(read_text(path, MAX_RESULTS_FILE))
        kept = {key: content[key] for key in KEPT if key in content}
        lines.append(f"{json.dumps(path.relative_to(folder).as_posix())}: {json.dumps(kept)}")
        samples = samples_path(path)
        if samples.is_file():
            as_text = base64.b64encode(_without_loglikelihoods(samples)).decode()
            lines.append(f"{json.dumps(samples.relative_to(folder).as_posix())}: {json.dumps(as_text)}")
    write(archive, gzip.compress(("{\n" + ",\n".join(lines) + "\n}\n").encode(), mtime=0))


def _without_loglikelihoods(samples: Path) -> bytes:
    try:
        columns = [name for name in parquet.read_schema(samples).names if name != "loglikelihoods"]
        table = parquet.read_table(samples, columns=columns)
    except (OSError, ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{samples} can not be read ({reason}): expected compact samples") from None
    target = io.BytesIO()
    parquet.write_table(table, target, compression="zstd")
    return target.getvalue()


def unpack(archive: Path, folder: Path) -> Path:
    """Write the results files in an archive under `folder`, and return the folder.

    Raises:
        UserError: there is no such archive, or it is none.
    """
    try:
        contents = parse_json(gzip.decompress(archive.read_bytes()).decode())
        files = {
            name: base64.b64decode(content, validate=True) if isinstance(content, str) else json.dumps(content).encode()
            for name, content in contents.items()
        }
    except (OSError, EOFError, zlib.error, ValueError, AttributeError) as error:
        expected = "expected what python -m results.archive writes"
        raise UserError(f"{archive} can not be read ({error}): {expected}") from None
    for name, content in files.items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{archive} holds {name}, which is outside of {folder}: do not use it")
        write(folder / name, content)
    return folder


def main() -> None:
    show_user_errors_in_one_line()
    parser = argparse.ArgumentParser(prog="python -m results.archive", description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path, help="folder with results files; FOLDER.json.gz is written from them")
    parser.add_argument("--unpack", action="store_true", help="write the files from FOLDER.json.gz instead")
    arguments = parser.parse_args()
    archive = arguments.folder.with_name(f"{arguments.folder.name}.json.gz")
    if arguments.unpack:
        unpack(archive, arguments.folder)
    else:
        pack(arguments.folder, archive)


if __name__ == "__main__":
    main()
