"""The language of a document, by the detector that its options name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from lit_llm.config import UserError
from lit_llm.config.extras import optional_module
from lit_llm.config.text_filters import LanguageConfig
from lit_llm.data.sources.document import SourceDocument

Detector = Callable[[str], tuple[str | None, float]]
"""The code of a text's language, None where there is none, and a score from 0 to 1."""

_PIECES = 4
_SURE_CHARACTERS, _SEGMENT, _SEGMENTS = 50, 400, 32
_FARTHEST = 1200  # resiliparse's own bound, past which it says that it does not know
_DEFAULT_SCORES = {"py3langid": 0.65, "fasttext": 0.65, "resiliparse": 0.4}
# ISO 639-2: no linguistic content, undetermined. And Norwegian by its two written forms.
_NO_LANGUAGE = {"zxx", "und", "unknown"}
_ALIASES = {"nb": "no", "nn": "no", "iw": "he"}


def sample(text: str, most: int) -> str:
    """The text, or pieces of it from beginning to end that have at most `most` characters together."""
    if len(text) <= most:
        return text
    length = most // _PIECES
    step = (len(text) - length) // (_PIECES - 1)
    return "\n".join(text[start : start + length] for start in range(0, _PIECES * step, step))


def segments(text: str) -> list[str]:
    """Lines of a text, from beginning to end; short ones together, as their language is not sure, long ones cut."""
    found, short = [], ""
    for line in filter(None, map(str.strip, text.split("\n"))):
        short = f"{short} {line}" if short else line
        if len(short) >= _SURE_CHARACTERS:
            found += [short[start : start + _SEGMENT] for start in range(0, len(short), _SEGMENT)]
            short = ""
    found += [short] if short else []
    most = min(_SEGMENTS, len(found))
    return [found[number * len(found) // most] for number in range(most)]


class Language:
    """Names the language of each document, and drops those of other languages than are kept."""

    def __init__(self, options: LanguageConfig) -> None:
        """
        Raises:
            UserError: the detector is not installed, the model file is missing or none of fastText, or a language to be
                kept is one that the detector never names.
        """
        self.counts: Counter[str] = Counter()
        self._options = options
        self._keep = set(options.keep)
        self._detect, known = _DETECTORS[options.detector](options)
        unknown = sorted(self._keep - set(known)) if known else []
        if unknown:
            raise UserError(
                f"keep names {', '.join(unknown)}, which {options.detector} never says; its languages "
                "are codes of ISO 639-1 such as en, de, zh"
            )
        score = options.min_score
        self._min_score = _DEFAULT_SCORES[options.detector] if score is None else score

    def __call__(self, document: SourceDocument) -> str | None:
        """Writes the language and its score; why the document is dropped, or None."""
        language, score = document.language, 1.0
        if not (self._options.trust_source and language):
            language, score = self._of(document.text)
        # three places, as the last ones of a sum differ from processor to processor
        document.metadata["language_score"] = round(score, 3)
        unsure = language is None or score < self._min_score
        document.language = None if unsure else language
        if unsure:
            self.counts["documents in no language that is sure enough"] += 1
            if self._options.keep_unknown:
                return None
            return "language unknown" if language is None else f"language score below {self._min_score:g}"
        if self._keep and language not in self._keep:
            return f"language is {language}"
        if self._options.min_share and (share := self._share(document.text, language)) < self._options.min_share:
            document.metadata["language_share"] = round(share, 3)
            return f"share of its language below {self._options.min_share:g}"
        return None

    def _share(self, text: str, language: str) -> float:
        """The share of the letters of some lines that are in lines of a language."""
        letters: Counter[str | None] = Counter()
        for segment in segments(text):
            if number := sum(map(str.isalpha, segment)):
                letters[self._of(segment)[0]] += number
        return letters[language] / max(1, letters.total())

    def _of(self, text: str) -> tuple[str | None, float]:
        if not any(map(str.isalpha, piece := sample(text, self._options.max_characters))):
            return None, 0.0
        language, score = self._detect(piece)
        return (None, 0.0) if language in _NO_LANGUAGE else (language, score)


def _py3langid(options: LanguageConfig) -> tuple[Detector, Collection[str]]:
    """Probabilities out of py3langid's log-likelihoods of all languages, tempered by the length as its own are."""
    rank = optional_module("py3langid", "the step language", "data").rank

    def detect(text: str) -> tuple[str, float]:
        ranks = rank(text)
        temperature = math.sqrt(len(text.encode("utf-8", "replace")))
        (language, best), *_ = ranks
        probability = 1 / math.fsum(math.exp((float(score) - float(best)) / temperature) for _, score in ranks)
        return _ALIASES.get(language, language), probability

    return detect, {_ALIASES.get(language, language) for language, _ in rank("a text")}


def _resiliparse(options: LanguageConfig) -> tuple[Detector, Collection[str]]:
    lang = optional_module("resiliparse.parse.lang", "the step language with detector: resiliparse", "data")

    def detect(text: str) -> tuple[str, float]:
        language, distance = lang.detect_fast(text, cutoff=_FARTHEST)
        return language, max(0.0, 1 - distance / _FARTHEST)

    return detect, lang.supported_langs()


def _fasttext(options: LanguageConfig) -> tuple[Detector, Collection[str]]:
    """A model of the user's; which labels it has is not asked, as some builds of the library cannot say."""
    path = Path(str(options.model))
    if not path.is_file():
        raise UserError(f"model is {path}, which is no file: the step language needs a model of fastText there")
    fasttext = optional_module("fasttext", "detector: fasttext", "data")
    try:
        model = fasttext.load_model(str(path))
    except ValueError as error:
        raise UserError(f"model {path} is no model of fastText: {error}") from error

    def detect(text: str) -> tuple[str | None, float]:
        labels, scores = model.predict(text.replace("\n", " "))
        if not labels:
            return None, 0.0
        return labels[0].removeprefix("__label__"), min(1.0, float(scores[0]))

    return detect, ()


_DETECTORS = {"py3langid": _py3langid, "resiliparse": _resiliparse, "fasttext": _fasttext}
