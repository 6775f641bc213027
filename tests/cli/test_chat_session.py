"""chat.py: what the model reads of a conversation, the commands, and the script in a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from chat_rows import LETTERS, save_policy
from chat_script import ENVIRONMENT, ONLY_LETTERS, TOKENIZER, Terminal, command
from conftest import tiny_model
from foreign_tokenizers import llama3, save_foreign_tokenizer
from random_decoder import random_decoder

from lit_llm.cli import main, parse
from lit_llm.cli.chat import chat
from lit_llm.cli.conversation import COMMANDS, Conversation
from lit_llm.config import ChatConfig, SamplingConfig, UserError, sample_seed
from lit_llm.data.conversations.reading import read_conversations
from lit_llm.generation import complete
from lit_llm.interop import save_model_folder
from lit_llm.stages.loading import LoadedModel, load
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer

CONTEXT = 64
GREEDY = SamplingConfig(max_new_tokens=8, temperature=0.0, context_full="stop", logit_bias=ONLY_LETTERS)
DRAWN = replace(GREEDY, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose model says something else to everything."""
    model = random_decoder(tiny_model(vocab_size=TOKENIZER.vocab_size, max_position_embeddings=CONTEXT), std=0.4)
    return save_policy(tmp_path_factory.mktemp("policy"), TOKENIZER, model)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(ChatConfig(str(folder), accelerator="cpu"))


def begin(loaded: LoadedModel, sampling: SamplingConfig = GREEDY, **options: Any) -> Conversation:
    return Conversation(loaded, ChatConfig(str(loaded.folder), sampling=sampling, **options))


def say(conversation: Conversation, line: str) -> str:
    """The answer to a message, or to /retry."""
    answer = conversation.handle(line).answer
    assert answer is not None
    return "".join(answer)


def answer_to(loaded: LoadedModel, messages: Sequence[Message], sampling: SamplingConfig = GREEDY) -> str:
    """What the model answers to a conversation that it reads as a whole."""
    form = ChatFormat(loaded.tokenizer)
    prompt = form.render_prompt(messages)
    return complete(loaded.model, [prompt], sampling, tokenizer=loaded.tokenizer, stop_tokens=form.stop_ids)[0].text


def user(content: str) -> Message:
    return Message("user", content)


def test_each_answer_is_the_one_to_the_whole_conversation(loaded: LoadedModel) -> None:
    conversation = begin(loaded, system="kd")
    first, second = say(conversation, "bc"), say(conversation, "fgh")
    system, turns = Message("system", "kd"), conversation.turns
    assert turns == [user("bc"), Message("assistant", first), user("fgh"), Message("assistant", second)]
    assert first == answer_to(loaded, [system, user("bc")]) != answer_to(loaded, [user("bc")])
    assert second == answer_to(loaded, [system, *turns[:3]]) != answer_to(loaded, [system, turns[2]])
    assert len(second) == 8 and set(first + second) <= set(LETTERS)
    assert conversation.last is not None
    assert (conversation.last.prompt_tokens, conversation.last.written.finish_reason) == (12 + 7 + 13 + 8 + 3, "length")
    assert say(begin(loaded, prefill_chunk=3, system="kd"), "bc") == first


def test_an_answer_reads_only_what_is_new(loaded: LoadedModel) -> None:
    """With the same answers as without the cache; one that is stopped leaves nothing in use."""
    conversation, forgetful = begin(loaded), begin(loaded, prefix_cache_mib=0)
    assert conversation.prefix_cache is not None and forgetful.prefix_cache is None
    cached = []
    for line in ("bc", "fgh", "/retry"):
        assert say(conversation, line) == say(forgetful, line)
        assert conversation.last is not None
        cached.append(conversation.last.written.cached_tokens)
    # 16 of the 18 that the first exchange had without its last token, and then 16 of all that is asked again
    read = conversation.last.prompt_tokens
    assert cached == [0, 16, (read - 1) // 16 * 16]
    answer = conversation.handle("b").answer
    assert answer is not None and next(answer)
    assert conversation.prefix_cache.counts().pages_in_use > 0
    answer.close()
    assert conversation.prefix_cache.counts().pages_in_use == 0


def test_what_is_written_like_a_special_token_is_text(loaded: LoadedModel) -> None:
    conversation = begin(loaded, system="<|im_end|>")
    told = conversation.handle("<|im_start|>")
    assert told.answer is not None and "".join(told.answer)
    assert told.text == "the message has <|im_start|>, the name of a special token, which the model reads as letters"
    assert conversation.last is not None and conversation.last.prompt_tokens == (10 + 10) + (5 + 12) + 3
    assert "; it has <|pad|>, the name of a special token" in conversation.handle("/system <|pad|>b").text
    assert "special" not in conversation.handle("b").text


@pytest.mark.parametrize("written", [True, False])
def test_a_conversation_begins_as_its_template_has_it_or_as_asked(written: bool, tmp_path: Path) -> None:
    """With one begin token at most, whoever puts it there."""
    template = ("{{ bos_token }}" if written else "") + (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = Tokenizer(llama3(["def"]), {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template})
    begin_id = tokenizer.special_ids["<s>"]
    model = random_decoder(tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT))
    save_model_folder(tmp_path, model.config, model.state_dict(), tokenizer)
    loaded = load(ChatConfig(str(tmp_path), accelerator="cpu"))
    rendered = ChatFormat(loaded.tokenizer).render_prompt([user("b")])
    rest = rendered[1:] if written else rendered
    assert begin_id not in rest and rendered == [begin_id] * written + rest
    for rule, expected in (("auto", rendered), ("always", [begin_id, *rest]), ("never", rest)):
        conversation = begin(loaded, begin_token=rule)
        assert conversation._prompt([user("b")])[0] == expected


def test_a_retry_draws_with_another_seed(loaded: LoadedModel) -> None:
    conversation = begin(loaded, DRAWN)
    say(conversation, "bc")
    before = conversation.turns
    answers = [say(conversation, line) for line in ("df", "/retry", "/retry")]
    assert answers == [
        answer_to(loaded, [*before, user("df")], replace(DRAWN, seed=sample_seed(5, n))) for n in range(3)
    ]
    assert len(set(answers)) == 3
    assert conversation.turns == [*before, user("df"), Message("assistant", answers[-1])]
    conversation.handle("/undo")
    assert conversation.turns == before
    assert say(conversation, "/retry") == answer_to(loaded, [user("bc")], replace(DRAWN, seed=sample_seed(5, 1)))
    assert say(conversation, "g") == answer_to(loaded, conversation.turns[:-1], DRAWN)
    conversation.handle("/set seed 40")
    assert say(conversation, "/retry") == answer_to(loaded, conversation.turns[:-1], replace(DRAWN, seed=40))
    greedy = begin(loaded)
    say(greedy, "b")
    assert "at temperature 0 every answer is the same" in greedy.handle("/retry").text


def test_the_oldest_turns_are_left_out_when_room_ends(loaded: LoadedModel) -> None:
    """An exchange of one letter and eight costs 19 tokens, all besides earlier exchanges 20; 56 of 64 may be read, so
    that an answer has room."""
    conversation = begin(loaded, system="k")
    told = []
    for number, line in enumerate("bcdfgh", start=1):
        before = conversation.turns
        reply = conversation.handle(line)
        told.append(reply.text)
        assert reply.answer is not None
        kept = before[2 * max(number - 2, 0) :]
        assert "".join(reply.answer) == answer_to(loaded, [Message("system", "k"), *kept, user(line)])
        assert conversation.last is not None and conversation.last.prompt_tokens == 20 + 19 * len(kept) // 2
    assert len(conversation.turns) == 12
    assert "no longer fits into the context of 64 tokens" in told[2] and told.count("") == 5
    conversation.handle("/reset")
    assert [bool(say(conversation, "b")), bool(say(conversation, "c"))] == [True, True]
    assert "no longer fits" in conversation.handle("d").text


def test_a_message_that_is_too_long_alone(loaded: LoadedModel) -> None:
    conversation = begin(loaded)
    say(conversation, "bc")
    before = conversation.turns
    with pytest.raises(UserError, match=r"^the message takes 64 tokens, which leaves no room .* of 64 tokens; shorten"):
        conversation.handle("b" * 56)
    conversation.handle("/system k")
    with pytest.raises(UserError, match="takes 64 tokens with the system message"):
        conversation.handle("b" * 45)
    assert conversation.turns == before
    assert say(conversation, "b" * 44) == answer_to(loaded, [Message("system", "k"), user("b" * 44)])
    assert len(conversation.turns[-1].content) == 2  # until the context is full
    conversation.handle("/set truncate_prompt true")
    assert len(say(conversation, "b" * 90)) == 8
    assert conversation.last is not None and conversation.last.prompt_tokens == 56


def test_what_was_written_of_a_stopped_answer_stays(loaded: LoadedModel) -> None:
    conversation = begin(loaded)
    whole = answer_to(loaded, [user("bc")])
    for stop in (lambda answer: answer.close(), lambda answer: answer.throw(KeyboardInterrupt)):
        answer = conversation.handle("bc").answer
        assert answer is not None
        assert next(answer) + next(answer) == whole[:2]
        with contextlib.suppress(KeyboardInterrupt):
            stop(answer)
        assert conversation.turns[-2:] == [user("bc"), Message("assistant", whole[:2])]
        conversation.handle("/undo")
    assert say(conversation, "bc") == whole


def test_an_answer_stopped_before_its_first_word_changes_nothing(loaded: LoadedModel) -> None:
    conversation = begin(loaded)
    say(conversation, "bc")
    before = conversation.turns

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for line in ("fg", "/retry"):
        answer = conversation.handle(line).answer
        assert answer is not None
        hook = loaded.model.register_forward_hook(interrupt)  # Ctrl-C while the model reads
        try:
            with pytest.raises(KeyboardInterrupt):
                next(answer)
        finally:
            hook.remove()
        assert conversation.turns == before
    assert say(conversation, "/retry") == before[1].content


def test_stop_tokens_are_the_templates_and_the_models(loaded: LoadedModel) -> None:
    for token in ChatFormat(TOKENIZER).stop_ids:
        conversation = begin(loaded, replace(GREEDY, logit_bias={token: 1000.0}))
        assert say(conversation, "bc") == ""
        assert conversation.turns == [user("bc"), Message("assistant", "")]
    whole = answer_to(loaded, [user("bc")])
    own = replace(loaded, stop_tokens=TOKENIZER.encode(whole[3]))
    assert say(begin(own), "bc") == whole[: whole.index(whole[3])]


def test_commands_change_the_conversation(loaded: LoadedModel) -> None:
    conversation = begin(loaded)
    listed = conversation.handle("/help").text
    assert all(any(line.startswith(name) for line in listed.splitlines()) for name in COMMANDS)
    for empty in ("/undo", "/retry"):
        with pytest.raises(UserError, match="there is no"):
            conversation.handle(empty)
    plain = say(conversation, "bc")
    conversation.handle("/reset")
    assert conversation.turns == []
    assert "system message" in conversation.handle("/system kd \n f ").text
    assert conversation.system == "kd \n f"
    assert say(conversation, "bc") == answer_to(loaded, [Message("system", "kd \n f"), user("bc")]) != plain
    conversation.handle("/reset")
    assert conversation.system == "kd \n f"
    conversation.handle("/system")
    assert conversation.system is None and say(conversation, "bc") == plain
    assert say(conversation, "//bc") and conversation.turns[-2] == user("/bc")
    assert all(conversation.handle(word).ends for word in ("/quit", "/exit")) and not conversation.handle("/help").ends
    before = conversation.turns
    for line, message in {"/rset": "no command /rset; /help lists them", "/undo 2": "/undo takes nothing"}.items():
        with pytest.raises(UserError, match=message):
            conversation.handle(line)
    with pytest.raises(UserError, match="not UTF-8"):
        conversation.handle("b\udcff")
    assert conversation.turns == before


def test_every_field_of_the_sampling_can_be_set(loaded: LoadedModel) -> None:
    conversation = begin(loaded, SamplingConfig())
    values = {
        "max_new_tokens": ("7", 7),
        "temperature": ("0", 0),
        "top_k": ("null", None),
        "top_p": ("0.9", 0.9),
        "min_p": ("0.1", 0.1),
        "repetition_penalty": ("1.1", 1.1),
        "presence_penalty": ("-0.5", -0.5),
        "frequency_penalty": ("0.5", 0.5),
        "logit_bias": ("{5: 100}", {5: 100.0}),
        "stop_strings": ('["b c", "d"]', ["b c", "d"]),
        "stop_token_ids": ("[7]", [7]),
        "context_full": ("stop", "stop"),
        "truncate_prompt": ("true", True),
        "seed": ("-3", -3),
    }
    assert set(values) == {field.name for field in fields(SamplingConfig)}
    for name, (text, value) in values.items():
        assert name in conversation.handle(f"/set {name}  {text} ").text
        assert getattr(conversation.sampling, name) == value
    assert conversation.sampling == SamplingConfig(**{name: value for name, (_, value) in values.items()})
    assert conversation.handle("/set top_p").text == "top_p 0.9"
    assert [line.split()[0] for line in conversation.handle("/set").text.splitlines()] == list(asdict(DRAWN))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -1", r"^temperature is -1.0; it must be from 0 to 1,000,000$"),
        ("/set temperature hot", r"^temperature is hot; it must be a number$"),
        ("/set top_p 2", r"^top_p is 2.0; it must be above 0 and at most 1, or null$"),
        ("/set temprature 1", r"^there is no option temprature; the nearest is temperature$"),
        ("/set config x.yaml", r"^there is no option config; the nearest is"),
        ("/set help", r"^there is no option help; the nearest is"),
    ],
)
def test_settings_are_checked(loaded: LoadedModel, line: str, message: str) -> None:
    conversation = begin(loaded)
    with pytest.raises(UserError, match=message):
        conversation.handle(line)
    assert conversation.sampling == GREEDY


def test_saved_conversations_are_rows_to_learn_from(loaded: LoadedModel, tmp_path: Path) -> None:
    conversation = begin(loaded, system="k é")
    path = tmp_path / "a talk.jsonl"
    with pytest.raises(UserError, match="nothing to save yet"):
        conversation.handle(f"/save {path}")
    say(conversation, "bc")
    conversation.handle(f"/save {path}")
    path.write_text(path.read_text().rstrip("\n"))
    say(conversation, "d\nf")
    assert str(path) in conversation.handle(f"/save {path}").text
    rows = list(read_conversations([str(path)]))
    system = Message("system", "k é")
    assert [list(row.messages) for row in rows] == [
        [system, *conversation.turns[:2]],
        [system, *conversation.turns],
    ]
    kept, written = path.read_text(), conversation.turns
    conversation.turns = [*written[:3], Message("assistant", " \n")]
    with pytest.raises(UserError, match=r"answer 2 is empty, and sft\.py leaves .* out; /retry"):
        conversation.handle(f"/save {path}")
    assert path.read_text() == kept
    conversation.handle("/undo")
    conversation.handle(f"/save {path}")
    assert len(read_conversations([str(path)])) == 3
    for given, message in {
        "/save": "no file was given",
        f"/save {tmp_path / 'x.txt'}": "x.txt was given; name one",
        f"/save {tmp_path / 'no' / 'x.jsonl'}": "x.jsonl: cannot be written",
    }.items():
        with pytest.raises(UserError, match=message):
            conversation.handle(given)


def test_a_model_without_a_form_for_conversations(tmp_path: Path) -> None:
    save_foreign_tokenizer("gpt2", tmp_path / "gpt2")
    (tmp_path / "gpt2" / "chat_template.jinja").unlink()
    folder = save_policy(tmp_path / "bare", Tokenizer.load(tmp_path / "gpt2"))
    with pytest.raises(UserError, match=r"bare: .*experiments/generate.py.*experiments/sft.py --data.add_chat_tokens"):
        chat(ChatConfig(str(folder), accelerator="cpu"))


def test_a_template_that_refuses_system_messages(loaded: LoadedModel, tmp_path: Path) -> None:
    loaded.tokenizer.save(tmp_path)
    options = json.loads((tmp_path / "tokenizer_config.json").read_text())
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    options["chat_template"] = refuse + options["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    refusing = replace(loaded, tokenizer=Tokenizer.load(tmp_path))
    with pytest.raises(UserError, match="System role not supported"):
        begin(refusing, system="k")
    conversation = begin(refusing)
    answer = say(conversation, "bc")
    with pytest.raises(UserError, match="System role not supported"):
        conversation.handle("/system k")
    assert conversation.system is None and say(conversation, "/retry") == answer == answer_to(loaded, [user("bc")])


def test_options_from_the_command_line() -> None:
    config = parse(ChatConfig, ["--model", "x", "--system", "Be brief.", "--quantize", "int8", "--sampling.seed", "3"])
    assert (config.model, config.system, config.quantize, config.sampling.seed) == ("x", "Be brief.", "int8", 3)
    assert (config.sampling.max_new_tokens, config.sampling.context_full) == (512, "stop")
    with pytest.raises(UserError, match="prefill_chunk is 0; it must be at least 1"):
        parse(ChatConfig, ["--prefill_chunk", "0"])


def test_lines_from_stdin(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backslash joins lines, blank ones are passed over, what goes wrong is one line, and /quit ends."""
    lines = b"bc\\\r\nd\r\n\n  \n/rset\n\xff\n/set temperature -1\n" + b"b" * 70 + b"\nfg\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    chat(ChatConfig(str(loaded.folder), accelerator="cpu", sampling=GREEDY))
    printed = capsys.readouterr()
    first = answer_to(loaded, [user("bc\nd")])
    second = answer_to(loaded, [user("bc\nd"), Message("assistant", first), user("fg")])
    assert printed.out == f"{first}\n\n{second}\n\n"
    errors = printed.err.splitlines()
    assert [line.split(";")[0] for line in errors] == [
        "error: there is no command /rset",
        "error: the line has bytes that are not UTF-8",
        "error: temperature is -1.0",
        "error: the message takes 78 tokens, which leaves no room for an answer in the context of 64 tokens",
    ]


def test_an_answer_without_a_word_is_said_to_be_one(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bc\n")))
    ends = dict.fromkeys(ChatFormat(TOKENIZER).stop_ids, 1000.0)
    chat(ChatConfig(str(loaded.folder), accelerator="cpu", sampling=replace(GREEDY, logit_bias=ends)))
    assert capsys.readouterr() == ("\n\n", "the model ended its answer before it had written a word\n")


class InterruptedAtTheEnd(io.StringIO):
    """Lines, and Ctrl-C where the next would be."""

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        line = super().readline(size)
        if not line:
            raise KeyboardInterrupt
        return line


def test_an_interrupt_at_the_prompt_ends_the_chat(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", InterruptedAtTheEnd("bc\n"))
    main(ChatConfig, chat, ["--model", str(loaded.folder), "--accelerator", "cpu", "--sampling.temperature", "0"])
    assert capsys.readouterr().out.endswith("\n\n")


def test_the_script_in_a_pipe(loaded: LoadedModel) -> None:
    words = ["--sampling.temperature", "0", "--sampling.max_new_tokens", "8", "--system", "k"]
    script = command(loaded.folder, *words)
    done = subprocess.run(script, input="bc\nfg", capture_output=True, text=True, env=ENVIRONMENT, timeout=100)
    assert done.returncode == 0, done.stderr
    system = Message("system", "k")
    first = answer_to(loaded, [system, user("bc")])
    second = answer_to(loaded, [system, user("bc"), Message("assistant", first), user("fg")])
    assert (done.stdout, done.stderr) == (f"{first}\n\n{second}\n\n", "")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_the_script_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C stops an answer that would go on for long, Ctrl-D ends the chat."""
    script = command(folder, "--sampling.max_new_tokens", "1000000", "--sampling.context_full", "shift")
    terminal = Terminal(script)
    try:
        assert "64 tokens of context" in terminal.read_until("you>")
        terminal.type("bc\n")
        terminal.read_until(f"[{LETTERS}]{{20}}")
        terminal.type("\x03")
        assert "stopped" in terminal.read_until("you>")
        terminal.type(f"/save {tmp_path / 'talk.jsonl'}\n")
        terminal.read_until("last row of")
        terminal.read_until("you>")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.file)
    (row,) = read_conversations([str(tmp_path / "talk.jsonl")])
    assert row.messages[0] == user("bc") and len(row.messages[1].content) >= 10


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # heeds no generation prompt, and has the system's text in the last turn, if that is a user's
        (
            "{% set first = messages[0] %}{% for m in messages if m.role != 'system' %}[{{ m.role }}"
            "{% if loop.last and m.role == 'user' and first.role == 'system' %} {{ first.content }}{% endif %}"
            "]{{ m.content }}<|im_end|>{% endfor %}",
            "[user kd]bc<|im_end|>",
        ),
        # opens a thought
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}[assistant]<think>{% endif %}",
            "[system]kd<|im_end|>[user]bc<|im_end|>[assistant]<think>",
        ),
    ],
)
def test_templates_of_others(loaded: LoadedModel, template: str, expected: str) -> None:
    state, config = json.dumps(TOKENIZER.state), {"chat_template": template, "eos_token": "<|im_end|>"}
    other = replace(loaded, tokenizer=Tokenizer(tokenizers.Tokenizer.from_str(state), config))
    conversation = begin(other, system="kd")
    turns = [Message("system", "kd"), user("bc")]
    answer = say(conversation, "bc")
    assert answer == answer_to(other, turns)
    prompt = ChatFormat(other.tokenizer).render_prompt(turns)
    assert other.tokenizer.decode(prompt) == expected
    assert conversation.last is not None and conversation.last.prompt_tokens == len(prompt)
    assert say(conversation, "d") == answer_to(other, [*turns, Message("assistant", answer), user("d")])


def test_a_model_that_was_only_pretrained_is_announced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").symlink_to(folder)
    said = {}
    for options in ("schedule: {}\ninit_from: null\n", "schedule: {}\ninit_from: null\nlora: {}\n", "schedule: {}"):
        (tmp_path / "config.yaml").write_text(options)
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        chat(ChatConfig(str(tmp_path), accelerator="cpu"))
        said[options] = "was only pretrained" in capsys.readouterr().err
    assert list(said.values()) == [True, False, False]
