"""Write the YAML files of a task folder: a task per template and language, a group per template and list of languages.

    python tasks/generate.py                # every folder here that has a languages.txt
    python tasks/generate.py tasks/nusax    # one of them

A template is a file whose name begins with an underscore and has no suffix: `_sib200_bloom` makes the tasks
`sib200_bloom_<language>`, one for each line of `languages.txt`, in the folder `sib200_bloom/`, and the group
`sib200_bloom`. Each further list, such as `languages_paper.txt`, makes one more group: `sib200_bloom_paper`.
"""

from __future__ import annotations

import sys
from pathlib import Path

GROUP = """\
group: {group}
task:
{tasks}
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
  - metric: macro_f1
    weight_by_size: true
metadata:
  version: 1.0
"""


def generate(folder: Path) -> dict[str, str]:
    """Return the text of every file to write, under its path relative to `folder`."""
    lists = {path.stem.removeprefix("languages"): path.read_text().split() for path in folder.glob("languages*.txt")}
    files = {}
    for template in (path for path in folder.glob("_*") if path.is_file()):
        family = template.name.removeprefix("_")
        for language in lists[""]:
            files[f"{family}/{family}_{language}.yaml"] = (
                f"include: ../{template.name}\ntask: {family}_{language}\ndataset_name: {language}\n"
            )
        for suffix, languages in lists.items():
            tasks = "\n".join(f"  - {family}_{language}" for language in languages)
            files[f"{family}/{family}{suffix}.yaml"] = GROUP.format(group=family + suffix, tasks=tasks)
    return files


def main() -> None:
    """Write the files of the folders named on the command line; the default is every folder beside this script."""
    folders = list(map(Path, sys.argv[1:])) or [path.parent for path in Path(__file__).parent.glob("*/languages.txt")]
    for folder in folders:
        files = generate(folder)
        for path, text in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        print(f"{folder}: {len(files)} files written")


if __name__ == "__main__":
    main()
