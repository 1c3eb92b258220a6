"""Upload a soft prompt, with its model card and its results, to a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.hub.eval_results import eval_results
from lm_eval_spt.hub.model_card import CARD, model_card, read_card, runs_of
from lm_eval_spt.prompt.hub_download import REPOSITORY_ID
from lm_eval_spt.prompt.soft_prompt import SoftPrompt


def push(prompt: SoftPrompt, repository: str, arms: Sequence[Arm] = (), private: bool = False) -> str:
    """Upload a prompt, its card and its results to a repository on the Hub, in one commit.

    A prefix prompt is uploaded as a PEFT adapter, which PEFT and this package load; a suffix prompt as a prompt file.
    Afterwards ``prompt=<repository>`` loads it.

    Args:
        prompt: what to upload.
        repository: ``owner/name``; created where there is none.
        arms: as for :func:`model_card`; all their results files are uploaded, and the prompt's own scores as
            :mod:`lm_eval_spt.hub.eval_results`.
        private: whether a repository that is created can be seen by its owner alone.

    Returns:
        The commit's address.

    Raises:
        UserError: the repository holds another prompt, may not be written, or the Hub can not be reached.
    """
    if not REPOSITORY_ID.fullmatch(repository):
        raise UserError(f"{repository!r} is not a repository on the Hub: expected owner/name")
    api = HfApi()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if prompt.placement == "prefix":
            prompt.to_peft(folder)
        else:
            prompt.save(folder / f"{prompt.name}.safetensors")
        for arm in arms:
            for run in arm.runs:
                target = folder / "results" / run.path.parent.name / run.path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.path, target)
        for path, content in eval_results(runs_of(prompt, arms), repository).items():
            target = folder / path
            target.parent.mkdir(exist_ok=True)
            target.write_text(content, encoding="utf-8")
        try:
            existing = _existing_card(api, repository, {path.name for path in folder.glob("*.safetensors")})
            (folder / CARD).write_text(model_card(prompt, repository, arms, existing), encoding="utf-8")
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"Soft prompt {prompt.name}"
            )
        except UserError:
            raise
        except HFValidationError as error:
            raise UserError(f"{repository!r} is not a repository on the Hub: {error}") from None
        except Exception as error:  # which ones mean "no connection" differs between versions of the Hub's client
            raise UserError(_what_went_wrong(repository, error)) from error
    return str(commit.commit_url)


def _existing_card(api: HfApi, repository: str, prompts: set[str]) -> str:
    """The card that the repository has; UserError where it holds a prompt file that `prompts` would not replace."""
    try:
        info = api.model_info(repository, timeout=10)  # the first request: without a connection it ends here
    except RepositoryNotFoundError:
        return ""
    files = [sibling.rfilename for sibling in info.siblings or []]
    others = sorted(name for name in files if re.fullmatch(r"[^/]+\.safetensors", name) and name not in prompts)
    if others:
        raise UserError(
            f"{repository} already holds {', '.join(others)}, and a repository can hold one prompt: push to "
            "another one, or delete that file there"
        )
    return read_card(Path(api.hf_hub_download(repository, CARD))) if CARD in files else ""


def _what_went_wrong(repository: str, error: Exception) -> str:
    """Why the upload failed, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split())
    if status in (401, 403):
        return f"the Hub does not let you write to {repository}: log in with `hf auth login`, or choose another owner"
    if status is not None:
        return f"the Hub refused the upload to {repository} (status {status}): {reason}"
    return (
        f"{repository} could not be uploaded ({type(error).__name__}: {reason}): check the connection, then push again"
    )
