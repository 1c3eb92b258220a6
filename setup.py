"""The build step that setup.cfg can not express; all else is there.

An install puts two things beside or into the package that do not lie there in a checkout: the start-up file
``lm_eval_spt.pth``, which must end at the root of site-packages, and the folder ``tasks``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

STARTUP_FILE = "lm_eval_spt.pth"


class BuildExtras(Command):
    """Add the start-up file and the tasks to what is built; a sub-command of setuptools' ``build``."""

    description = "add the start-up file and the tasks"
    user_options: list[tuple[str, str | None, str]] = []
    editable_mode = False  # setuptools sets it for `pip install -e`

    def initialize_options(self) -> None:
        self.build_lib = ""

    def finalize_options(self) -> None:
        self.build_lib = self.get_finalized_command("build").build_lib

    def run(self) -> None:
        if self.editable_mode:
            # The tasks stay where they are. `install_lib` is the folder whose content becomes the editable wheel.
            self.copy_file(STARTUP_FILE, self.get_finalized_command("install").install_lib)
            return
        shutil.rmtree(Path(self.build_lib, "lm_eval_spt", "tasks"), ignore_errors=True)  # of an earlier build
        for built, source in self.get_output_mapping().items():
            self.mkpath(os.path.dirname(built))
            self.copy_file(source, built)
        self.copy_file(STARTUP_FILE, self.build_lib)

    def get_output_mapping(self) -> dict[str, str]:
        files = (path for path in Path("tasks").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {os.path.join(self.build_lib, "lm_eval_spt", path): str(path) for path in sorted(files)}

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())

    def get_source_files(self) -> list[str]:
        return [STARTUP_FILE, *self.get_output_mapping().values()]


class Build(build):
    sub_commands = [*build.sub_commands, ("build_extras", None)]


setup(cmdclass={"build": Build, "build_extras": BuildExtras})
