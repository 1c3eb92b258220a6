"""Write the golden numbers anew, after a change that is meant to shift them.

python -m tests.golden tiny       # tiny random models of all families
python -m tests.golden mini       # the embedded model and the prompts that ship: after either is replaced
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer

from lm_eval_spt.common.files import write
from lm_eval_spt.inference.base_model import model_path
from tests.golden.numbers import mini_numbers, tiny_numbers
from tests.helpers.models import FAMILIES


def main(which: list[str]) -> int:
    """Write the files that are named."""
    if not which or set(which) - {"tiny", "mini"}:
        print(__doc__, file=sys.stderr)
        return 2
    for name in which:
        if name == "tiny":
            tokenizer = AutoTokenizer.from_pretrained(model_path("mini"))
            numbers: dict = {family: tiny_numbers(family, tokenizer) for family in FAMILIES}
        else:
            numbers = mini_numbers()
        made_with = {library: version(library) for library in ("torch", "transformers", "lm_eval")}
        path = Path(__file__).with_name(f"{name}.json")
        write(path, (json.dumps({"made_with": made_with, **numbers}, ensure_ascii=False, indent=1) + "\n").encode())
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
