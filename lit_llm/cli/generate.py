"""Writing text to the terminal. Heavy libraries are imported only once the options are right."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.config import GenerateConfig, SamplingConfig, UserError, sample_seed
from lit_llm.config.generation import DEFAULT_TEXTS_AT_ONCE
from lit_llm.config.json_text import parse_json
from lit_llm.config.notices import with_pictures
from lit_llm.config.progress import progress
from lit_llm.data.sources.encoding import read_text
from lit_llm.stages.loading import load, tell_begin_token
from lit_llm.stages.quantization import QualityText

if TYPE_CHECKING:
    from lit_llm.generation import Completion, Engine, TextConstraint
    from lit_llm.model import Decoder
    from lit_llm.tokenizer import Tokenizer


@dataclass
class _Text:
    """A text that is to be written: its prompt in words and ids, and how its tokens are chosen."""

    prompt: str
    ids: list[int]
    sampling: SamplingConfig


class _Writer:
    """A loaded model together with the options by which it writes."""

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config
        own = QualityText("the prompts", tuple(read_prompts(config)))
        self.loaded = load(config, own, compile=config.compile)
        self.model, self.tokenizer = self.loaded.model, self.loaded.tokenizer
        self.stop_tokens = self.loaded.stop_tokens

    def texts(self) -> list[_Text]:
        """Return every sample of every prompt; what of it is read otherwise than meant is said on stderr."""
        from lit_llm.tokenizer import joined_with_next, prompt_ids, read_as_letters

        config = self.config
        texts = []
        for number, prompt in enumerate(read_prompts(config), start=1):
            ids = prompt_ids(self.tokenizer, prompt, config.begin_token, special_tokens=config.special_tokens)
            if not config.special_tokens and (note := read_as_letters(self.tokenizer, prompt, f"prompt {number}")):
                print(note, file=sys.stderr)
            if note := joined_with_next(self.tokenizer, prompt, f"prompt {number}"):
                print(note, file=sys.stderr)
            for sample in range(self.config.num_samples):
                sampling = replace(self.config.sampling, seed=sample_seed(self.config.sampling.seed, sample))
                texts.append(_Text(prompt, ids, sampling))
        return texts

    def draft(self) -> Decoder:
        """Load the draft model, which guesses ahead for the other one."""
        return load(replace(self.config, model=str(self.config.draft_model), quantize="none", quality_text=None)).model

    def engine(self, texts: list[_Text], max_batch: int) -> Engine:
        """Return an engine that has room for these texts and to which they have been submitted."""
        from lit_llm.generation import Engine

        longest = max(len(text.ids) for text in texts) + self.config.sampling.max_new_tokens
        engine = Engine(
            self.model,
            min(max_batch, len(texts)),
            min(self.model.config.max_position_embeddings, longest),
            tokenizer=self.tokenizer,
            prefill_chunk=self.config.prefill_chunk,
            compile=self.config.compile,
        )
        constraint = self.constraint()
        for text in texts:
            engine.submit(
                text.ids,
                text.sampling,
                stop_tokens=self.stop_tokens,
                log_probs=self.config.log_probs,
                allowed_tokens=None if constraint is None else constraint.start(),
            )
        return engine

    def constraint(self) -> TextConstraint | None:
        """Return the regular expression or JSON schema that texts are held to, or None where neither is asked for."""
        config = self.config
        if config.regex is None and config.json_schema is None:
            return None
        from lit_llm.generation import TextConstraint

        vocab_size = self.model.config.vocab_size or 0
        if config.regex is not None:
            return TextConstraint.of_regex(config.regex, self.tokenizer, vocab_size, self.stop_tokens)
        schema = str(config.json_schema)
        if not schema.lstrip().startswith("{"):
            schema = read_text(Path(schema))
        return TextConstraint.of_schema(schema, self.tokenizer, vocab_size, self.stop_tokens)


def generate(config: GenerateConfig) -> None:
    """Write text to the terminal, and on stderr how fast that went.

    Raises:
        UserError: the model or the prompts are not there or cannot be used as asked.
    """
    writer = _Writer(config)
    tell_begin_token(config, writer.tokenizer)
    texts = writer.texts()
    began = time.perf_counter()
    if config.num_beams > 1 or config.draft_model is not None:
        tokens = _write_by_search(writer, texts)
    elif config.stream and config.log_probs is None:
        tokens = _stream(writer, texts)
    else:
        tokens = _write_in_batches(writer, texts)
    seconds = time.perf_counter() - began
    print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s", file=sys.stderr)


def _stream(writer: _Writer, texts: list[_Text]) -> int:
    """Show each text as it is written, one after the other, and return the number of tokens."""
    engine = writer.engine(texts, max_batch=1)
    tokens, place, begun = 0, 0, False
    errors: list[Exception] = []
    while engine.busy:
        for event in engine.step():
            if not begun:
                _write(texts[place].prompt)
            _write(event.text)
            begun = event.finish_reason is None
            if not begun:
                _write("\n\n")
                place += 1
            sys.stdout.flush()
            tokens += event.token is not None
            if event.error is not None:
                errors.append(event.error)
    _raise_first(errors, len(texts))
    return tokens


def _write_in_batches(writer: _Writer, texts: list[_Text]) -> int:
    """Write all texts at once, show each when those before it are whole, and return the number of tokens."""
    from lit_llm.generation import Completion

    engine = writer.engine(texts, writer.config.batch_size or DEFAULT_TEXTS_AT_ONCE)
    done = [Completion() for _ in texts]
    shown = 0
    with progress("writing", len(texts), "texts") as advance:
        while engine.busy:
            for event in engine.step():
                done[event.request - 1].add(event)  # requests are numbered from 1
                advance(event.finish_reason is not None)
            while shown < len(done) and done[shown].finish_reason is not None:
                _write(_shown(writer, texts[shown], done[shown]) + "\n")
                shown += 1
    _raise_first([completion.error for completion in done if completion.error is not None], len(texts))
    return sum(len(completion.ids) for completion in done)


def _write(text: str) -> None:
    """Show a text; what is no terminal gets it unchanged."""
    sys.stdout.write(with_pictures(text) if sys.stdout.isatty() else text)


def _raise_first(errors: list[Exception], texts: int) -> None:
    """Raise a UserError if there were errors, with the number of texts that could not be written to their end."""
    if errors:
        raise UserError(f"{len(errors)} of {texts} texts could not be written to their end: {errors[0]}") from errors[0]


def _shown(writer: _Writer, text: _Text, completion: Completion) -> str:
    if writer.config.log_probs is None:
        return f"{text.prompt}{completion.text}\n"

    def spelled(token: int) -> str:
        return writer.tokenizer.decode([token])

    line: dict[str, Any] = {
        "prompt": text.prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "tokens": [
            {
                "id": token,
                "token": spelled(token),
                "log_prob": found.chosen,
                "alternatives": [
                    {"id": other, "token": spelled(other), "log_prob": value} for other, value in found.alternatives
                ],
            }
            for token, found in zip(completion.ids, completion.log_probs, strict=True)
        ],
    }
    return json.dumps(line, ensure_ascii=False)


def _write_by_search(writer: _Writer, texts: list[_Text]) -> int:
    """Write each text by beam search or with a draft model, and return the number of tokens."""
    from lit_llm.generation import beam_search, speculate

    config = writer.config
    draft = writer.draft() if config.draft_model is not None else None
    tokens = guessed = kept = 0
    for text in texts:
        if draft is None:
            ids = beam_search(
                writer.model,
                text.ids,
                num_beams=config.num_beams,
                max_new_tokens=text.sampling.max_new_tokens,
                length_penalty=config.length_penalty,
                stop_tokens=(*writer.stop_tokens, *text.sampling.stop_token_ids),
                truncate_prompt=text.sampling.truncate_prompt,
                prefill_chunk=config.prefill_chunk,
            )[0].ids
        else:
            done = speculate(
                writer.model,
                draft,
                text.ids,
                text.sampling,
                draft_tokens=config.draft_tokens,
                stop_tokens=writer.stop_tokens,
                prefill_chunk=config.prefill_chunk,
            )
            ids, guessed, kept = done.ids, guessed + done.guessed, kept + done.kept
        _write(f"{text.prompt}{_continuation(writer.tokenizer, ids)}\n\n")
        sys.stdout.flush()
        tokens += len(ids)
    if guessed:
        print(f"{kept} of {guessed} guesses of the draft model were kept", file=sys.stderr)
    return tokens


def _continuation(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = tokenizer.stream_decoder()
    return "".join(map(decoder.push, ids)) + decoder.flush()


def read_prompts(config: GenerateConfig) -> list[str]:
    """Return the prompts of the options and of the file, or a single empty one where there are none.

    Raises:
        UserError: the file is missing, or a line of it is no prompt.
    """
    prompts = list(config.prompts)
    if config.prompts_file is not None:
        prompts += _prompts_of_file(Path(config.prompts_file))
    return prompts or [""]


def _prompts_of_file(path: Path) -> Iterator[str]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            yield line
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        prompt = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
        if not isinstance(prompt, str):
            raise UserError(f'{path}, line {number}: not a JSON object with a "prompt" or a "text"')
        yield prompt
