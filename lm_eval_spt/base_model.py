"""Base models by name: ``mini`` is the one that ships with the package, everything else is a folder or a Hub id."""

from __future__ import annotations

import os

from lm_eval_spt.errors import UserError
from lm_eval_spt.paths import mini_model_folder

MINI = "mini"


def resolve(name: str) -> str:
    """Return what ``from_pretrained`` understands: the embedded model's folder for ``mini``, else `name` itself."""
    return str(mini_model_folder()) if name == MINI else name


def locate(name: str, revision: str | None = None) -> str:
    """Return :func:`resolve`'s answer after making sure that there is such a model.

    Asks the Hub for the model's configuration alone, which fails at once where loading would retry an unreachable Hub
    for a minute.

    Raises:
        UserError: neither a folder nor a model that the Hub, or the local cache of it, has.
    """
    from huggingface_hub import snapshot_download

    path = resolve(name)
    if not os.path.isdir(path):
        try:
            snapshot_download(path, revision=revision, allow_patterns="config.json")
        except (OSError, ValueError) as error:
            raise cannot_load(name, error) from error
    return path


def cannot_load(name: str, error: Exception) -> UserError:
    """Return the error to raise where base model `name` can not be loaded because of `error`."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(
        f"the base model {name!r} can not be loaded ({reason}): expected 'mini', a folder, or a Hub id that can be "
        "reached or is in the local cache"
    )
