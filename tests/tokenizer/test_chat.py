"""Conversations as ids: what transformers' templates give, with the assistant's words marked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tokenizers
from chat_templates import (
    CHATML_TOKENS,
    GEMMA,
    LLAMA3_TOKENS,
    MISTRAL,
    OPEN_THOUGHT_SYSTEM_LAST,
    OPEN_THOUGHTS,
    SYSTEM_IN_LAST_TURN,
    TEMPLATES,
    THINKING,
)
from foreign_tokenizers import BOS, EOS, FORMS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from lit_llm.config import UserError
from lit_llm.interop.generation_settings import token_ids
from lit_llm.tokenizer import (
    CHATML_TEMPLATE,
    SPECIAL_TOKENS,
    ChatFormat,
    Message,
    Tokenizer,
    train_bpe,
    train_character,
    with_chat_tokens,
)

SAMPLE = Path(__file__).read_text(encoding="utf-8")


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """The user's and the assistant's turns in turn."""
    start = [] if system is None else [Message("system", system)]
    return start + [Message(("user", "assistant")[index % 2], content) for index, content in enumerate(contents)]


def plain(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def said(tokenizer: Tokenizer, messages: list[Message]) -> str:
    """What is supervised, as text."""
    rendered = ChatFormat(tokenizer).render(messages)
    return tokenizer.decode(index for index, keep in zip(rendered.ids, rendered.supervised, strict=True) if keep)


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers")


@pytest.fixture(params=["bpe", "character"], scope="module")
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "character":
        return train_character([SAMPLE], show_progress=False)
    return train_bpe([SAMPLE], 400, show_progress=False)


def foreign_tokenizer(form: str, tokens: list[Any]) -> tokenizers.Tokenizer:
    tokenizer = FORMS["llama2" if form == "metaspace" else form]([SAMPLE])
    if form == "metaspace":  # as transformers now reads Llama 2: a space before the first word of all, nowhere else
        state = json.loads(tokenizer.to_str())
        state["normalizer"] = None
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *steps])
    tokenizer.add_special_tokens(tokens)
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def save_foreign(folder: Path, form: str, tokens: list[Any], template: str | None) -> Path:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=foreign_tokenizer(form, tokens), bos_token=BOS, eos_token=EOS, chat_template=template
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=TEMPLATES)
def foreign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, transformers: ModuleType
) -> Iterator[tuple[str, Tokenizer, Any]]:
    form, tokens, template, _ = TEMPLATES[request.param]
    folder = save_foreign(tmp_path_factory.mktemp(request.param), form, tokens, template)
    yield request.param, Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


any_content = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*SPECIAL_TOKENS, *LLAMA3_TOKENS, BOS, EOS, "<end_of_turn>", "[/INST]", "<|end|>"]),
        st.sampled_from(["\n\n", " ", "  x", "assistant\n", "don't", "\ue000", "\ue001\U000f0000", "é", "</think>"]),
    ),
    max_size=4,
).map("".join)
any_turns = st.lists(st.tuples(any_content, any_content), min_size=1, max_size=3)
# hypothesis also tries strings that it finds in the source, such as the names of special tokens
ordinary = st.text(st.characters(exclude_categories=["Cs", "Co", "Cc"], include_characters="\n"), max_size=12).filter(
    lambda text: "<|" not in text
)


def test_chatml_by_hand(ours: Tokenizer) -> None:
    messages = chat("Hi", "Yes <|im_end|>\n", "  go on", "", system="Be\nbrief")
    start, end, newline = [ours.im_start_id], [ours.im_end_id], ours.encode("\n")
    expected = [
        (start + ours.encode("system\nBe\nbrief") + end + newline, False),
        (start + ours.encode("user\nHi") + end + newline, False),
        (start + ours.encode("assistant\n"), False),
        (ours.encode("Yes <|im_end|>\n") + end, True),
        (newline + start + ours.encode("user\n  go on") + end + newline, False),
        (start + ours.encode("assistant\n"), False),
        (end, True),
        (newline, False),
    ]
    rendered = ChatFormat(ours).render(messages)
    assert rendered.ids == [index for ids, _ in expected for index in ids]
    assert rendered.supervised == [kept for ids, kept in expected for _ in ids]
    assert ours.decode(rendered.ids).startswith(
        "<|im_start|>system\nBe\nbrief<|im_end|>\n<|im_start|>user\nHi<|im_end|>"
    )
    assert ChatFormat(ours).stop_ids == [ours.im_end_id, ours.eot_id]
    assert ChatFormat(ours).render_prompt(messages[:2]) == [i for ids, _ in expected[:3] for i in ids]


@given(turns=any_turns)
@settings(max_examples=60, deadline=None)
def test_a_prompt_is_where_the_rendering_of_its_answer_begins(ours: Tokenizer, turns: list[tuple[str, str]]) -> None:
    messages = chat(*(content for turn in turns for content in turn))
    form = ChatFormat(ours)
    rendered = form.render(messages)
    prompt = form.render_prompt(messages[:-1])
    assert rendered.ids[: len(prompt)] == prompt
    assert not any(form.render(messages).supervised[len(prompt) :][-1:])
    # The template's tokens are those of the turns, whatever the contents hold.
    special = [index for index in rendered.ids if index in ours.special_ids.values()]
    assert special == [ours.im_start_id, ours.im_end_id] * len(messages)
    assert said(ours, messages) == "".join(answer + "<|im_end|>" for _, answer in turns)


@pytest.fixture(scope="module")
def ours_in_transformers(
    ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory, transformers: ModuleType
) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp("ours")
    ours.save(folder)
    loaded = Tokenizer.load(folder)
    assert loaded.chat_template == CHATML_TEMPLATE and loaded.digest == ours.digest
    return loaded, transformers.AutoTokenizer.from_pretrained(folder)


@given(turns=st.lists(st.tuples(ordinary, ordinary), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_exported_template_gives_the_same_ids_and_mask(
    ours_in_transformers: tuple[Tokenizer, Any], turns: list[tuple[str, str]]
) -> None:
    tokenizer, theirs = ours_in_transformers
    messages = chat(*(content for user, answer in turns for content in (user, answer.lstrip())), system=" s ")
    rendered = ChatFormat(tokenizer).render(messages)
    both = theirs.apply_chat_template(plain(messages), return_assistant_tokens_mask=True)
    assert rendered.ids == both["input_ids"]
    assert rendered.supervised == [bool(kept) for kept in both["assistant_masks"]]
    prompt = theirs.apply_chat_template(plain(messages[:-1]), add_generation_prompt=True, return_dict=False)
    assert ChatFormat(tokenizer).render_prompt(messages[:-1]) == prompt


def test_words_are_encoded_as_they_are_generated(ours_in_transformers: tuple[Tokenizer, Any]) -> None:
    """Where words begin with white space, transformers may join it with the header's newline; generation cannot."""
    tokenizer, theirs = ours_in_transformers
    messages = chat("Hi", "\n\n    indented")
    ids = ChatFormat(tokenizer).render(messages).ids
    assert tokenizer.decode(ids) == theirs.decode(theirs.apply_chat_template(plain(messages), return_dict=False))
    assert ids[len(ChatFormat(tokenizer).render_prompt(messages[:1])) :][:-2] == tokenizer.encode("\n\n    indented")


def test_no_template_learns_the_date(tokenizer: Tokenizer) -> None:
    """Tokenised rows would be others tomorrow, and a run could not be resumed."""
    dated = CHATML_TEMPLATE + "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    config = {**json.loads(json.dumps({"eos_token": "<|endoftext|>"})), "chat_template": dated}
    foreign = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tokenizer.state)), config)
    turns = [Message("user", "a"), Message("assistant", "b")]
    assert ChatFormat(foreign).render(turns).ids == ChatFormat(tokenizer).render(turns).ids


def test_foreign_templates_give_the_ids_of_transformers(foreign: tuple[str, Tokenizer, Any]) -> None:
    name, tokenizer, theirs = foreign
    form = ChatFormat(tokenizer)
    conversations = [
        chat("Hi there", "Größe 北京 👍"),
        chat(" white\n", "space \n", "one\n\n  two ", "three  four"),
        chat("a", "b", "c", "d", "e", "f"),
    ]
    if name != "gemma":
        conversations += [chat("Hi", "Yes", system="Be brief"), chat("Hi", "Yes", "So", "No", system=" Be ")]
    for messages in conversations:
        ids = form.render(messages).ids
        assert ids == theirs.apply_chat_template(plain(messages), return_dict=False)
        prompt = theirs.apply_chat_template(plain(messages[:-1]), add_generation_prompt=True, return_dict=False)
        assert form.render_prompt(messages[:-1]) == prompt == ids[: len(prompt)]
        assert ids.count(tokenizer.special_ids[BOS]) == (name not in ("qwen2", "qwen3", "phi"))
    end = TEMPLATES[name][3]
    assert form.stop_ids == [tokenizer.special_ids[end], *([tokenizer.eot_id] if end != EOS else [])]
    eos = token_ids(tokenizer)["eos_token_id"]
    assert (eos if isinstance(eos, list) else [eos]) == sorted(form.stop_ids)


EXPECTED_WORDS = {
    "llama3": "b<|eot_id|>d  d<|eot_id|>",
    "qwen2": "b<|im_end|>d  d \n<|im_end|>",
    "qwen3": "b<|im_end|><think>\n\n</think>\n\nd  d \n<|im_end|>",
    "mistral": f"  b{EOS}  d  d{EOS}",  # Llama 2's tokenizer puts a space after each special token
    "llama2": f" b{EOS} d  d{EOS}",
    "metaspace": f" b{EOS} d  d{EOS}",
    "gemma": "b<end_of_turn>d  d<end_of_turn>",
    "phi": " b<|end|> d  d \n<|end|>",
}


def test_foreign_templates_supervise_the_assistants_words(foreign: tuple[str, Tokenizer, Any]) -> None:
    name, tokenizer, _ = foreign
    messages = chat("a", "b", "c", "d  d \n", system=None if name == "gemma" else "s")
    rendered = ChatFormat(tokenizer).render(messages)
    kept = [index for index, keep in zip(rendered.ids, rendered.supervised, strict=True) if keep]
    assert b"".join(map(tokenizer.token_bytes, kept)).decode() == EXPECTED_WORDS[name]


@given(turns=any_turns)
@settings(max_examples=15, deadline=None)
def test_foreign_contents_forge_no_token(foreign: tuple[str, Tokenizer, Any], turns: list[tuple[str, str]]) -> None:
    _, tokenizer, _ = foreign
    messages = chat(*(content for turn in turns for content in turn))
    form = ChatFormat(tokenizer)
    rendered = form.render(messages)
    prompt = form.render_prompt(messages[:-1])
    assert rendered.ids[: len(prompt)] == prompt
    innocent = form.render(chat(*["x"] * len(messages))).ids
    special = set(tokenizer.special_ids.values()) - {tokenizer.special_ids.get("<unk>")}
    assert [index for index in rendered.ids if index in special] == [index for index in innocent if index in special]
    ends = [i for i, keep in zip(rendered.ids, rendered.supervised, strict=True) if keep and i == form.stop_ids[0]]
    assert len(ends) == len(turns)


@pytest.mark.parametrize("foreign", ["qwen3"], indirect=True)
def test_thoughts_are_left_out_of_earlier_turns(foreign: tuple[str, Tokenizer, Any]) -> None:
    _, tokenizer, theirs = foreign
    messages = chat("a", "<think>\nhm\n</think>\n\nb", "c", "<think>\nso\n</think>\n\nd")
    assert said(tokenizer, messages) == "b<|im_end|><think>\nso\n</think>\n\nd<|im_end|>"
    assert ChatFormat(tokenizer).render(messages).ids == theirs.apply_chat_template(plain(messages), return_dict=False)


def with_template(template: str, tokens: list[str]) -> Tokenizer:
    tokenizer = FORMS["gpt2"]([SAMPLE])
    tokenizer.add_special_tokens(tokens)
    return Tokenizer(tokenizer, {"chat_template": template, "bos_token": BOS, "eos_token": {"content": EOS}})


def test_a_template_without_generation_prompt() -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer = with_template(template, [])
    messages = chat("a", "b", "c", " d")
    assert said(tokenizer, messages) == f"b{EOS} d{EOS}"
    prompt = ChatFormat(tokenizer).render_prompt(messages[:1])
    assert tokenizer.decode(prompt) == f"{BOS}[user]a{EOS}[assistant]"
    assert ChatFormat(tokenizer).stop_ids == [tokenizer.special_ids[EOS]]


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
UNUSABLE = {
    "nothing": (None, "neither a chat template nor <|im_start|> and <|im_end|>; set data.add_chat_tokens true"),
    "no end": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "ends an assistant's turn with no special token",
    ),
    "no jinja": ("{% for %}", "chat template is broken"),
    "no words": (
        "{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}",
        "leaves out the content of message 2, an assistant's",
    ),
    "refusing": ("{{ raise_exception('I want\nmore') }}", r"refuses the conversation \(I want more\)"),
    "unsafe": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses the conversation"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_templates_that_cannot_be_used(name: str) -> None:
    template, message = UNUSABLE[name]
    with pytest.raises(UserError, match=message) as error:
        ChatFormat(with_template(template, CHATML_TOKENS if template else []))
    assert "\n" not in str(error.value)


def with_both(folder: Path, transformers: ModuleType, form: str, tokens: list[Any], template: str) -> tuple[Any, Any]:
    save_foreign(folder, form, tokens, template)
    return ChatFormat(Tokenizer.load(folder)), transformers.AutoTokenizer.from_pretrained(folder)


def test_a_system_message_that_moves_is_read_where_it_is_asked_with(tmp_path: Path, transformers: ModuleType) -> None:
    """Rendered without its answer, a prompt has the system's text in its last turn; with it, nowhere."""
    form, theirs = with_both(tmp_path, transformers, "llama2", [], SYSTEM_IN_LAST_TURN)
    for messages in (chat("Hi"), chat("Hi", system="Be brief"), chat("a", "b", "c", system="Be\nbrief")):
        prompt = form.render_prompt(messages)
        assert prompt == theirs.apply_chat_template(plain(messages), add_generation_prompt=True, return_dict=False)
        rendered, length = form.render_answer(messages, [Message("assistant", "Yes")])
        assert rendered.ids[:length] == prompt
        assert theirs.decode(rendered.ids[length:]) == f"Yes{EOS}" and all(rendered.supervised[length:])
        if messages[0].role == "system":
            assert "brief" in theirs.decode(prompt)
            with pytest.raises(UserError, match="leaves out the content of message 1, the system's, in this") as error:
                form.render([*messages, Message("assistant", "Yes")])
            assert "\n" not in str(error.value)
            with pytest.raises(UserError, match="leaves out the content of message 1, the system's"):
                form.render_answer(messages, [*chat("a", "b", "c")[1:], Message("assistant", "d")])
    assert form.render(chat("a", "b", "c", "d")).ids == theirs.apply_chat_template(
        plain(chat("a", "b", "c", "d")), return_dict=False
    )


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        ("m.role != 'system'", "message 1, the system's"),
        ("not loop.first or m.role == 'system'", None),
        ("m.role != 'tool'", "message 4, the tool's"),
        ("'secret' not in m.content", "message 1, the system's"),
        ("loop.index != 3 or loop.last", "message 3, an assistant's"),
    ],
)
@pytest.mark.parametrize("prompt", [True, False])
def test_no_turn_is_lost(condition: str, named: str | None, prompt: bool) -> None:
    header = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    template = CHATML.replace("{% for m in messages %}", f"{{% for m in messages %}}{{% if {condition} %}}", 1)
    form = ChatFormat(
        with_template(template.replace("{% endfor %}", "{% endif %}{% endfor %}") + header, CHATML_TOKENS)
    )
    # "user" is in the text of any prompt
    messages = [Message("system", "secret user"), *chat("a", "b"), Message("tool", "user"), Message("assistant", "c")]
    render = form.render_prompt if prompt else form.render
    messages = messages[:-1] if prompt else messages
    if named is None:
        render(messages)
        return
    with pytest.raises(UserError, match=f"leaves out the content of {named}"):
        render(messages)


@pytest.mark.parametrize("opening", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_a_generation_prompt_may_open_a_thought(opening: str, tmp_path: Path, transformers: ModuleType) -> None:
    """What is learned begins before that, where the template writes answers without."""
    template = CHATML + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n" + opening + "' }}{% endif %}"
    form, theirs = with_both(tmp_path, transformers, "qwen", CHATML_TOKENS, template)
    assert form.stop_ids[0] == theirs.convert_tokens_to_ids("<|im_end|>")
    for messages in (chat("a", system="s"), chat("a", "b", "c")[:1]):
        prompt = theirs.apply_chat_template(plain(messages), add_generation_prompt=True, return_dict=False)
        assert form.render_prompt(messages) == prompt
        assert theirs.decode(prompt).endswith(f"assistant\n{opening}")
    assert form.unwritten_opening == opening
    assert said(Tokenizer.load(tmp_path), chat("a", "b", "c", "d")) == "b<|im_end|>d<|im_end|>"


@pytest.mark.parametrize("name", OPEN_THOUGHTS)
def test_conversations_go_on_where_a_generation_prompt_opens_a_thought(
    name: str, tmp_path: Path, transformers: ModuleType
) -> None:
    """Earlier answers are written without the thoughts that they began with."""
    form, theirs = with_both(tmp_path, transformers, "qwen", CHATML_TOKENS, OPEN_THOUGHTS[name])
    tokenizer = Tokenizer.load(tmp_path)
    thought = chat("a", "r\n</think>\n\nb", "c", "<think>\ns\n</think>\n\nd", "e")
    for messages in (
        chat("a", "b", "c"),
        chat("a", "b", "c", "d", "e"),
        thought[:3],
        thought,
        chat("a", "r</think>", "c"),
    ):
        prompt = theirs.apply_chat_template(plain(messages), add_generation_prompt=True, return_dict=False)
        assert form.render_prompt(messages) == prompt
        assert theirs.decode(prompt).endswith("<think>\n")
        assert form.leaves_out_thoughts(messages) == any("</think>" in message.content for message in messages)
    kept, opening = ("<think>\n\n</think>\n\n", "") if name == "last thought" else ("", "<think>\n")
    assert form.unwritten_opening == opening
    for messages, last in ((chat("a", "b", "c", "d"), "d"), ([*thought[:3], Message("assistant", "d")], "d")):
        words = last if name == "no thought" else kept.removeprefix("<think>\n") + last
        assert said(tokenizer, messages) == f"b<|im_end|>{words}<|im_end|>"
        rendered, length = form.render_answer(messages[:-1], messages[-1:])
        assert rendered == form.render(messages)
        assert tokenizer.decode(rendered.ids[length:]).removesuffix("\n") == f"{words}<|im_end|>"
    if name == "no thought":
        with pytest.raises(
            UserError, match=r"leaves out the thought \(what precedes </think>\) of message 4, an assis"
        ):
            form.render(thought[:4])
    else:
        assert said(tokenizer, thought[:4]) == "b<|im_end|>s\n</think>\n\nd<|im_end|>"


def test_an_answer_begins_after_its_header_where_what_precedes_it_moved() -> None:
    tokenizer = with_template(OPEN_THOUGHT_SYSTEM_LAST, CHATML_TOKENS)
    messages = chat("a", "<think>\nr\n</think>\n\nb", "c", "d", system="s")
    assert (
        tokenizer.decode(ChatFormat(tokenizer).render(messages).ids)
        == "[user]a[bot]b<|im_end|>[user]s c[bot]d<|im_end|>"
    )
    assert said(tokenizer, messages) == "b<|im_end|>d<|im_end|>"


def test_a_turn_that_begins_otherwise_than_the_generation_prompt_is_not_learned() -> None:
    header = "{% if add_generation_prompt %}{{ '<|im_start|>bot\n' }}{% endif %}"
    form = ChatFormat(with_template(CHATML + header, CHATML_TOKENS))
    assert form.render_prompt(chat("a", "b", "c"))
    with pytest.raises(UserError, match="does not show where the words of message 2, an assistant's, begin"):
        form.render(chat("a", "b"))


CALL = {"type": "function", "function": {"name": "find", "arguments": {"city": "Rome<|im_end|>"}}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}


def test_thoughts_calls_and_tools_reach_the_template(tmp_path: Path, transformers: ModuleType) -> None:
    form, theirs = with_both(tmp_path, transformers, "qwen", CHATML_TOKENS, THINKING)
    tokenizer = Tokenizer.load(tmp_path)
    thought = Message("assistant", "36", {"reasoning_content": "ten times three"})
    call = Message("assistant", "", {"tool_calls": [CALL]})
    user = Message("user", "q", tools=[TOOL])
    for messages in ([user, thought], [user, call, Message("tool", "Sun"), thought], [user, call]):
        rendered = form.render(messages)
        written = [{**turn, **message.fields} for turn, message in zip(plain(messages), messages, strict=True)]
        text = theirs.apply_chat_template(written, tools=[TOOL], tokenize=False)
        assert tokenizer.decode(rendered.ids) == text
        spoken = [index for index, kept in zip(rendered.ids, rendered.supervised, strict=True) if kept]
        assert ("ten times three" in tokenizer.decode(spoken)) == (thought in messages)
        # a call's text is no token, and neither is what a tool's name says
        ends = rendered.ids.count(tokenizer.im_end_id)
        assert ends == len(messages) + 1 and ("Rome<|im_end|>" in tokenizer.decode(spoken)) == (call in messages)
    assert form.unread(Message("user", "q", {"name": "Bob", "reasoning_content": "x"})) == ["name"]


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (Message("user", "q", tools=[TOOL]), "the conversation has tools, which the chat template does not write"),
        (Message("assistant", "a", {"reasoning_content": "so"}), "message 2, an assistant's, has reasoning_content"),
        (Message("assistant", "a", {"thinking": "so"}), "message 2, an assistant's, has thinking"),
        (Message("assistant", "", {"tool_calls": [CALL]}), "message 2, an assistant's, has tool_calls"),
    ],
)
@pytest.mark.parametrize("template", ["ours", "foreign", "whole messages"])
def test_what_is_not_written_is_refused_by_name(
    template: str, message: Message, refusal: str, tokenizer: Tokenizer
) -> None:
    header = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    if template == "whole messages":  # which writes every field without naming one
        form = ChatFormat(with_template(CHATML.replace("{{ m.content }}", "{{ m | tojson }}") + header, CHATML_TOKENS))
    else:
        form = ChatFormat(tokenizer if template == "ours" else with_template(CHATML + header, CHATML_TOKENS))
    messages = [message, *chat("x", "y")[1:]] if message.role == "user" else [*chat("q"), message]
    if template == "whole messages" and message.fields:
        assert form.render(messages)
        return
    with pytest.raises(UserError, match=refusal):
        form.render(messages)


def test_thoughts_are_looked_for_under_the_templates_name() -> None:
    tokenizer = with_template(THINKING, CHATML_TOKENS)
    form = ChatFormat(tokenizer)
    with pytest.raises(UserError, match=r"has thinking, .*; rename it to reasoning_content, put it into the content"):
        form.render([*chat("q"), Message("assistant", "a", {"thinking": "so"})])
    late = [*chat("q"), Message("assistant", "a", {"reasoning_content": "so"}), *chat("r", "b")]
    assert "so" not in tokenizer.decode(form.render(late).ids)  # as models do not read earlier thoughts again
    dropping = THINKING.replace("message.reasoning_content and loop.last", "message.reasoning_content and false")
    assert form.leaves_out_thoughts(late) and not form.leaves_out_thoughts(late[:2])
    with pytest.raises(UserError, match="leaves out the reasoning_content of message 2, an assistant's"):
        ChatFormat(with_template(dropping, CHATML_TOKENS)).render(late[:2])


def test_a_turn_may_be_read_and_not_learned(ours: Tokenizer) -> None:
    messages = chat("a", "WRONG", "c", "GOOD")
    messages[1] = Message("assistant", "WRONG", learned=False)
    rendered = ChatFormat(ours).render(messages)
    assert rendered.ids == ChatFormat(ours).render(chat("a", "WRONG", "c", "GOOD")).ids
    assert said(ours, messages) == "GOOD<|im_end|>"
    left_out = [index for index, out in zip(rendered.ids, rendered.left_out, strict=True) if out]
    assert ours.decode(left_out) == "WRONG<|im_end|>"


def test_conversations_that_cannot_be_rendered(ours: Tokenizer) -> None:
    tokenizer = with_template(MISTRAL, [])
    with pytest.raises(UserError, match="roles must alternate user/assistant"):
        ChatFormat(tokenizer).render([*chat("a"), *chat("b", "c")])
    with pytest.raises(UserError, match="without messages"):
        ChatFormat(ours).render([])
    with pytest.raises(UserError, match="role 'bot'; it must be one of system, user, assistant, tool"):
        Message("bot", "x")
    # whose end is missing in the middle: the user's words would be learnt
    broken = (
        "{% for m in messages %}{{ bos_token }}{{ m.content }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="does not end message 2, an assistant's, as it ends others"):
        ChatFormat(with_template(broken, [])).render(chat("a", "b", "c", "d"))


@pytest.mark.parametrize("form", ["gpt2", "llama2"])
def test_chat_tokens_are_added_after_the_ids(form: str, tmp_path: Path, transformers: ModuleType) -> None:
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=FORMS[form]([SAMPLE]), bos_token=BOS, eos_token=EOS, pad_token=EOS
    ).save_pretrained(tmp_path)
    before = Tokenizer.load(tmp_path)
    assert before.pad_id == before.eot_id
    after = with_chat_tokens(before)
    size = before.vocab_size
    assert (after.pad_id, after.im_start_id, after.im_end_id) == (size, size + 1, size + 2)
    assert after.vocab_size == size + 3 and after.eot_id == before.eot_id
    assert after.encode(SAMPLE) == before.encode(SAMPLE)
    assert with_chat_tokens(after).digest == after.digest != before.digest
    assert before.vocab_size == size and before.im_end_id is None  # which is left alone
    after.save(tmp_path / "after")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "after")
    assert (theirs.pad_token_id, theirs.eos_token_id, len(theirs)) == (size, after.eot_id, size + 3)
    messages = chat("Hi there", "Yes", "\nso", "No")
    assert theirs.apply_chat_template(plain(messages), return_dict=False) == ChatFormat(after).render(messages).ids
    assert token_ids(after)["eos_token_id"] == [after.eot_id, after.im_end_id]


def test_a_template_of_its_own_is_kept() -> None:
    tokenizer = with_chat_tokens(with_template(GEMMA, ["<end_of_turn>"]))
    assert (tokenizer.im_start_id, tokenizer.im_end_id, tokenizer.chat_template) == (None, None, GEMMA)
    assert tokenizer.token_bytes(tokenizer.pad_id) == b"<|pad|>" and tokenizer.named_tokens["pad_token"] == "<|pad|>"
    several = Tokenizer(
        FORMS["gpt2"]([SAMPLE]),
        {"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]},
    )
    assert several.chat_template == "d"


def test_ids_with_gaps_are_refused() -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 3}, []))
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(UserError, match="ids have gaps"):
        with_chat_tokens(Tokenizer(tokenizer))
