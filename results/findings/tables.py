"""Write the tables that docs/findings.md reads out, from the results of the sweeps: python results/findings/tables.py

The results lie beside this script, one folder for each run, as `lm-eval-spt sweep configs/findings/<name>.yaml` left
them under `sweeps/findings-<name>/results`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ARMS = ("frozen", "all", "model", "lora")
KINDS = ("none", "mlp", "residual", "xpe", "dual")
LENGTHS = (10, 1, 2, 5, 20, 50)  # the first is what the others are compared with

# The name of a table -> its arms, the first one being the reference: their names and the folders of their runs.
TABLES: dict[str, dict[str, str]] = {
    **{
        f"arms-{shots}": {arm: f"arms/{arm}-shots_{value}-seed*" for arm in ARMS}
        for shots, value in (("8", "8"), ("32", "32"), ("all", "none"))
    },
    **{
        f"lengths-{start}": {f"P={length}": f"lengths/{start}-prompt_length{length}-seed*" for length in LENGTHS}
        for start in ("text", "random")
    },
    "reparameterization": {kind: f"reparameterization/reparameterization_{kind}-seed*" for kind in KINDS},
}


def main() -> None:
    """Write a Markdown file for each table."""
    for table, arms in TABLES.items():
        runs = [f"{arm}={folder}" for arm, pattern in arms.items() for folder in sorted(HERE.glob(pattern))]
        command = [sys.executable, "-m", "lm_eval_spt.cli", "transfer", *runs, "--output", str(HERE / f"{table}.md")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
