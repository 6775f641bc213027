"""The instructions of IFEval, each as a function that says whether a text follows it.

Zhou et al. (2023), "Instruction-Following Evaluation for Large Language Models", table 1, under the names of its rows.
Where the paper leaves open what is counted, it is what its published rows mean: a paragraph ends at `***` or, where its
first word is asked for, at an empty line; a highlighted part is `*so*`; a placeholder is `[so]`; a title is `<<so>>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from lit_llm.config import UserError
from lit_llm.config.text_filters import LanguageConfig
from lit_llm.data.cleaning.language import Language
from lit_llm.data.sources.document import SourceDocument

_LESS, _AT_LEAST = "less than", "at least"
_YES_NO_MAYBE = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# a hyphen, a point or a stroke inside of a word does not end it: "COVID-19", "U.S.A"
_WORD_OF_CAPITALS = re.compile(r"\w+(?:[-./]\w+)*")
_SENTENCE_END = re.compile(r"""(?:[?!]+|\.+|[\u3002\uff01\uff1f])["')\]\u201d\u2019]*(?:\s+|$)""")
_TITLES = (
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "st",
    "gen",
    "col",
    "capt",
    "lt",
    "rep",
    "sen",
    "gov",
    "rev",
    "p.s",
    "p.p.s",
)
# these end a sentence if a capital letter follows
_ABBREVIATIONS = ("sr", "jr", "vs", "etc", "e.g", "i.e", "cf", "inc", "ltd", "co", "corp", "u.s", "u.k", "a.m", "p.m")


def _compared(count: int, relation: str, threshold: int) -> bool:
    if relation == _LESS:
        return count < threshold
    if relation == _AT_LEAST:
        return count >= threshold
    raise UserError(f"the relation of an instruction is {relation!r}; it must be {_LESS!r} or {_AT_LEAST!r}")


def _language(text: str) -> str | None:
    document = SourceDocument("answer", "answers", text, "")
    Language(LanguageConfig(keep=[], min_score=0.0))(document)
    return document.language


def count_sentences(text: str) -> int:
    """Sentences of a text, whose ends are points, question and exclamation marks, but not those of abbreviations,
    initials, numbers of a list or ellipses that go on in lower case."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        before, after = text[start : end.start()].split(), text[end.end() : end.end() + 1]
        word = before[-1].lstrip("\"'([\u201c\u2018").casefold() if before else ""
        if end[0].startswith("..") and after.islower():
            continue
        single = end[0].strip() == "." and after
        initial = len(word) == 1 and word.isalpha() and before[-1].isupper() and word != "i"
        abbreviation = word in _TITLES or (word in _ABBREVIATIONS and not after.isupper())
        if single and (abbreviation or initial or (word.isdigit() and len(before) == 1)):
            continue
        count += bool(before)
        start = end.end()
    return count + bool(text[start:].strip())


def keywords_exist(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(keyword), text, re.IGNORECASE) for keyword in keywords)


def keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(len(re.findall(re.escape(keyword), text, re.IGNORECASE)), relation, frequency)


def no_forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    """In a language, by its code of ISO 639-1; a text in which none can be told passes."""
    return _language(text) in (language, None)


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compared(count_sentences(text), relation, num_sentences)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs with `***` between them."""
    paragraphs = [paragraph.strip() for paragraph in text.split("***")]
    inner = paragraphs[not paragraphs[0] : len(paragraphs) - (len(paragraphs) > 1 and not paragraphs[-1])]
    return all(inner) and len(inner) == num_paragraphs


def number_words(text: str, num_words: int, relation: str) -> bool:
    return _compared(len(re.findall(r"\w+", text)), relation, num_words)


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs with empty lines between them, and how one begins."""
    paragraphs = text.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if count != num_paragraphs or not 1 <= nth_paragraph <= count:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0].lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\n\]]*\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """With a postscript behind a marker such as P.S., whose letters may have spaces between them."""
    letters = [part for part in postscript_marker.lower().split(".") if part.strip()]
    last = r"\." if postscript_marker == "P.S." else ""
    spaced = r"\.\s?".join(re.escape(letter.strip()) for letter in letters)
    return re.search(spaced + last, text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Exactly so many points of a list, which begin with * or -."""
    return len(re.findall(r"^\s*(?:\*[^*\n]|-)", text, re.MULTILINE)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in _YES_NO_MAYBE)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """At least so many highlighted parts; a double star counts as a highlight of its own."""
    single = [part for part in re.findall(r"\*([^\n*]*)\*", text) if part.strip()]
    double = [part for part in re.findall(r"\*\*([^\n*]*)\*\*", text) if part.strip()]
    return len(single) + len(double) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """Nothing but JSON, in a fenced block or not."""
    text = re.sub(r"^```(?:json|Json|JSON)?|```$", "", text.strip())
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    return any(found.strip("<> \t") for found in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """Two answers that differ, with six stars between them."""
    responses = [response.strip() for response in text.split("******")]
    given = [response for response in responses if response]
    return all(responses[1:-1]) and len(given) == 2 and given[0] != given[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    words = [word for word in _WORD_OF_CAPITALS.findall(text) if word.isupper()]
    return _compared(len(words), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    # detectors know the words of a language in lower case
    return text.isupper() and _language(text.lower()) in ("en", None)


def english_lowercase(text: str) -> bool:
    return text.islower() and _language(text) in ("en", None)


def no_comma(text: str) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": keywords_exist,
    "keywords:forbidden_words": no_forbidden_words,
    "keywords:frequency": keyword_frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
"""By the names that rows give in `instruction_id_list`."""
