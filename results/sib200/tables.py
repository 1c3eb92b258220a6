"""Write the two tables of docs/sib200.md from the results files beside this script: python results/sib200/tables.py"""

from __future__ import annotations

from pathlib import Path

from lm_eval_spt.files import write
from lm_eval_spt.transfer.report import transfer_table
from lm_eval_spt.transfer.results import Score, mean_over_runs, read_run, results_files

HERE = Path(__file__).parent
SOURCE, MAJORITY = "eng_Latn", 0.25
EMBEDDED = [line.strip() for line in (HERE.parents[1] / "tasks/mini_topics/languages.txt").read_text().splitlines()]

FEW = {
    "no prompt": "no_prompt",
    "instruction": "instruction",
    "template, not trained": "21_languages/mini+template@*",
    "suffix, all (4 seeds)": "21_languages/mini+all_seed*",
    "suffix, 8 per class (4 seeds)": "21_languages/mini+8shot_seed*",
    "suffix, P = 50 (1 seed)": "21_languages/mini+mini_eng_suffix50*",
    "prefix (1 seed)": "21_languages/mini+mini_eng_prefix16*",
}
ALL = {"no prompt": "no_prompt", "instruction": "instruction", "suffix, all (seed 0)": "prompt"}


def read(pattern: str, metric: str) -> dict[str, Score]:
    """Return the mean over the runs in the folders that match."""
    return mean_over_runs([read_run(p) for place in sorted(HERE.glob(pattern)) for p in results_files(place)], metric)


def main() -> None:
    """Write 21_languages.md and 205_languages.md, for accuracy and macro-F1."""
    for metric, majority in (("acc", MAJORITY), ("macro_f1", None)):
        few = {name: read(pattern, metric) for name, pattern in FEW.items()}
        few = {name: {code: of[code] for code in EMBEDDED if code in of} for name, of in few.items()}
        every = {name: read(pattern, metric) for name, pattern in ALL.items()}
        write(HERE / f"21_languages_{metric}.md", transfer_table(few, SOURCE, majority).encode())
        write(HERE / f"205_languages_{metric}.md", transfer_table(every, SOURCE, majority).encode())


if __name__ == "__main__":
    main()
