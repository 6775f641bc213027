"""The merges of a SentencePiece vocabulary, of which GGUF files have only the tokens and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def merges_of_scores(vocabulary: Mapping[str, int], tokens: Sequence[tuple[str, float]]) -> list[list[str]]:
    """List every pair of tokens that make a token, in the order in which SentencePiece joins them.

    It joins, of all neighbours that make a token, those that make the one with the highest score. Of the pairs that
    make the same token, the one with the longer left part comes first, as in the tokenizers that transformers converts.

    Args:
        vocabulary: the id of each token.
        tokens: what pairs may make, with its score.

    Returns:
        The two parts of each.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in tokens:
        pairs = ((token[:end], token[end:]) for end in range(1, len(token)))
        known = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-score, -len(left), -len(right), left, right) for left, right in known]
    found.sort(key=lambda entry: entry[:3])  # stable: what is equal stays in the order of the vocabulary
    return [[left, right] for *_, left, right in found]
