"""Judges that are model folders of this machine: a language model's probabilities, or a reward model's scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.evaluation.judging.judges import Reply
from lit_llm.evaluation.judging.wording import LOWEST, Question, Verdict, candidates, request
from lit_llm.generation.inference import inference
from lit_llm.model import Decoder, token_log_probs
from lit_llm.modules.rewards import model_scores
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import ChatFormat, Message

_Key = tuple[tuple[Message, ...], str]
_VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie")


class LikelihoodJudge:
    """Gives the verdict that a language model finds likeliest after a question: [[A]], [[B]] or [[C]].

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
        self._model, self._chat, self._batch_size = model, chat_of(tokenizer, f"judge.model {name}"), batch_size

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """See `Judge`."""
        rows = [self._rows(question) for question in questions]
        for batch in _batches([max(len(ids) for ids, _ in each) for each in rows], self._batch_size):
            fitting = []
            for number in batch:
                if (problem := _too_long(rows[number][-1][0], self._model)) is None:
                    fitting.append(number)
                else:
                    yield number, Reply(problem=problem)
            if not fitting:
                continue
            scores = self._log_probs([row for number in fitting for row in rows[number]])
            for number, own in zip(fitting, scores.view(len(fitting), -1), strict=True):
                read = sum(len(ids) for ids, _ in rows[number])
                yield number, _chosen(questions[number], own, read)

    def _rows(self, question: Question) -> list[tuple[list[int], int]]:
        """Each candidate reply after the question, as ids and how many of them are the question's."""
        asked = request(question, self.rubric, aloud=False)
        rendered = [self._chat.render_answer(asked, [Message("assistant", text)]) for text in candidates(question)]
        return [(row.ids, begin) for row, begin in rendered]

    def _log_probs(self, rows: Sequence[tuple[list[int], int]]) -> Tensor:
        """The log-probability of each candidate [rows]."""
        tokens, _ = _padded([ids for ids, _ in rows], self._model)
        targets = torch.full_like(tokens, IGNORE_INDEX)
        for row, (ids, begin) in enumerate(rows):
            targets[row, begin - 1 : len(ids) - 1] = tokens[row, begin : len(ids)]
        with inference(self._model, sharded=False):
            return token_log_probs(self._model, tokens, targets).log_probs.double().sum(1).cpu()


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
        texts = {
            (question.prompt, answer): self._ids(question.prompt, answer)
            for question in questions
            for answer in (question.first, question.second)
            if answer is not None and (question.prompt, answer) not in self._known
        }
        keys = list(texts)
        for batch in _batches([len(texts[key]) for key in keys], self._batch_size):
            self._score([keys[number] for number in batch], texts)
        for number, question in enumerate(questions):
            answers = [question.first, *([] if question.second is None else [question.second])]
            tokens = sum(len(texts.get((question.prompt, answer), ())) for answer in answers)
            yield number, self._reply([self._known[question.prompt, answer] for answer in answers], tokens)

    def _ids(self, prompt: tuple[Message, ...], answer: str) -> list[int]:
        rendered = self._chat.render([*prompt, Message("assistant", answer)])
        end = len(rendered.ids) - rendered.supervised[::-1].index(True)
        return rendered.ids[:end]

    def _score(self, keys: Sequence[_Key], texts: Mapping[_Key, list[int]]) -> None:
        fitting = []
        for key in keys:
            if (problem := _too_long(texts[key], self._model)) is None:
                fitting.append(key)
            else:
                self._known[key] = problem
        if not fitting:
            return
        with inference(self._model, sharded=False):
            scores = model_scores(self._model, *_padded([texts[key] for key in fitting], self._model))
        for key, score in zip(fitting, scores.tolist(), strict=True):
            self._known[key] = _finite(score)

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


def _chosen(question: Question, log_probs: Tensor, tokens: int) -> Reply:
    """What a judge says whose candidates have these log-probabilities [candidates]."""
    for value in log_probs.tolist():
        _finite(value)
    shares = log_probs.softmax(0).tolist()
    told = ", ".join(f"{text} {share:.3f}" for text, share in zip(candidates(question), shares, strict=True))
    if question.second is None:
        return Reply(
            grade=sum(grade * share for grade, share in enumerate(shares, LOWEST)), text=told, prompt_tokens=tokens
        )
    return Reply(_VERDICTS[int(log_probs.argmax())], text=told, prompt_tokens=tokens)


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of rows in batches of like lengths."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def _padded(rows: Sequence[Sequence[int]], model: Decoder) -> tuple[Tensor, Tensor]:
    """Rows padded on the right [rows, longest], and their lengths [rows], on the model's device."""
    device = model.embedding.weight.device
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return tokens.to(device), lengths.to(device)


def _too_long(ids: Sequence[int], model: Decoder) -> str | None:
    most = model.config.max_position_embeddings
    return f"too long for the judge: {len(ids):,} tokens, and its context is {most:,}" if len(ids) > most else None


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UserError(
            "what the judge gives the answers is not finite; its weights are damaged, or need dtype float32"
        )
    return value
