"""Training runs from settings to prompt files; several of one frozen base model are read in one batch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.capabilities import capabilities
from lm_eval_spt.inference.scoring import tokens_that_fit
from lm_eval_spt.inference.transformers_internals import activation_checkpointing
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import checkpoint, trackers
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import ExampleReader
from lm_eval_spt.train.objective import Outcome, evaluate
from lm_eval_spt.train.processes import Processes
from lm_eval_spt.train.run import BatchRequest, Diverged, Program, TrainingRun, scores_of
from lm_eval_spt.train.tuning import check_replaceable, record_in

logger = logging.getLogger(__name__)


@dataclass
class Base:
    """The base model, the keys and values of the texts it has read, and the documents that were read for it.

    Left frozen, they serve any number of runs.
    """

    lm: SPTLM
    cache: ContextCache
    reader: ExampleReader

    @property
    def processes(self) -> Processes:
        """Those that share the work."""
        return Processes(self.lm.rank, self.lm.world_size)


def load_base(config: TrainingConfig) -> Base:
    """Load the base model of a run.

    Raises:
        UserError: it can not be loaded.
    """
    loading: dict[str, Any] = {"parallelize": True, "device_map": config.device_map} if config.device_map else {}
    if config.quantization != "none":
        loading[f"load_in_{config.quantization}"] = True
    lm = SPTLM(
        pretrained=config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        add_bos_token=config.add_bos_token,
        **loading,
    )
    return base_of(lm)


def base_of(lm: SPTLM) -> Base:
    """Return a loaded model as a base for runs."""
    return Base(lm, ContextCache(lm.model, tokens_that_fit(lm.model, lm.device)), ExampleReader(lm))


def train(config: TrainingConfig, base: Base | None = None) -> SoftPrompt | None:
    """Learn a soft prompt, write it to `config.output`, and return it; None where the settings have no prompt.

    What has the lowest validation loss is written, the start included. It is also written when training is interrupted
    (Ctrl-C) or its loss turns into NaN; the exception goes on to the caller. A tuned model or adapter goes to
    `config.model_folder`.

    Args:
        config: the settings.
        base: the base model of these settings, if an earlier run has loaded it; it is left alone where the settings
            tune it.

    Raises:
        UserError: something in the settings can not be done, or the loss turned into NaN.
    """
    return train_together([config], base)[0]


def train_together(configs: Sequence[TrainingConfig], base: Base | None = None) -> list[SoftPrompt | None]:
    """Train runs of one base model side by side, each as :func:`train` would: their batches are read as one.

    Args:
        configs: the settings; all have one base model, and several leave it frozen.
        base: as for :func:`train`.

    Raises:
        UserError: as for :func:`train`; where a loss turned into NaN, after all other runs have ended.
    """
    for config in configs:
        _check_writable(Path(config.output))
        if config.model_folder is not None:
            check_replaceable(config.model_folder)
            base = None
    base = base or load_base(configs[0])
    runs = {number: _run(config, base) for number, config in enumerate(configs) if not _has_ended(config)}
    tracking = trackers.start(configs[0].tracker, [run.config for run in runs.values()], base.processes)
    try:
        failed = _drive(base, list(runs.values()), tracking)
    except KeyboardInterrupt:
        for run in runs.values():
            run.save(interrupted=True)
            _say(run, f"interrupted: the best prompt so far (epoch {run.best['epoch']}) is in {run.output}", sys.stderr)
        raise
    finally:
        tracking.end()
    prompts: list[SoftPrompt | None] = []
    for number, config in enumerate(configs):
        if number not in runs:
            prompts.append(SoftPrompt.load(config.output) if config.prompt_length else None)
            continue
        run = runs[number]
        prompt = run.save(diverged=str(failed[run]) if run in failed else None)
        run.finish()
        prompts.append(prompt)
        if run not in failed:
            written = " and ".join(str(path) for path in (prompt and run.output, run.config.model_folder) if path)
            _say(run, f"{written}: epoch {run.best['epoch']}, validation {scores_of(run.best)}")
    for run, error in failed.items():
        raise UserError(
            f"{error}; the best prompt so far (epoch {run.best['epoch']}) is in {run.output}: try a smaller --lr"
        ) from error
    return prompts


def _run(config: TrainingConfig, base: Base) -> TrainingRun:
    """Return a run that is ready to go, or to go on."""
    lm = base.lm
    if lm.backend != "causal" and config.prompt_length and config.placement != "prefix":
        raise UserError(
            f"--placement {config.placement} does not work with {config.model!r}, an encoder-decoder model: its "
            "prompts stand before the text, use --placement prefix"
        )
    examples = base.reader.read(config)
    run = TrainingRun(config, lm, examples, base.processes)
    if lm.backend == "causal":
        before, after = config.vectors_before, config.prompt_length - config.vectors_before
        pairs = [
            (place(context, before, after), list(answer))
            for example in (*examples.training, *examples.validation)
            for context, answer in example.pairs
        ]
        lm.try_out(pairs, run.learner.vectors(), gradient=True)
    _say(run, run.summary())
    path = checkpoint.path_of(run.output)
    if config.resume and path.is_file():
        run.resume(checkpoint.load(path))
        _say(run, f"going on after epoch {len(run.rows) - 1} of {run.output}")
    return run


def _has_ended(config: TrainingConfig) -> bool:
    """Tell whether a run that is to be resumed has nothing left to do.

    Raises:
        UserError: what is there was trained with other settings.
    """
    output, folder = Path(config.output), config.model_folder
    if not config.resume or checkpoint.path_of(output).is_file():
        return False
    if config.prompt_length:
        if not output.is_file():
            return False
        record = SoftPrompt.load(output).metadata
    else:
        record = record_in(folder) if folder is not None else {}
    if not record or "diverged" in record or "interrupted" in record:
        return False
    if record.get("hyperparameters") != config.hyperparameters():
        raise UserError(f"--resume: {output} was trained with other settings: choose another --output")
    return True


# -- serving runs ------------------------------------------------------------------------------------------------------


def _drive(base: Base, runs: Sequence[TrainingRun], tracking: trackers.Tracking) -> dict[TrainingRun, Diverged]:
    """Give runs what they wait for until all have ended; returns those that ended because their loss did."""
    bar = tqdm(
        total=sum(run.steps for run in runs), unit="step", leave=False, disable=None if base.processes.is_main else True
    )
    programs: dict[TrainingRun, Program] = {run: run.program(bar) for run in runs}
    waiting: dict[TrainingRun, BatchRequest] = {}
    served = dict.fromkeys(runs, 0)
    failed: dict[TrainingRun, Diverged] = {}

    def advance(run: TrainingRun, outcome: Outcome | None) -> None:
        waiting.pop(run, None)
        rows = len(run.rows)
        try:
            waiting[run] = next(programs[run]) if outcome is None else programs[run].send(outcome)
        except StopIteration:
            pass
        except Diverged as error:
            failed[run] = error
        served[run] += 1
        if len(run.rows) > rows:
            tracking.log(run)

    with bar:
        for run in runs:
            advance(run, None)
        caches = {run: _cache_of(base, run) for run in runs}
        while waiting:
            together = _companions(waiting, served, caches)
            outcomes = _answer(base, together, [waiting[run] for run in together], caches[together[0]])
            for run, outcome in zip(together, outcomes, strict=True):
                advance(run, outcome)
    return failed


def _companions(
    waiting: dict[TrainingRun, BatchRequest],
    served: dict[TrainingRun, int],
    caches: dict[TrainingRun, ContextCache | None],
) -> list[TrainingRun]:
    """Return the runs to serve next: the one that is furthest behind, and those whose wish can share its batch.

    Prompts of one length that stand after texts which have been read can; they do where memory allows.
    """
    first = min(waiting, key=lambda run: served[run])
    cache, wanted = caches[first], waiting[first]
    if cache is None:
        return [first]
    room = cache.free() / 4
    together: list[TrainingRun] = []
    size = 0
    for run in sorted(waiting, key=lambda run: run is not first):
        other = waiting[run]
        if caches[run] is cache and other.training == wanted.training and other.asking.length == wanted.asking.length:
            size += cache.bytes_of([context for example in other.asking.examples for context, _ in example.pairs[:1]])
            if together and size > room:
                break
            together.append(run)
    return together


def _answer(
    base: Base, runs: Sequence[TrainingRun], wanted: Sequence[BatchRequest], cache: ContextCache | None
) -> list[Outcome]:
    """Return the outcomes, and leave gradients where training wants them."""
    training = wanted[0].training
    again = training and cache is None and runs[0].config.activation_checkpointing
    with torch.set_grad_enabled(training), activation_checkpointing(base.lm.model) if again else nullcontext():
        outcomes = evaluate(base.lm.model, [one.asking for one in wanted], cache)
    if training:
        loss = sum(
            (outcome.loss / one.divisor for outcome, one in zip(outcomes, wanted, strict=True)), torch.tensor(0.0)
        )
        loss.backward()
        outcomes = [Outcome(outcome.loss.detach(), outcome.weight, outcome.correct) for outcome in outcomes]
    return outcomes


def _cache_of(base: Base, run: TrainingRun) -> ContextCache | None:
    """Return the cache with the run's texts in it, or None where it has no use or they do not fit."""
    config = run.config
    if config.placement != "suffix" or config.tune != "prompt" or config.context_cache == "off":
        return None
    if base.lm.backend != "causal":
        return None
    pairs = [pair for example in (*run.examples.training, *run.examples.validation) for pair in example.pairs]
    texts = [context for context, _ in pairs]
    longest = config.prompt_length + max(len(context) + len(answer) for context, answer in pairs)
    if not capabilities(base.lm.model).reads_on(longest):
        return None
    medium = None if config.context_cache == "auto" else config.context_cache
    return base.cache if base.cache.add(texts, medium) else None


def _say(run: TrainingRun, line: str, file: object = None) -> None:
    if run.processes.is_main:
        print(line, file=file or sys.stdout, flush=True)  # type: ignore[arg-type]


def _check_writable(output: Path) -> None:
    """Find out before training whether its result can be written.

    Raises:
        UserError: it can not.
    """
    probe = output.with_name(f".{output.name}.probe")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
        if output.is_dir():
            raise IsADirectoryError(21, "Is a directory")
    except OSError as error:
        raise UserError(f"--output {output} can not be written: {error.strerror}") from error
