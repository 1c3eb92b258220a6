"""Write the tables of all 205 languages from the results beside this script: python -m results.sib200.tables"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lm_eval_spt.analysis.report import transfer_table
from lm_eval_spt.analysis.results import Score, mean_over_runs, read_run, results_files
from lm_eval_spt.common.files import write
from results.archive import unpack

HERE = Path(__file__).parent
SOURCE, MAJORITY = "eng_Latn", 0.25

# The name of an arm -> the folder of its run.
ARMS = {
    "no prompt": "no_prompt",
    "instruction": "instruction",
    "suffix, all (the shipped prompt)": "mini+mini_eng_suffix16@*",
}


def read(folder: Path, metric: str) -> dict[str, Score]:
    """Return the scores of the run in a folder."""
    return mean_over_runs([read_run(file) for file in results_files(folder)], metric)


def write_tables(output: Path) -> None:
    """Write the tables of accuracy and macro-F1 into the folder `output`."""
    with tempfile.TemporaryDirectory() as folder:
        results = unpack(HERE / "205_languages.tar.xz", Path(folder))
        for metric, majority in (("acc", MAJORITY), ("macro_f1", None)):
            scores = {name: read(next(results.glob(pattern)), metric) for name, pattern in ARMS.items()}
            write(output / f"205_languages_{metric}.md", transfer_table(scores, SOURCE, majority).encode())


if __name__ == "__main__":
    write_tables(HERE)
