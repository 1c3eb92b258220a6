"""One architecture, tried: everything that this package does with a model, held to the plain pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.capabilities import capabilities
from lm_eval_spt.inference.deep_prefix import deep_prefix_size, key_values_in
from lm_eval_spt.inference.probe import forget
from lm_eval_spt.inference.scoring import score_suffixes
from lm_eval_spt.inference.transformers_internals import plain_cache
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.objective import LossRequest, evaluate
from tests.helpers.models import random_prompt
from tests.models.plain import Text, greedy, loglikelihood
from tests.models.tiny import ARCHITECTURES, SPECIAL_TOKENS, VOCABULARY, NotBuilt, tiny_model

EXACT, SLOWER = "exact", "exact, slower"
COLUMNS = ("no prompt", "prefix", "suffix", "both", "deep prefix", "evaluate", "train", "generate")
LENGTHS = (3, 17, 60)
"""Of the contexts: below, about and beyond the windows and chunks of the tiny models."""
NEW_TOKENS = 4


class Wrong(Exception):
    """The package's numbers are not those of the plain pass, or something else than a line for the user was raised."""


@dataclass
class Row:
    """What came of an architecture.

    Attributes:
        kind: its `model_type`.
        name: its class.
        cells: by column: `EXACT`, `SLOWER`, or the line that the user reads where something can not be done.
        reason: why no tiny model was made, or ''; then there are no cells.
        wrong: by column: numbers that differ from those of the plain pass, and errors that are no line for the user.
            There should be none.
    """

    kind: str
    name: str
    cells: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    wrong: dict[str, str] = field(default_factory=dict)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are the numbers of their ids."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {str(number): number for number in range(3, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="3")),
        pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="3",
    )  # fmt: skip


def requests() -> list[tuple[list[int], list[int]]]:
    """Return contexts of `LENGTHS` tokens, each with four continuations of which two begin alike."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for length in LENGTHS:
        context, *answers = (
            torch.randint(4, SPECIAL_TOKENS, (size,), generator=generator).tolist() for size in (length, 3, 1, 2)
        )
        pairs += [(context, answer) for answer in (*answers, [*answers[0][:2], answers[1][0]])]
    return pairs


def try_architecture(kind: str) -> Row:
    """Try everything with a tiny model of an architecture."""
    row = Row(kind, ARCHITECTURES[kind])
    try:
        model = tiny_model(kind)
    except NotBuilt as error:
        row.reason = str(error)
        return row
    trial = None
    for column in COLUMNS:
        try:
            trial = trial or _Trial(model)
            row.cells[column] = trial.cell(column)
        except UserError as error:
            row.cells[column] = str(error)
            if "\n" in str(error):
                row.wrong[column] = f"not one line: {error}"
        except Wrong as error:
            row.wrong[column] = str(error)
        except Exception as error:
            row.wrong[column] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return row


class _Trial:
    def __init__(self, model: PreTrainedModel) -> None:
        self._untouched = copy.deepcopy(model)
        model.generation_config.eos_token_id = None  # so that as many tokens are generated as are asked for
        self.plain = self._untouched
        self.lm = SPTLM(pretrained=model, tokenizer=tokenizer(), backend="causal", device="cpu", batch_size=4)
        self.model = self.lm.model
        self.requests = requests()

    def cell(self, column: str) -> str:
        forget(self.model)
        self.plain = copy.deepcopy(self._untouched)  # what it may remember of earlier texts plays no part
        actions: dict[str, Callable[[], str]] = {
            "deep prefix": self.deep_prefix, "evaluate": self.evaluate, "train": self.train, "generate": self.generate
        }  # fmt: skip
        return actions[column]() if column in actions else self.score(None if column == "no prompt" else column)

    def score(self, placement: str | None) -> str:
        prompt = self._use(placement)
        answers = self.lm._loglikelihood_tokens([(None, *pair) for pair in self.requests], disable_tqdm=True)
        self._check([value for value, _ in answers], self._expected(prompt))
        return self._speed()

    def deep_prefix(self) -> str:
        """The cache of a text as a deep prefix: what follows is read as behind the text itself, in one pass."""
        text = [9, 30, 8, 41, 17]
        deep_prefix_size(self.model)
        with torch.no_grad():
            key_values = key_values_in(plain_cache(self.model, {"input_ids": torch.tensor([text])}))
        prompt = SoftPrompt(key_values, name="deep")
        self.lm.use(prompt)
        answers = self.lm._loglikelihood_tokens([(None, *pair) for pair in self.requests], disable_tqdm=True)
        behind = [(text + context, answer) for context, answer in self.requests]
        expected = [float(loglikelihood(self.plain, self._text(pair[0], None), pair[1])) for pair in behind]
        self._check([value for value, _ in answers], expected)
        speed = self._speed()
        self._check_generated(lambda context: self._text(text + context, None), "deep prefix")
        return speed

    def evaluate(self) -> str:
        """Two suffix prompts of different length, each text read once for both."""
        prompts = [random_prompt(self.model, length, "suffix", seed=length) for length in (5, 2)]
        self._use("suffix")
        vectors = [prompt.vectors for prompt in prompts]
        self.lm.try_out([(place(context, 0, 5), answer) for context, answer in self.requests], vectors[0])
        answers = dict(score_suffixes(self.model, self.requests, vectors, 512))
        for which, prompt in enumerate(prompts):
            got = [answers[number][which][0] for number in range(len(self.requests))]
            self._check(got, self._expected(prompt))
        return self._speed()

    def train(self) -> str:
        """Loss and gradient of a step: a suffix prompt, on cached contexts where the model can; and a prefix prompt."""
        speeds = [self._step(placement) for placement in ("suffix", "prefix")]
        return max(speeds, key=len)

    def _step(self, placement: str) -> str:
        prompt = random_prompt(self.model, 5, placement, seed=3)
        before = prompt.num_prefix_tokens
        forget(self.model)
        self.lm.try_out(
            [(place(context, before, 5 - before), answer) for context, answer in self.requests],
            prompt.vectors, gradient=True,
        )  # fmt: skip
        pairs = [(tuple(context), tuple(answer)) for context, answer in self.requests]
        examples = [Example(tuple(pairs[start : start + 4]), 1) for start in range(0, len(pairs), 4)]
        cache = None
        if placement == "suffix" and capabilities(self.model).reads_on(LENGTHS[-1] + 5 + 3):
            cache = ContextCache(self.model, 512)
            cache.add([context for context, _ in pairs])
        learned, exact = (prompt.vectors.clone().requires_grad_() for _ in range(2))
        (outcome,) = evaluate(self.model, [LossRequest(examples, learned, before, "choices")], cache)
        outcome.loss.backward()
        expected = torch.zeros(())
        for example in examples:
            values = [
                loglikelihood(self.plain, Text(exact[:before], list(context), exact[before:]), list(answer))
                for context, answer in example.pairs
            ]
            expected = expected - torch.stack(values).log_softmax(dim=0)[example.gold]
        expected.backward()
        self._check([float(outcome.loss.detach())], [float(expected.detach())])
        assert learned.grad is not None and exact.grad is not None
        error, size = float((learned.grad - exact.grad).abs().max()), float(exact.grad.abs().max())
        if not error <= 1e-3 * size:
            raise Wrong(f"{placement}: the gradient differs by {error / size:.1%}")
        return self._speed()

    def generate(self) -> str:
        """Greedy decoding behind contexts of different lengths in one batch."""
        for placement in ("prefix", "suffix", "both"):
            prompt = self._use(placement)
            self._check_generated(lambda context, prompt=prompt: self._text(context, prompt), placement)
        return EXACT

    def _check_generated(self, text_of: Callable[[list[int]], Text], what: str) -> None:
        contexts = [self.requests[4][0], self.requests[0][0]]
        time = max(map(len, contexts))
        ids = torch.tensor([[0] * (time - len(context)) + context for context in contexts])
        mask = torch.tensor([[0] * (time - len(context)) + [1] * len(context) for context in contexts])
        rows = self.lm._model_generate(ids, time + NEW_TOKENS, [], attention_mask=mask, do_sample=False)
        for row, context in zip(rows, contexts, strict=True):
            expected = greedy(self.plain, text_of(context), NEW_TOKENS)
            if row[time:].tolist() != expected:
                raise Wrong(f"{what}: {row[time:].tolist()} was generated, and not {expected}")

    def _use(self, placement: str | None) -> SoftPrompt | None:
        self.lm.prompt, self.lm._room_taken = None, 0
        if placement is not None:
            self.lm.use(random_prompt(self.model, 5, placement))
        return self.lm.prompt

    def _text(self, context: list[int], prompt: SoftPrompt | None) -> Text:
        if prompt is None:
            return Text(torch.zeros(0, 1), context, torch.zeros(0, 1))
        before = prompt.num_prefix_tokens
        return Text(prompt.vectors[:before], context, prompt.vectors[before:])

    @torch.no_grad()
    def _expected(self, prompt: SoftPrompt | None) -> list[float]:
        return [
            float(loglikelihood(self.plain, self._text(context, prompt), answer)) for context, answer in self.requests
        ]

    def _check(self, got: list[float], expected: list[float]) -> None:
        """Hold numbers to those of the plain pass."""
        worst = max(abs(a - b) - 1e-5 * abs(b) for a, b in zip(got, expected, strict=True))
        if not worst <= 1e-4:
            raise Wrong(f"off by {worst:.2g}")

    def _speed(self) -> str:
        """Return whether the model was read in the fastest way."""
        known = capabilities(self.model)
        return EXACT if known.layout == "tree" and known.cache and known.longest is None else SLOWER
