"""``python -m lm_eval_spt.cli`` is ``lm-eval-spt``."""

import sys

from lm_eval_spt.cli import main

if __name__ == "__main__":
    sys.exit(main())
