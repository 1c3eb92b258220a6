"""``python -m lm_eval_spt ...`` is ``lm_eval ...`` where start-up files are not read, as with ``python -S``.

Importing the package has already armed the hook that the start-up file arms elsewhere; see
:mod:`lm_eval_spt.harness.discovery`.
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
