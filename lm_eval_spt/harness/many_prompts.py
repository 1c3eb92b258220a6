"""Many prompts of one base model in the harness: contexts are shared, and ensembles of prompts are answered.

A context is read once for all suffix prompts; prefix prompts, which change what the model makes of the context, are
scored one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from numpy.typing import NDArray

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.documents import documents_of
from lm_eval_spt.harness.prompted_lm import PromptedLM, TokenisedRequest, prompt_info
from lm_eval_spt.inference import probe, scoring
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.prompt.ensemble import Ensemble, combine, members_of
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

Pair = tuple[str, str]


class ManyPromptsLM(PromptedLM):
    """The model class with several prompts, of which one, or one ensemble, is in use at a time.

    The first suffix prompt that is asked for log-likelihoods has them computed for all; the others find theirs.

    Args:
        prompts: soft prompts of one base model, and ensembles of such; the last one is in use.
        **spt: as for :class:`~lm_eval_spt.harness.prompted_lm.PromptedLM`.
    """

    def __init__(self, prompts: Sequence[SoftPrompt | Ensemble], **spt: Any) -> None:
        self._ensemble: Ensemble | None = None
        super().__init__(prompt=None, **spt)
        for prompt in prompts:
            self.use(prompt)
        self._suffixes = {prompt.digest: prompt for prompt in members_of(prompts) if prompt.placement == "suffix"}
        # Answers as numbers, [suffix prompts, pairs]: as objects those of 50 prompts in 205 languages would take 3 GB.
        self._columns: dict[Pair, int] = {}
        self._loglikelihoods = np.empty((len(self._suffixes), 0))
        self._greedy = np.empty((len(self._suffixes), 0), dtype=bool)

    def use(self, prompt: SoftPrompt | Ensemble) -> None:
        """Make a prompt or an ensemble the one that answers are given under.

        Raises:
            UserError: it does not fit the base model, or leaves no room for text.
        """
        self._ensemble = prompt if isinstance(prompt, Ensemble) else None
        for member in members_of([prompt]):
            super().use(member)

    def get_model_info(self) -> dict[str, Any]:
        """Return what :class:`PromptedLM` reports, of the ensemble where one is in use."""
        info = super().get_model_info()
        if self._ensemble is not None:
            info |= prompt_info(self._ensemble)
        return info

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Accept the harness's answer cache, which must not get the answers of an ensemble's members.

        Raises:
            UserError: probabilities are averaged, which takes all choices of a document, and a cache keeps single ones.
        """
        if self._ensemble is not None and self._ensemble.average == "probability" and cache_hook.dbdict is not None:
            raise UserError(
                "a mean of probabilities depends on all choices of a document, and --use_cache keeps single answers: "
                "leave it out, or average logarithms (ensemble=log_probability)"
            )
        super().set_cache_hook(cache_hook)
        if self._ensemble is not None:
            self.cache_hook = CacheHook(None)

    def _cache_owner(self) -> dict[str, str]:
        owner = super()._cache_owner()
        return owner if self._ensemble is None else owner | {"prompt": self._ensemble.digest[:16]}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[scoring.Answer]:
        """Return the answers under the prompt or ensemble in use.

        With an ensemble, each member's answers are calibrated, if that was asked for, and greedy decoding is taken to
        produce what it would produce under most of its members.
        """
        if self._ensemble is None:
            return self._under_one_prompt(requests, disable_tqdm)
        # The harness repeats a request where a task has repeats, and one where processes have unequal shares: it counts
        # once among the choices of its document.
        once = {id(request): request for request in requests}
        distinct = list(once.values())
        answers = self._under_each(lambda: self._under_one_prompt(distinct, disable_tqdm))
        values = combine(answers[..., 0], documents_of(distinct), self._ensemble.average)
        greedy = answers[..., 1].mean(axis=0) > 0.5
        answer_of = dict(zip(once, zip(values.tolist(), greedy.tolist(), strict=True), strict=True))
        return [answer_of[id(request)] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Return the log-likelihoods of whole texts under the prompt or ensemble in use."""
        if self._ensemble is None:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        whole = super().loglikelihood_rolling
        answers = self._under_each(lambda: whole(requests, disable_tqdm))
        pairs = answers.ndim == 3  # since lm_eval 0.5 each comes with False for "greedy"
        of_members = answers[..., 0] if pairs else answers
        values = combine(of_members, np.arange(len(requests)), self._ensemble.average).tolist()
        return [(value, False) for value in values] if pairs else values

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate with the prompt in use.

        Raises:
            UserError: an ensemble is in use.
        """
        if self._ensemble is not None:
            raise UserError(
                f"the ensemble {self._ensemble.name!r} gives log-likelihoods, the task generates text: use one prompt"
            )
        return super().generate_until(requests, disable_tqdm)

    def _under_each(self, answer: Callable[[], list[Any]]) -> NDArray[np.float64]:
        """Return the answers under each member of the ensemble in use, `[members, requests, ...]`."""
        ensemble = self._ensemble
        assert ensemble is not None
        answers = []
        for member in ensemble.members:
            super().use(member)
            answers.append(np.asarray(answer(), dtype=np.float64))
        return np.stack(answers)

    def _under_one_prompt(self, requests: list[Instance], disable_tqdm: bool) -> list[scoring.Answer]:
        assert self.prompt is not None
        if self.prompt.placement == "suffix" and self.backend == "causal" and self._fast:
            self._refuse_thinking()
            pairs = [request.args for request in requests]
            return self.calibrated(requests, lambda: self._of_all_suffixes(pairs, disable_tqdm))
        return super().loglikelihood(requests, disable_tqdm)

    def _of_all_suffixes(self, pairs: list[Pair], disable_tqdm: bool) -> list[scoring.Answer]:
        """Return the answers under the suffix prompt in use; those that are new are scored under all of them."""
        assert self.prompt is not None
        if new := [pair for pair in dict.fromkeys(pairs) if pair not in self._columns]:
            self._score_suffixes(new, disable_tqdm)
        row, columns = list(self._suffixes).index(self.prompt.digest), [self._columns[pair] for pair in pairs]
        answers = self._loglikelihoods[row, columns].tolist(), self._greedy[row, columns].tolist()
        return list(zip(*answers, strict=True))

    def _score_suffixes(self, pairs: list[Pair], disable_tqdm: bool) -> None:
        """Score new pairs under all suffix prompts."""
        prompts = list(self._suffixes.values())
        room = min(self.whole_length - prompt.length for prompt in prompts)
        encoded = self.encode_pairs(pairs, "suffix")
        fitting: list[int] = []
        too_long: list[int] = []
        for index, (context, continuation) in enumerate(encoded):
            (fitting if len(context) + len(continuation) <= room + 1 else too_long).append(index)

        loglikelihoods = np.full((len(prompts), len(pairs)), np.nan)
        greedy = np.full((len(prompts), len(pairs)), False)
        requests = [encoded[index] for index in fitting]
        vectors = [prompt.vectors for prompt in prompts]
        longest = max(vectors, key=len)
        self.try_out([(place(context, 0, len(longest)), rest) for context, rest in requests], longest)
        scored = scoring.score_suffixes(self.model, requests, vectors, self._max_batch_tokens())
        with self._progress(len(requests), disable_tqdm) as bar, self._autocast():
            for number, answers in scored:
                index = fitting[number]
                loglikelihoods[:, index], greedy[:, index] = zip(*answers, strict=True)
                if not np.isfinite(loglikelihoods[:, index]).all():
                    raise probe.not_finite(self.model)
                bar.update()

        in_use = self.prompt
        for row, prompt in enumerate(prompts if too_long else ()):  # each prompt leaves another part of a long text
            super().use(prompt)
            tokenised: list[TokenisedRequest] = [(None, *encoded[index]) for index in too_long]
            answers = self._loglikelihood_tokens(tokenised, disable_tqdm)
            loglikelihoods[row, too_long], greedy[row, too_long] = zip(*answers, strict=True)
        if in_use is not None:
            super().use(in_use)

        # Last of all: an evaluation that is interrupted before has no answers.
        self._columns |= {pair: len(self._columns) + index for index, pair in enumerate(pairs)}
        self._loglikelihoods = np.concatenate([self._loglikelihoods, loglikelihoods], axis=1)
        self._greedy = np.concatenate([self._greedy, greedy], axis=1)
