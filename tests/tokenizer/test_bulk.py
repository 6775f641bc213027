import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from lit_llm.tokenizer import Tokenizer, train_bpe, train_character
from lit_llm.tokenizer.bulk import GPT2_PATTERN, chunked
from lit_llm.tokenizer.tokenizer import SPECIAL_TOKENS, byte_level

STDLIB = Path(sysconfig.get_paths()["stdlib"])
SOURCES = [path.read_text(encoding="utf-8") for path in sorted(STDLIB.glob("*.py"))[:45]]

ADVERSARIAL = [
    "",
    " ",
    "\n",
    " " * 1000 + "x",
    "\n \t\r\n" * 300,
    "don't DON'T 'S's'll'LL ''s 'd've ſ'ſ",
    "١٢٣ ½ Ⅷ 一二 𝟘𝟙",
    "e\u0301\u0300 ﷽ \u200b\u200d\ufeff 👩‍👩‍👧‍👦 🇩🇪",
    "\x00\x1c\x1d\x1e\x1f\x85\xa0\u180e\u2028\u3000 x",
    "<|endoftext|>" * 20,
    "a" * 70_000 + " " + "b" * 70_000,
    "\ud7ff\ue000\U0010ffff",
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(SOURCES[:20], 2000, show_progress=False)


def reference(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text) for text in texts]


def test_tiktoken_gives_the_ids_of_tokenizers(bpe):
    # More than the first million characters, so that the last texts are encoded by tiktoken alone.
    texts = [*SOURCES, *ADVERSARIAL, *SOURCES[:3]]
    assert sum(map(len, SOURCES)) > 1_000_000
    encoded = bpe.encode_bulk(texts)
    assert bpe._byte_pair_encoder._fast is not None
    assert [ids.tolist() for ids in encoded] == reference(bpe, texts)
    assert {ids.dtype for ids in encoded} == {np.dtype(np.uint16)}
    again = bpe.encode_bulk(texts, num_threads=1)
    assert all(map(np.array_equal, encoded, again))


def test_random_text_of_odd_characters(bpe):
    rng = random.Random(7)
    pool = [chr(rng.choice([rng.randrange(0x3000), rng.randrange(0xE000, 0x20000)])) for _ in range(500)]
    pool += list(" \n\t'sd12 <|") * 20
    texts = ["".join(rng.choices(pool, k=300)) for _ in range(200)]
    assert [ids.tolist() for ids in bpe.encode_bulk(texts)] == reference(bpe, texts)


@pytest.mark.parametrize("run", ["x" + " " * 1_200_000 + "x", "a" * 200_000])
def test_very_long_runs_neither_fail_nor_differ(bpe, run):
    bpe.encode_bulk(SOURCES)  # past the trial
    (ids,) = bpe.encode_bulk([run])
    assert ids.tolist() == bpe.encode(run)
    assert bpe._byte_pair_encoder._fast is not None


def test_chunks_join_to_the_text_and_do_not_change_ids(bpe):
    text = "\n".join(SOURCES[:12])
    chunks = chunked(text)
    assert len(chunks) > 1 and "".join(chunks) == text
    assert [index for chunk in chunks for index in bpe.encode(chunk)] == bpe.encode(text)


def test_merges_that_tiktoken_reads_otherwise_take_the_slow_path():
    def build(merges: list[tuple[str, str]]) -> Tokenizer:
        tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens += dict.fromkeys(left + right for left, right in merges)
        model = models.BPE({token: index for index, token in enumerate(tokens)}, merges)
        return Tokenizer(byte_level(model, SPECIAL_TOKENS))

    # tokenizers reads "abc" as a, bc: bc comes first, and a+bc is no merge. tiktoken would make the token abc of it.
    unreachable = build([("b", "c"), ("a", "b"), ("ab", "c")])
    assert unreachable.encode("abc") == [unreachable.encode("a")[0], 256]
    # The same token made by two merges.
    twice = build([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])
    # A merge ahead of the one that makes its part.
    early = build([("ab", "c"), ("a", "b"), ("b", "c")])
    texts = ["abc", "abcabc xabcc", "bcab"]
    for tokenizer in (unreachable, twice, early):
        assert [ids.tolist() for ids in tokenizer.encode_bulk(texts)] == reference(tokenizer, texts)
        assert tokenizer._byte_pair_encoder._fast is None
    plain = build([("a", "b"), ("ab", "c")])
    assert [ids.tolist() for ids in plain.encode_bulk(texts)] == reference(plain, texts)
    assert plain._byte_pair_encoder._fast is not None


def test_a_difference_in_the_first_texts_sends_everything_to_tokenizers():
    tokenizer = train_bpe(SOURCES[:5], 600, show_progress=False)
    encoder = tokenizer._byte_pair_encoder
    encoder._ids_of_ranks = encoder._ids_of_ranks[::-1].copy()
    assert encoder._fast is not None
    assert [ids.tolist() for ids in tokenizer.encode_bulk(SOURCES[:3])] == reference(tokenizer, SOURCES[:3])
    assert encoder._fast is None


def test_ids_need_not_be_in_the_order_of_merges():
    trained = train_bpe(SOURCES[:5], 500, show_progress=False)
    state = trained._state["model"]
    order = list(state["vocab"])
    random.Random(3).shuffle(order)
    model = models.BPE({token: index for index, token in enumerate(order)}, [tuple(pair) for pair in state["merges"]])
    shuffled = Tokenizer(byte_level(model, SPECIAL_TOKENS))
    assert [ids.tolist() for ids in shuffled.encode_bulk(SOURCES[:2])] == reference(shuffled, SOURCES[:2])
    assert shuffled._byte_pair_encoder._fast is not None


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_character_table_gives_the_ids_of_tokenizers(byte_fallback):
    text = SOURCES[0] + ("" if byte_fallback else "".join(ADVERSARIAL))
    tokenizer = train_character([text], byte_fallback, show_progress=False)
    raw = tokenizers.Tokenizer.from_str(tokenizer._tokenizer.to_str())
    raw.encode_special_tokens = True
    texts = [SOURCES[0][:20_000], *(one[:3000] for one in ADVERSARIAL)]
    assert [ids.tolist() for ids in tokenizer.encode_bulk(texts)] == [raw.encode(one).ids for one in texts]


def test_character_bulk_takes_a_megabyte_at_once():
    text = (SOURCES[0] * (1_000_000 // len(SOURCES[0]) + 1))[:999_999] + "日"
    tokenizer = train_character([SOURCES[0]], show_progress=False)
    (ids,) = tokenizer.encode_bulk([text])
    assert len(ids) == 999_999 + 3 and tokenizer.decode(ids) == text


def disagreements(first: int, end: int) -> list[int]:
    """Code points that the two libraries put in different classes (letter, number, white space, other).

    Each class is the one whose neighbour the character joins in one word: a, 1, !, or a space after it. Every such
    word is made a token, so that tiktoken's ids are its words.
    """
    import tiktoken

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters = [chr(point) for point in range(first, end) if not 0xD800 <= point < 0xE000]
    words = {
        character: ["a" + character, "1" + character, "!" + character, character + " "] for character in characters
    }
    ranks = {bytes([byte]): byte for byte in range(256)}
    for character, joined in words.items():
        for word in (character, *joined):
            ranks.setdefault(word.encode(), len(ranks))
    encoding = tiktoken.Encoding("classes", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return [
        ord(character)
        for character, joined in words.items()
        if any(len(encoding.encode_ordinary(word)) != len(splitter.pre_tokenize_str(word)) for word in joined)
    ]


def test_both_libraries_class_common_characters_alike():
    assert disagreements(0, 0x3400) == []


@pytest.mark.slow
def test_both_libraries_class_every_character_alike():
    """All of the planes that Unicode gives characters to, and the first of each 0x8000 elsewhere."""
    assigned = [(first, first + 0x8000) for first in (*range(0, 0x40000, 0x8000), 0xE0000)]
    others = [(first, first + 0x100) for first in range(0x40000, 0x110000, 0x8000)]
    assert [point for first, end in assigned + others for point in disagreements(first, end)] == []
