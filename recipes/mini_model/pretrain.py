#!/usr/bin/env python
"""Pre-train the embedded model on a prepared corpus.

python -m recipes.mini_model.pretrain --corpus corpus --tokenizer lm_eval_spt/mini --output model
python -m recipes.mini_model.pretrain --corpus corpus --tokenizer lm_eval_spt/mini --output model     # again: goes on

A step learns two things: the next token of packed documents, and the answers to questions, rows of tokens at whose last
position the model gives the topic or keywords of the text in English, whatever the text's language, and at which
translations are to have like states (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748). The states there and after
single words also tell the word vectors of their English.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, HfArgumentParser, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lm_eval_spt.common.errors import UserError, show_user_errors_in_one_line
from lm_eval_spt.common.files import write
from recipes.mini_model.corpus import Corpus, Group
from recipes.mini_model.examples import Examples, Question
from recipes.mini_model.languages import LANGUAGES, SOURCE
from recipes.mini_model.topics import read_words

logger = logging.getLogger(__name__)
LABELLED = Path(__file__).parent / "labelled"


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PretrainingConfig:
    """Every setting of a pre-training run."""

    corpus: str = _setting("corpus", "folder that recipes.mini_model.prepare wrote")
    tokenizer: str = _setting("tokenizer", "folder of the tokenizer")
    output: str = _setting("model", "folder for the model, its checkpoint and its log; a run that was cut off goes on")
    start: str | None = _setting(None, "model folder whose weights to start from; default: new weights")
    embeddings: str | None = _setting(
        None, "file from recipes.mini_model.embeddings, to start from unless --start is given"
    )

    hidden_size: int = _setting(256, "d")
    layers: int = _setting(4, "transformer blocks")
    feed_forward: int = _setting(704, "width of the feed-forward layers")
    heads: int = _setting(8, "attention heads")

    steps: int = _setting(3000, "optimizer steps")
    lr: float = _setting(2.5e-3, "peak learning rate (AdamW)")
    embedding_lr: float = _setting(0.3, "learning rate of the embeddings, as a share of the others'")
    warmup: int = _setting(50, "steps over which the learning rate rises")
    decay: float = _setting(0.4, "share of the steps, the last ones, over which it falls to zero")
    weight_decay: float = _setting(0.05, "AdamW's, on matrices other than the embeddings")
    pairs: int = _setting(48, "pairs of translations in a step")
    topics: int = _setting(24, "texts of known topic in a step")
    longest: int = _setting(56, "tokens of a text that a question may have; longer ones are cut on the right")
    rows: int = _setting(4, "rows of packed documents in a step")
    row_length: int = _setting(128, "tokens of such a row")
    token_share: float = _setting(0.5, "share of the packed tokens whose prediction is learned")
    noise: float = _setting(1.0, "largest noise on filler, in standard deviations of the embeddings")
    temperature: float = _setting(0.07, "of the contrastive loss")
    weight_tokens: float = _setting(0.5, "weight of the next token's loss")
    weight_alignment: float = _setting(0.3, "weight of the contrastive loss")
    weight_keywords: float = _setting(0.2, "weight of the keywords' loss")
    weight_topics: float = _setting(0.6, "weight of the topics' loss")
    weight_meaning: float = _setting(1.0, "weight of the loss of the texts' vectors")
    weight_words: float = _setting(1.0, "weight of the loss of the words' directions")

    seed: int = _setting(0, "of the weights and of every step's examples")
    threads: int = _setting(0, "CPU threads; 0: as torch decides")
    device: str = _setting("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, ...")
    bf16: bool = _setting(True, "bfloat16 in matrix products (fast on GPUs and on CPUs with AMX)")
    compile: bool = _setting(False, "torch.compile the model: slow to start, twice as fast then")
    save_every: int = _setting(200, "steps between checkpoints")
    evaluate_every: int = _setting(1000, "steps between evaluations on held-out translations")


def read_embeddings(path: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the embeddings [vocabulary, d] that ``recipes.mini_model.embeddings`` wrote for a tokenizer.

    Raises:
        UserError: there is no such file, or it holds those of another tokenizer.
    """
    try:
        found: torch.Tensor = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file: write the embeddings with recipes.mini_model.embeddings"
        ) from None
    if len(found) != len(tokenizer):
        raise UserError(
            f"{path}: {len(found):,} embeddings for a tokenizer of {len(tokenizer):,} tokens: write them with it"
        )
    return found


def new_model(
    config: PretrainingConfig, tokenizer: PreTrainedTokenizerBase, embeddings: torch.Tensor | None
) -> LlamaForCausalLM:
    """Return the model to begin with: that of ``--start``, or one of new weights, with `embeddings` where given."""
    torch.manual_seed(config.seed)
    if config.start:
        model = LlamaForCausalLM.from_pretrained(config.start, dtype=torch.float32, attn_implementation="eager")
    else:
        shape = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM._from_config(shape, dtype=torch.float32, attn_implementation="eager")
    if embeddings is not None and not config.start:
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(embeddings)
    return model.train().to(config.device)


def new_optimizer(config: PretrainingConfig, model: LlamaForCausalLM, heads: torch.nn.ModuleDict) -> torch.optim.AdamW:
    """Return AdamW; each parameter group's ``share`` is its part of the learning rate."""
    embedding = model.model.embed_tokens.weight
    parameters = [*model.parameters(), *heads.parameters()]
    matrices = [p for p in parameters if p.ndim > 1 and p is not embedding]
    vectors = [p for p in parameters if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "share": 1.0},
        {"params": vectors, "weight_decay": 0.0, "share": 1.0},
        {
            "params": [embedding],
            "weight_decay": 0.0,
            "share": config.embedding_lr if config.start or config.embeddings else 1.0,
        },
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def learning_rate(config: PretrainingConfig, step: int) -> float:
    """Return the learning rate of a step: rising, constant, falling. Only the fall depends on the number of steps."""
    fall = max(1.0, config.decay * config.steps)
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup), (config.steps - step) / fall)


class Trainer:
    """A model with its optimizer and examples; the state after a step depends on the settings and the step alone."""

    def __init__(self, config: PretrainingConfig):
        self.config = config
        self.folder = Path(config.output)
        self.tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        corpus, words = Corpus.load(Path(config.corpus)), read_words(LABELLED / "words.tsv")
        embeddings = read_embeddings(config.embeddings, self.tokenizer) if config.embeddings else None
        self.examples = Examples(corpus, words, self.tokenizer, config.longest)
        self.model = new_model(config, self.tokenizer, embeddings)
        # From states to the vectors of English texts and words; they are no part of the model that is written.
        size = self.examples.vectors.size
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(config.hidden_size, size) for name in ("text", "word")}
        ).to(config.device)
        self.optimizer = new_optimizer(config, self.model, self.heads)
        self.body = torch.compile(self.model.model, dynamic=True) if config.compile else self.model.model
        self.step = 0
        if (checkpoint := self.folder / "checkpoint.pt").exists():
            state = torch.load(checkpoint, map_location=config.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save_checkpoint(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write(self.folder / "checkpoint.pt", buffer.getvalue())

    def save_model(self) -> None:
        """Write model and tokenizer as ``from_pretrained`` reads them: stored in bfloat16, computed in float32."""
        copy.deepcopy(self.model).bfloat16().save_pretrained(self.folder)
        self.tokenizer.save_pretrained(self.folder)
        place = self.folder / "config.json"
        settings = json.loads(place.read_text(encoding="utf-8")) | {"dtype": "float32"}
        write(place, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())

    # What the model computes

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.config.device.split(":")[0], torch.bfloat16, enabled=self.config.bf16)

    def states(self, rows: list[Question]) -> tuple[torch.Tensor, ...]:
        """Read rows of like length, padded on the right.

        Returns:
            The tokens [rows, time], which of them spell an answer after its first [rows, time], the last layer's states
            [rows, time, d], those before the answer [rows, d], and the mean of each row's up to there [rows, d].
        """
        length = -(-max(len(row.tokens) for row in rows) // 8) * 8
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        filler = torch.zeros(len(rows), length, 1)
        for i, row in enumerate(rows):
            tokens[i, : len(row.tokens)] = torch.tensor(row.tokens)
            filler[i, row.filler[0] : row.filler[1]] = torch.rand(()) * self.config.noise
        lengths = torch.tensor([row.position + 1 for row in rows])
        present = (torch.arange(length) < lengths[:, None]).unsqueeze(-1)
        spelling = torch.arange(length) > lengths[:, None]
        tokens, filler, lengths, present, spelling = (
            x.to(self.config.device) for x in (tokens, filler, lengths, present, spelling)
        )
        embedding = self.model.model.embed_tokens
        vectors = embedding(tokens)
        vectors = vectors + filler * torch.randn_like(vectors) * embedding.weight.detach().std()
        hidden = self.body(inputs_embeds=vectors, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows), device=hidden.device), lengths - 1]
        return tokens, spelling, hidden, last, (hidden * present).sum(1) / lengths[:, None]

    def token_loss(
        self, hidden: torch.Tensor, tokens: torch.Tensor, share: float, always: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the next token's cross-entropy at a random share of the tokens, and at those marked in `always`."""
        chosen = torch.rand(tokens.shape).to(tokens.device) < share
        chosen = (chosen if always is None else chosen | always) & (tokens != self.tokenizer.pad_token_id)
        return F.cross_entropy(self.model.lm_head(hidden[:, :-1][chosen[:, 1:]]).float(), tokens[:, 1:][chosen[:, 1:]])

    def meaning_loss(self, rows: list[Question], *states: torch.Tensor) -> torch.Tensor:
        """Return how far the vectors told from each of the states [rows, d] are from the English texts': 1 - cosine."""
        known = [i for i, row in enumerate(rows) if row.english is not None]
        if not known:
            return states[0].sum() * 0
        vectors = torch.stack([self.examples.vectors.of_text(rows[i].english or "") for i in known])
        told = [self.heads["text"](state[known].float()) for state in states]
        return torch.stack([1 - F.cosine_similarity(each, vectors.to(each.device)).mean() for each in told]).sum()

    def word_loss(self, rows: list[Question], hidden: torch.Tensor) -> torch.Tensor:
        """Return how far the directions told from the states [rows, time, d] after words are from theirs in English.

        That is 1 - cosine, each word weighted by its rarity.
        """
        vectors = self.examples.vectors
        words = [(i, at, vectors.index[w]) for i, row in enumerate(rows) for at, w in row.glosses if w in vectors.index]
        if not words:
            return hidden.sum() * 0
        row, position, word = torch.tensor(words).T
        told = self.heads["word"](hidden[row.to(hidden.device), position.to(hidden.device)].float())
        rarity = vectors.rarity[word].to(told.device)
        far = 1 - F.cosine_similarity(told, vectors.directions[word].to(told.device))
        return (rarity * far).sum() / rarity.sum()

    def losses(self) -> tuple[dict[str, torch.Tensor], int]:
        """Return the losses of this step's examples by name, and the number of tokens read."""
        config, rng = self.config, random.Random(f"{self.config.seed} {self.step}")
        torch.manual_seed(rng.getrandbits(48))
        packed = torch.tensor(self.examples.packed(rng, config.rows, config.row_length)).to(config.device)
        rows = self.examples.questions(rng, config.pairs, config.topics)
        # Short rows are read apart from long ones, which saves padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        half = len(order) // 2
        with self.autocast():
            hidden = self.body(inputs_embeds=self.model.model.embed_tokens(packed), use_cache=False).last_hidden_state
            tokens_loss = self.token_loss(hidden, packed, config.token_share)
            parts, word_losses = [], []
            for part in ([rows[i] for i in order[:half]], [rows[i] for i in order[half:]]):
                parts.append(self.states(part))
                tokens, spelling, states, *_ = parts[-1]
                tokens_loss = tokens_loss + self.token_loss(states, tokens, config.token_share / 8, spelling) / 2
                word_losses.append(self.word_loss(part, states))
            back = torch.tensor(order, device=config.device).argsort()
            last, mean = (torch.cat([part[k] for part in parts])[back] for k in (3, 4))
            log_probability = F.log_softmax(self.model.lm_head(last).float(), -1)
        paired = 2 * config.pairs
        by_last, by_mean = (info_nce(x[:paired:2], x[1:paired:2], config.temperature) for x in (last, mean))
        means = {
            "topics": answer_loss(log_probability, rows, True),
            "keywords": answer_loss(log_probability, rows, False),
        }
        read = packed.numel() + sum(part[0].numel() for part in parts)
        vectors = {"meaning": self.meaning_loss(rows, last, mean), "words": torch.stack(word_losses).mean()}
        return {"tokens": tokens_loss, "alignment": by_last + by_mean, **vectors, **means}, read

    def train_step(self) -> tuple[dict[str, float], int]:
        """Take one step; return its losses by name and the number of tokens read."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step) * group["share"]
        losses, read = self.losses()
        torch.stack([getattr(self.config, f"weight_{name}") * loss for name, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}, read

    @torch.no_grad()
    def retrieval(self, groups: list[Group]) -> dict[str, float]:
        """Return by language the share of held-out texts nearest to their own English, at the answer position."""
        question = self.examples.encode("\nTopic:")

        def states(language: str) -> torch.Tensor:
            texts = [self.examples.encode(group.texts[language])[: self.config.longest] for group in complete]
            rows = [Question(text + question, len(text + question) - 1) for text in texts]
            with self.autocast():
                return F.normalize(self.states(rows)[3].float(), dim=-1)

        languages = [language for language in LANGUAGES if any(language in group.texts for group in groups)]
        complete = [group for group in groups if all(language in group.texts for language in languages)]
        if not complete or SOURCE not in languages:
            return {}
        english, own = states(SOURCE), torch.arange(len(complete), device=self.config.device)
        return {
            language: ((states(language) @ english.T).argmax(1) == own).float().mean().item()
            for language in languages
            if language != SOURCE
        }


def answer_loss(log_probability: torch.Tensor, rows: list[Question], about_topic: bool) -> torch.Tensor:
    """Return the mean cross-entropy of the rows' topics or keywords, from log-probabilities [rows, vocabulary]."""
    chosen = [i for i, row in enumerate(rows) if row.answer and row.about_topic == about_topic]
    entries = [(i, token, share) for i in chosen for token, share in rows[i].answer.items()]
    if not entries:
        return log_probability.sum() * 0
    row, token, share = (torch.tensor(column, device=log_probability.device) for column in zip(*entries, strict=True))
    return -(share * log_probability[row, token]).sum() / len(chosen)


def info_nce(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how badly the rows of two tensors [pairs, d] find their partners, as cross-entropy, both ways."""
    first, second = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    similarity = first @ second.T / temperature
    own = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def pretrain(config: PretrainingConfig) -> None:
    """Train to the last step, from the checkpoint in the output folder where there is one; write the model."""
    if config.threads:
        torch.set_num_threads(config.threads)
    trainer = Trainer(config)
    trainer.folder.mkdir(parents=True, exist_ok=True)
    log = trainer.folder / "log.jsonl"

    def record(entry: dict[str, Any]) -> None:
        logger.info(json.dumps(entry))
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    record({"settings": asdict(config), "from_step": trainer.step})
    totals, tokens, since, used = Counter[str](), 0, time.time(), time.process_time()
    while trainer.step < config.steps:
        losses, read = trainer.train_step()
        totals.update(losses)
        tokens += read
        if trainer.step % 50 == 0:
            now, cpu = time.time(), time.process_time()
            means = {name: round(total / 50, 4) for name, total in totals.items()}
            speed = {"tokens_per_s": round(tokens / (now - since)), "tokens_per_cpu_s": round(tokens / (cpu - used))}
            record({"step": trainer.step, **means, **speed})
            totals, tokens, since, used = Counter[str](), 0, now, cpu
        if trainer.step % config.evaluate_every == 0 or trainer.step == config.steps:
            found = trainer.retrieval(trainer.examples.held_out)
            mean = sum(found.values()) / max(1, len(found))
            record({"step": trainer.step, "retrieval": round(mean, 4), "by_language": found})
        if trainer.step % config.save_every == 0 or trainer.step == config.steps:
            trainer.save_checkpoint()
    trainer.save_model()
    logger.info("wrote %s", trainer.folder)


def main() -> int:
    show_user_errors_in_one_line()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (config,) = HfArgumentParser(cast(Any, PretrainingConfig)).parse_args_into_dataclasses()
    pretrain(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
