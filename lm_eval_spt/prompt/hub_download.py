"""Prompts in repositories on the Hugging Face Hub: fetch the prompt, and no other file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.peft import PEFT_CONFIG, PEFT_WEIGHTS

REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str) -> bool:
    """Whether a name is a repository's on the Hub: ``owner/name`` that is no path of this machine and no file's."""
    is_path = name.startswith((".", "/", "~")) or name.endswith((".safetensors", ".gguf")) or os.path.exists(name)
    return bool(REPOSITORY_ID.fullmatch(name)) and not is_path


def download(repository: str, revision: str | None) -> Path:
    """Fetch the prompt in a repository into the Hub's cache.

    Without a connection a copy that is already in the cache will do.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; None for the default branch.

    Returns:
        The local folder: a PEFT adapter's, or one with a single prompt file.

    Raises:
        UserError: no such repository or revision, none or several prompts in it, or the Hub can not be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=10)
        names = [sibling.rfilename for sibling in info.siblings or []]
        wanted = [PEFT_CONFIG, PEFT_WEIGHTS]
        if PEFT_CONFIG not in names:
            wanted = [name for name in names if re.fullmatch(r"[^/]+\.safetensors", name)]
            if len(wanted) != 1:
                raise UserError(
                    f"prompt {repository!r}: the Hub repository holds {len(wanted)} .safetensors files and no "
                    f"{PEFT_CONFIG}: name one that holds a single prompt file or a PEFT adapter"
                )
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except UserError:
        raise
    except RepositoryNotFoundError:
        raise UserError(
            f"prompt {repository!r}: no such file, and no such repository on the Hub that you may read: check the "
            "name, or log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"prompt {repository!r}: the Hub repository has no revision {revision!r}: check it") from None
    except Exception as error:  # which ones mean "no connection" differs between versions of the Hub's client
        try:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            raise UserError(
                f"prompt {repository!r}: no such file, and the Hub, which may have a repository of that name, could "
                f"not be reached ({' '.join(str(error).split())}): check the path or the connection"
            ) from None
