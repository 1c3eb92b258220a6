"""Write the tables of docs/sib200.md from the results files beside this script: python results/sib200/tables.py"""

from __future__ import annotations

from pathlib import Path

from lm_eval_spt.files import write
from lm_eval_spt.transfer.report import transfer_table
from lm_eval_spt.transfer.results import Score, mean_over_runs, read_run, results_files

HERE = Path(__file__).parent
SOURCE, MAJORITY = "eng_Latn", 0.25

# The name of a table -> its arms, and the folders of their runs.
TABLES = {
    "21_languages": {
        "no prompt": "no_prompt",
        "instruction": "instruction",
        "template, not trained": "mini+template@*",
        "suffix, all (4 seeds)": "all_seed*",
        "suffix, 8 per class (4 seeds)": "8shot_seed*",
        "suffix, P = 50 (1 seed)": "mini+mini_eng_suffix50@*",
        "prefix (1 seed)": "mini+mini_eng_prefix16@*",
    },
    "205_languages": {
        "no prompt": "no_prompt",
        "instruction": "instruction",
        "suffix, all (the shipped prompt)": "mini+mini_eng_suffix16@*",
    },
}


def read(pattern: str, metric: str) -> dict[str, Score]:
    """Return the mean over the runs in the folders that match."""
    files = [file for folder in sorted(HERE.glob(pattern)) for file in results_files(folder)]
    return mean_over_runs([read_run(file) for file in files], metric)


def main() -> None:
    """Write the tables of accuracy and macro-F1, such as 21_languages_acc.md."""
    for table, arms in TABLES.items():
        for metric, majority in (("acc", MAJORITY), ("macro_f1", None)):
            scores = {name: read(f"{table}/{folder}", metric) for name, folder in arms.items()}
            write(HERE / f"{table}_{metric}.md", transfer_table(scores, SOURCE, majority).encode())


if __name__ == "__main__":
    main()
