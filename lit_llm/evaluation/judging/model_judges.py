"""Judges that are model folders of this machine: a language model's probabilities, or a reward model's scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lit_llm.config import SamplingConfig, UserError
from lit_llm.evaluation.judging.judges import Reply
from lit_llm.evaluation.judging.wording import LOWEST, Question, Verdict, candidates, request
from lit_llm.generation import Engine
from lit_llm.generation.inference import inference
from lit_llm.model import Decoder
from lit_llm.modules.rewards import model_scores
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import ChatFormat, Message

_Key = tuple[tuple[Message, ...], str]
_VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie")


class LikelihoodJudge:
    """Gives the verdict that a language model finds likeliest after a question: [[A]], [[B]] or [[C]].

    It gives no reasons, so that a small model's verdict may hang on the order of the answers alone, which the report
    shows.

    Its grade of a single answer is the mean of the grades, weighted by the probabilities that it gives them.

    Args:
        model: a language model, in evaluation mode.
        tokenizer: its own; has chat tokens or a template.
        name: what it is called.
        rubric: what makes an answer good; None: the built-in criterion.
        batch_size: questions read at once.

    Raises:
        UserError: the tokenizer knows no conversations.
    """

    minds_order = True

    def __init__(self, model: Decoder, tokenizer: Tokenizer, name: str, rubric: str | None, batch_size: int) -> None:
        self.name, self.rubric = name, rubric
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._chat = chat_of(tokenizer, f"judge.model {name}")

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """See `Judge`.

        Raises:
            UserError: predictions are not finite.
        """
        asked = [self._chat.render_prompt(request(question, self.rubric, aloud=False)) for question in questions]
        texts = [[self._tokenizer.encode(text) for text in candidates(question)] for question in questions]
        lengths = [len(ids) + max(map(len, own)) for ids, own in zip(asked, texts, strict=True)]
        fitting = []
        for number, length in enumerate(lengths):
            if (problem := _too_long(length, self._model)) is None:
                fitting.append(number)
            else:
                yield number, Reply(problem=problem)
        if not fitting:
            return
        # three candidates of a question, or ten, begin alike, and what they share is read once
        engine = Engine(self._model, self._batch_size, max(lengths[number] for number in fitting))
        places = {
            self._submit(engine, asked[number], text): (number, place)
            for number in fitting
            for place, text in enumerate(texts[number])
        }
        scores = {number: [0.0] * len(texts[number]) for number in fitting}
        left = {number: len(texts[number]) for number in fitting}
        while engine.busy:
            for event in engine.step():
                number, place = places[event.request]
                if event.error is not None:
                    raise event.error
                if event.log_probs is not None:
                    scores[number][place] += event.log_probs.chosen
                if event.finish_reason is not None:
                    left[number] -= 1
                    if not left[number]:
                        yield number, _chosen(questions[number], scores[number], len(asked[number]))

    def _submit(self, engine: Engine, asked: list[int], text: list[int]) -> int:
        """Have a candidate written after a question, token by token, for its log-probabilities; returns the request."""
        vocabulary = self._model.config.vocab_size or 0

        def only(written: list[int]) -> Tensor:
            mask = torch.zeros(vocabulary, dtype=torch.bool)
            mask[text[len(written)]] = True
            return mask

        sampling = SamplingConfig(max_new_tokens=len(text), temperature=0.0, context_full="stop")
        return engine.submit(asked, sampling, log_probs=0, allowed_tokens=only)


class RewardJudge:
    """Gives the verdict for the answer with the higher score of a reward model; its grade of an answer is that score.

    Args:
        model: a reward model.
        tokenizer: its own.
        name: what it is called.
        batch_size: answers read at once.

    Raises:
        UserError: the tokenizer knows no conversations.
    """

    minds_order = False

    def __init__(self, model: Decoder, tokenizer: Tokenizer, name: str, batch_size: int) -> None:
        self.name = name
        self._model, self._chat, self._batch_size = model, chat_of(tokenizer, f"judge.model {name}"), batch_size
        self._known: dict[_Key, float | str] = {}

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """See `Judge`; an answer that is met again is not read again.

        Raises:
            UserError: a score is not finite.
        """
        for begin in range(0, len(questions), self._batch_size):
            some = questions[begin : begin + self._batch_size]
            texts = {
                (question.prompt, answer): self._ids(question.prompt, answer)
                for question in some
                for answer in _answers(question)
                if (question.prompt, answer) not in self._known
            }
            self._score(texts)
            for number, question in enumerate(some, begin):
                keys = [(question.prompt, answer) for answer in _answers(question)]
                tokens = sum(len(texts.get(key, ())) for key in keys)
                yield number, self._reply([self._known[key] for key in keys], tokens)

    def _ids(self, prompt: tuple[Message, ...], answer: str) -> list[int]:
        rendered = self._chat.render([*prompt, Message("assistant", answer)])
        end = len(rendered.ids) - rendered.supervised[::-1].index(True)
        return rendered.ids[:end]

    def _score(self, texts: Mapping[_Key, list[int]]) -> None:
        """Add the score of each text, or why it has none, to what is known."""
        self._known |= {key: _too_long(len(ids), self._model) or 0.0 for key, ids in texts.items()}
        fitting = [key for key in texts if not isinstance(self._known[key], str)]
        for begin in range(0, len(fitting), self._batch_size):
            keys = fitting[begin : begin + self._batch_size]
            with inference(self._model, sharded=False):
                scores = model_scores(self._model, *_padded([texts[key] for key in keys], self._model))
            self._known |= {key: _finite(score) for key, score in zip(keys, scores.tolist(), strict=True)}

    def _reply(self, scores: Sequence[float | str], tokens: int) -> Reply:
        """What is said of one answer or two with these scores, or with a word about why there is none."""
        problem = next((score for score in scores if isinstance(score, str)), None)
        if problem is not None:
            return Reply(problem=problem)
        told = " and ".join(f"{score:.4f}" for score in scores)
        if len(scores) == 1:
            return Reply(grade=float(scores[0]), text=told, prompt_tokens=tokens)
        one, other = map(float, scores)
        verdict: Verdict = "tie" if one == other else "first" if one > other else "second"
        return Reply(verdict, text=told, prompt_tokens=tokens)


def chat_of(tokenizer: Tokenizer, name: str) -> ChatFormat:
    """How a model's conversations are written.

    Raises:
        UserError: its tokenizer knows none.
    """
    try:
        return ChatFormat(tokenizer)
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(
            f"{name} cannot hold a conversation: {reason}; give a model after sft.py, or a chat model"
        ) from None


def _chosen(question: Question, log_probs: Sequence[float], tokens: int) -> Reply:
    """What a judge says whose candidates have these log-probabilities."""
    shares = torch.tensor(log_probs, dtype=torch.float64).softmax(0).tolist()
    told = ", ".join(f"{text} {share:.3f}" for text, share in zip(candidates(question), shares, strict=True))
    if question.second is None:
        grade = sum(grade * share for grade, share in enumerate(shares, LOWEST))
        return Reply(grade=grade, text=told, prompt_tokens=tokens)
    return Reply(_VERDICTS[shares.index(max(shares))], text=told, prompt_tokens=tokens)


def _answers(question: Question) -> list[str]:
    return [question.first] if question.second is None else [question.first, question.second]


def _padded(rows: Sequence[Sequence[int]], model: Decoder) -> tuple[Tensor, Tensor]:
    """Rows padded on the right [rows, longest], and their lengths [rows], on the model's device."""
    device = model.embedding.weight.device
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return tokens.to(device), lengths.to(device)


def _too_long(length: int, model: Decoder) -> str | None:
    most = model.config.max_position_embeddings
    return f"too long for the judge: {length:,} tokens, and its context is {most:,}" if length > most else None


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UserError("the judge's scores are not finite; its weights are damaged, or need dtype float32")
    return value
