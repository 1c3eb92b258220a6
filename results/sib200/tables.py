"""Write the tables of all 205 languages from the results files beside this script: python results/sib200/tables.py"""

from __future__ import annotations

from pathlib import Path

from lm_eval_spt.analysis.report import transfer_table
from lm_eval_spt.analysis.results import Score, mean_over_runs, read_run, results_files
from lm_eval_spt.common.files import write

HERE = Path(__file__).parent
SOURCE, MAJORITY = "eng_Latn", 0.25

# The name of an arm -> the folder of its run.
ARMS = {
    "no prompt": "no_prompt",
    "instruction": "instruction",
    "suffix, all (the shipped prompt)": "mini+mini_eng_suffix16@*",
}


def read(folder: str, metric: str) -> dict[str, Score]:
    """Return the scores of the run in the folder that matches."""
    files = [file for found in (HERE / "205_languages").glob(folder) for file in results_files(found)]
    return mean_over_runs([read_run(file) for file in files], metric)


def main() -> None:
    """Write the tables of accuracy and macro-F1."""
    for metric, majority in (("acc", MAJORITY), ("macro_f1", None)):
        scores = {name: read(folder, metric) for name, folder in ARMS.items()}
        write(HERE / f"205_languages_{metric}.md", transfer_table(scores, SOURCE, majority).encode())


if __name__ == "__main__":
    main()
