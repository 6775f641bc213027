"""Instructions that can be checked: each check on texts that follow it and that do not, and the accuracies."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from lit_llm.config import UserError
from lit_llm.evaluation.verifiers import VERIFIERS
from lit_llm.evaluation.verifiers.instruction_checks import CHECKS, count_sentences
from lit_llm.evaluation.verifiers.instructions import follow, instruction_accuracies

ENGLISH = "The house by the river was painted last summer, and everybody in the village came to look at it."
GERMAN = "Das Haus am Fluss wurde im letzten Sommer gestrichen, und alle im Dorf kamen, um es sich anzusehen."
SENTENCES = "It is 3.5 km. Dr. Smith (U.S. citizen) went... slowly! Was it J. Ray? Yes."

# instruction, arguments, texts that follow it, texts that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["cat", "C++"]}, ["Cats like c++"], ["cats", "cat c+"]),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        ["cat Cat", "concatenate cats"],
        ["cat"],
    ),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, ["cat", "dog"], ["cat cat"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "dog"]}, ["concatenate"], ["a CAT", "my dog."]),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 3, "let_relation": "at least"},
        ["eEe", "never ever"],
        ["ee", "x"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 4, "relation": "at least"},
        [SENTENCES],
        ["One. Two! 3?"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, ["One. Two!"], [SENTENCES]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na *** b\n***", "a***b"],
        ["a", "a\n\nb", "a *** *** b", "a *** b *** c"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c", "it's so"], ["a, b"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "hello"},
        ["a\n\nHello, you", 'a\n\n"Hello" he said', "a\n\nhello"],
        ["hello\n\nb", "a\n\nhello\n\nc", "hello", "a\n\nhelloes"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]"], ["[a]", "[a\nb] [c]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye\nP.S. more", "p. s. more"], ["PS more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye\nP.P.S more", "p. p. s. x"], ["P.S. x"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "So:\n - a\n- b\nend"],
        ["* a", "**a**\n* b", "- a\n- b\n- c"],
    ),
    ("detectable_format:constrained_response", {}, ["My answer is no."], ["no", "My answer is No."]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*"],
        ["*a*", "* *\n* *", "*a\nb* c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section2 Section 3"],
        ["Section 1", "Section one Section two"],
    ),
    ("detectable_format:json_format", {}, ['{"a": [1]}', '```json\n{"a": 1}\n```', "3"], ["{'a': 1}", "so: {}"]),
    ("detectable_format:title", {}, ["<<poem>>\nx", "x <<a b>>"], ["<poem>", "<< >>", "<<a\nb>>"]),
    ("combination:two_responses", {}, ["a******b", "******\na\n******\nb"], ["a", "a******a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, ["  say it.\nIt"], ["It. Say it."]),
    ("startend:end_checker", {"end_phrase": "The END."}, ["x. the end.\n", '"x the end."'], ["the end. x"]),
    ("startend:quotation", {}, [' "a" '], ['"', "'a'", '"a" b']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and U.S.A", "A B", "I'M"],
        ["COVID-19", "Nasa Esa"],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper()]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()], [ENGLISH, GERMAN.lower()]),
    ("punctuation:no_comma", {}, ["a. b"], ["a, b"]),
]


def row(*instructions: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A row, with nulls for the arguments of other instructions, as a table of columns has them."""
    every = {key: None for case in CASES for key in case[1]}
    return {
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [{**every, **arguments} for _, arguments in instructions],
    }


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), CASES)
def test_check(name: str, arguments: dict[str, Any], kept: list[str], broken: list[str]) -> None:
    if "language" in name or "english" in name:
        pytest.importorskip("py3langid")
    for text, followed in [*((text, True) for text in kept), *((text, False) for text in broken)]:
        verdict = VERIFIERS["instructions"](text, row((name, arguments)))
        assert verdict.correct is followed, text
        assert verdict.reason == ("" if followed else f"not followed: {name}")
    assert not VERIFIERS["instructions"](" \n", row((name, arguments))).correct


def test_every_check_has_cases() -> None:
    assert {case[0] for case in CASES} == set(CHECKS) and len(CHECKS) == 25


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (SENTENCES, 4),
        ("", 0),
        ("No end", 1),
        ('He said "Stop!" Then (he left.) So', 3),
        ("1. Buy milk. 2. Sleep.", 2),
        ("Apples, pears, etc. are fruit. Pears etc. Then plums.", 3),
        ("I said no. You and I. We", 3),
        ("Wait... what? Well... Now.", 3),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_strict_and_loose() -> None:
    both = row(("punctuation:no_comma", {}), ("startend:end_checker", {"end_phrase": "done"}))
    # the first line has a comma, the last one is not the phrase, and stars stand behind it
    chatty = follow("Sure, here it is:\nIt is so\n**done**", both)
    assert (chatty.strict, chatty.loose) == ((False, False), (True, True))
    # each instruction may be followed in a form of its own
    split = follow("a, b\ndone\nBye", both)
    assert (split.strict, split.loose) == ((False, False), (True, True))
    right = follow("all done", both)
    assert right.strict == right.loose == (True, True)
    never = follow("no, never", both)
    assert never.strict == never.loose == (False, False)
    one = follow("well, done", both)
    assert one.strict == one.loose == (False, True)
    assert instruction_accuracies([chatty, right, never, one]) == {
        "prompt_level_strict_acc": 1 / 4,
        "inst_level_strict_acc": 3 / 8,
        "prompt_level_loose_acc": 2 / 4,
        "inst_level_loose_acc": 5 / 8,
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kwargs": []}, "no field instruction_id_list"),
        (
            {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
            "1 instructions in instruction_id_list and 0",
        ),
        (row(("punctuation:no_dot", {})), "there is no instruction 'punctuation:no_dot'"),
        (row(("keywords:existence", {})), "keywords:existence needs keywords"),
        (row(("keywords:existence", {"keywords": "cat"})), "keywords of keywords:existence must be list: 'cat'"),
        (row(("punctuation:no_comma", {"letter": "a"})), "no_comma has no argument letter; it has none"),
        (
            row(("length_constraints:number_words", {"num_words": 3, "relation": "more than"})),
            "'more than'; it must be 'less than' or 'at least'",
        ),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}, "must be a table, not int"),
    ],
)
def test_rows_that_cannot_be_checked(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        VERIFIERS["instructions"]("a", bad)
    assert "\n" not in str(raised.value)


def test_a_whole_number_may_come_as_a_float() -> None:
    words = {"num_words": 2.0, "relation": "at least"}
    assert VERIFIERS["instructions"]("a b", row(("length_constraints:number_words", words))).correct


@pytest.mark.slow
def test_equals_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every text above and for every instruction, other than what needs data that is loaded over the network (the
    sentences of nltk's punkt) and another detector of languages."""
    for package in ("langdetect", "immutabledict"):
        pytest.importorskip(package)
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "download", lambda name: None)
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils")
    # a word of capitals is found in a single sentence, for which punkt is not needed
    monkeypatch.setattr(nltk, "word_tokenize", nltk.tokenize.NLTKWordTokenizer().tokenize)
    texts = [text for _, _, kept, broken in CASES for text in [*kept, *broken]]
    texts += [f"Sure:\n{text}\n**Bye**" for text in texts]
    compared = 0
    for (name, arguments, _, _), text in itertools.product(CASES, texts):
        if "sentences" in name or "language" in name or "english" in name or "C++" in str(arguments):
            continue
        example = utils.InputExample(0, [name], "", [arguments])
        ours = follow(text, row((name, arguments)))
        assert [*ours.strict] == utils.test_instruction_following_strict(example, text).follow_instruction_list, text
        assert [*ours.loose] == utils.test_instruction_following_loose(example, text).follow_instruction_list, text
        compared += 1
    assert compared > 3000
