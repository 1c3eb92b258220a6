"""Options of the harness by the harness's names, as ``train``, ``evaluate`` and ``sweep`` share them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_spt.common.errors import UserError, shown

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

CACHE_REQUESTS = ("true", "refresh", "delete")


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """What stands in a context beside the document itself.

    Attributes:
        num_fewshot: the number of shots; None: what each task says.
        apply_chat_template: whether contexts are chats; a name is for tokenizers with several templates.
        system_instruction: text before all else, in a chat the system's.
        fewshot_as_multiturn: whether each shot is a turn of the chat; None, with a chat template: True.

    Raises:
        UserError: an option makes no sense.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"--num-fewshot is {self.num_fewshot}: expected a whole number from 0 on")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise UserError("--fewshot-as-multiturn was given: expected it together with --apply-chat-template")
        if self.fewshot_as_multiturn is None and self.apply_chat_template:
            object.__setattr__(self, "fewshot_as_multiturn", True)

    def shots(self, task: ConfigurableTask) -> int:
        """Return how many shots a task's contexts get: the task keeps a 0 of its own."""
        own = task.config.num_fewshot
        return own or 0 if self.num_fewshot is None or own == 0 else self.num_fewshot


BY_TASK = ContextOptions()
"""What the task says, and nothing more."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ContextOptions):
    """How an evaluation is made.

    Attributes:
        limit: how many documents of each task are scored, or their share; None: all.
        gen_kwargs: arguments of generation, which replace those of the tasks.
        use_cache: beginning of the path of a file that keeps the model's answers.
        cache_requests: ``true``: the tasks' requests are kept and used again; ``refresh``: they are made anew;
            ``delete``: what was kept is deleted.
        data, columns: see :func:`lm_eval_spt.harness.local_data.metadata_of`.

    Raises:
        UserError: an option makes no sense.
    """

    limit: float | None = None
    gen_kwargs: dict[str, Any] | None = None
    use_cache: str | None = None
    cache_requests: bool | str = False
    data: str | None = None
    columns: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and not 0 < self.limit < math.inf:
            raise UserError(f"--limit is {self.limit:g}: expected a number of documents, or a share between 0 and 1")
        cache = "true" if self.cache_requests is True else self.cache_requests
        if cache and cache not in CACHE_REQUESTS:
            raise UserError(f"--cache-requests is {shown(cache)}: expected one of {', '.join(CACHE_REQUESTS)}")
        if cache and self.data:
            raise UserError("--cache-requests was given with --data: requests are kept by the task's name alone")
        object.__setattr__(self, "cache_requests", cache)
        try:
            json.dumps(self.gen_kwargs, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"--gen-kwargs can not be recorded ({error}): expected texts, numbers and lists") from error

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``simple_evaluate``, all but `use_cache`: that one belongs to a single model."""
        return {
            "num_fewshot": self.num_fewshot,
            "apply_chat_template": self.apply_chat_template,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
            "limit": self.limit,
            "gen_kwargs": self.gen_kwargs or {},  # as the harness's command records it
            "cache_requests": self.cache_requests in ("true", "refresh"),
            "rewrite_requests_cache": self.cache_requests == "refresh",
            "delete_requests_cache": self.cache_requests == "delete",
        }
