import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from lit_llm.config import CorpusConfig, TokenizerTrainingConfig, UserError
from lit_llm.data.corpus.tokenizer_record import TokenizerRecord
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.tokenizer import SPECIAL_TOKENS, Tokenizer, begin_ids, train_bpe, train_character


def test_merges_are_by_frequency_and_never_across_words():
    tokenizer = train_bpe(["low low low low lower lower newest newest newest"], 266, show_progress=False)
    # " low" occurs 5 times after a space (the first word has none), so l+o, lo+w, space+low come first.
    learned = [tokenizer.token_bytes(index) for index in range(256, 262)]
    assert learned[0] == b"lo" and b" low" in learned
    assert not any(b" " in token[1:] for token in learned)


def test_special_strings_in_the_corpus_are_text():
    tokenizer = train_bpe(["<|endoftext|>" * 50], 270, show_progress=False)
    assert tokenizer.special_ids == {"<|endoftext|>": 266, "<|pad|>": 267, "<|im_start|>": 268, "<|im_end|>": 269}


def test_too_small_a_corpus_names_the_size_it_supports():
    text = "aaab aaab xyz xyz"
    with pytest.raises(UserError, match=r"supports only (26[0-9]) tokens; set vocab_size to") as error:
        train_bpe([text], 1000, show_progress=False)
    size = int(str(error.value).split()[4])
    assert train_bpe([text], size, show_progress=False).vocab_size == size


@pytest.mark.parametrize("train", [lambda texts: train_bpe(texts, 300), train_character])
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text(train, texts):
    with pytest.raises(UserError, match="no text"):
        train(texts)


@pytest.mark.parametrize(("special_tokens", "smallest"), [(SPECIAL_TOKENS, 260), ((), 256), (["<|end|>"], 257)])
def test_the_smallest_vocabulary(special_tokens, smallest):
    with pytest.raises(UserError, match=f"at least {smallest}"):
        train_bpe(["abc"], smallest - 1, special_tokens=special_tokens)
    tokenizer = train_bpe(["abc"], smallest, False, special_tokens=special_tokens)
    assert tokenizer.vocab_size == smallest and tokenizer.merges == []
    assert tokenizer.special_ids == {name: 256 + index for index, name in enumerate(special_tokens)}
    assert tokenizer.decode(tokenizer.encode("bé")) == "bé" and len(tokenizer.encode("bé")) == 3


def test_own_special_tokens_and_merges_against_plain_counting():
    """Pairs are merged by how often they occur in the words of a text; of equals, the one of the earlier tokens."""
    text = "low low low low lower lower widest widest widest newest newest"
    tokenizer = train_bpe([text], 256 + 6 + 1, False, special_tokens=["<|endoftext|>"])
    words = [[bytes([byte]) for byte in word.encode()] for word in re.findall(r" ?\w+", text)]
    ids = {bytes([byte]): tokenizer.encode(chr(byte))[0] for byte in range(128)}
    for number, merge in enumerate(tokenizer.merges):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        assert merge == best, (number, pairs)
        ids[b"".join(merge)] = 256 + number
        for word in words:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == merge:
                    word[place : place + 2] = [b"".join(merge)]
                place += 1
    assert len(tokenizer.merges) == 6 and tokenizer.vocab_size == 263
    assert [tokenizer.token_bytes(256 + number) for number in range(6)] == list(map(b"".join, tokenizer.merges))
    assert tokenizer.eot_id == 262 and tokenizer.encode("a<|endoftext|>", allow_special=True)[-1] == 262


@pytest.mark.parametrize(
    ("names", "said"), [(["a"], "token of the text"), (["<|x|>"] * 2, "distinct"), ([""], "empty")]
)
def test_special_tokens_that_cannot_be(names, said):
    with pytest.raises(UserError, match=said):
        train_bpe(["a b c"], 257, False, special_tokens=names)
    with pytest.raises(UserError, match=said):
        train_character(["a b c"], special_tokens=names)


def test_same_tokenizer_on_any_number_of_cores():
    script = (
        "import sys\nfrom lit_llm.tokenizer import train_bpe\nfrom pathlib import Path\n"
        "texts = [Path(p).read_text() for p in sys.argv[1:]]\nprint(train_bpe(texts, 1500, False).digest)"
    )
    files = [subprocess.__file__, os.__file__, pytest.__file__]
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, *files],
            env={**os.environ, "RAYON_NUM_THREADS": cores, "PYTHONHASHSEED": cores, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for cores in ("1", "2", "3")
    }
    assert len(digests) == 1 and len(digests.pop()) == 65


class TestTrainTokenizer:
    @pytest.fixture
    def config(self, tmp_path) -> TokenizerTrainingConfig:
        source = tmp_path / "text.txt"
        source.write_text("a" * 90 + "b" * 10)
        corpus = CorpusConfig(path=str(source), split="tail", validation_fraction=0.1)
        return TokenizerTrainingConfig(corpus=corpus, kind="character", output=str(tmp_path / "out"))

    def test_reads_the_train_split_alone(self, config):
        tokenizer = train_tokenizer(config)
        assert tokenizer.vocab_size == 1 + 256 + 4
        assert Tokenizer.load(config.output).digest == tokenizer.digest

    def test_refuses_to_replace(self, config):
        train_tokenizer(config)
        with pytest.raises(UserError, match="overwrite"):
            train_tokenizer(config)
        config.overwrite, config.byte_fallback = True, False
        assert train_tokenizer(config).vocab_size == Tokenizer.load(config.output).vocab_size == 5

    def test_max_bytes_ends_with_a_whole_character(self, config):
        Path(config.corpus.path).write_text("aé日本" * 3, encoding="utf-8")
        config.corpus.validation_fraction, config.byte_fallback = 0.0, False
        for limit, known in ((1, "a"), (2, "a"), (3, "aé"), (5, "aé"), (6, "aé日"), (None, "aé日本")):
            config.max_bytes, config.overwrite = limit, True
            assert train_tokenizer(config).decode(range(len(known))) == known
            assert Tokenizer.load(config.output).vocab_size == len(known) + 4

    @pytest.mark.parametrize("name", ["text.txt", "rows.jsonl", "code.py"])
    def test_no_merge_is_made_of_the_marker_between_documents(self, config, capsys, name):
        text = "".join(f"abc abc {number}<|endoftext|>" for number in range(50))
        path = Path(config.corpus.path).with_name(name)
        path.write_text(json.dumps({"text": text}) if name == "rows.jsonl" else text)
        config.corpus.path, config.kind, config.vocab_size = str(path), "bpe", 263
        tokenizer = train_tokenizer(config)
        learned = [tokenizer.token_bytes(index) for index in range(256, 259)]
        assert learned == [b"ab", b"abc", b" abc"] or learned == [b"bc", b"abc", b" abc"]
        said = "50 documents were found in text files that hold several" if name == "text.txt" else "learned as letters"
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["bpe", "character"])
    def test_own_special_tokens(self, config, kind):
        path = Path(config.corpus.path)
        path.write_text("ab ab <|think|>" * 60)
        names = ["<|think|>", "<|/think|>"]
        plain = replace(config, kind=kind, vocab_size=264)
        config = replace(plain, special_tokens=names)
        tokenizer = train_tokenizer(config)
        first = tokenizer.special_ids["<|think|>"]
        assert [tokenizer.special_ids[name] for name in names] == [first, first + 1]
        assert first == tokenizer.im_end_id + 1 and tokenizer.vocab_size == first + 2
        assert tokenizer.merges == ([(b"a", b"b"), (b" ", b"ab")] if kind == "bpe" else [])
        # a text that spells one has its letters, whatever follows it in the chat tokens
        assert first not in tokenizer.encode("<|think|>") and tokenizer.encode("<|think|>", allow_special=True) == [
            first
        ]
        loaded = Tokenizer.load(config.output)
        assert loaded.special_ids == tokenizer.special_ids and loaded.digest == tokenizer.digest
        assert begin_ids(loaded) == [loaded.eot_id]
        if kind == "bpe":
            with pytest.raises(UserError, match="at least 262"):
                replace(config, vocab_size=261)
        with pytest.raises(UserError, match="twice"):
            replace(config, special_tokens=["<|think|>", "<|think|>"])

    def test_bpe(self, config):
        config.kind, config.vocab_size = "bpe", 262
        tokenizer = train_tokenizer(config)
        assert [tokenizer.token_bytes(index) for index in (256, 257)] == [b"aa", b"aaaa"]

    def test_says_and_records_what_it_was_trained_on(self, config, capsys):
        folder = Path(config.corpus.path).parent / "texts"
        folder.mkdir()
        for name in "ab":
            (folder / f"{name}.txt").write_text(f"{name}é " * 25, encoding="utf-8")
        config.corpus = CorpusConfig(str(folder), validation_fraction=0.2)
        tokenizer = train_tokenizer(config)
        # 25 times 4 bytes, of which the last fifth of the characters is held out, in either file
        assert capsys.readouterr().err.splitlines()[-1] == "trained on the train split: 160 bytes of 2 documents"
        record = TokenizerRecord.load(Path(config.output), tokenizer.digest)
        assert record == TokenizerRecord(tokenizer.digest, replace(config.corpus, split="tail"), 2, 160)
        config.overwrite, config.max_bytes = True, 90
        train_tokenizer(config)
        assert capsys.readouterr().err.splitlines()[-1] == "trained on the train split: 90 bytes of 2 documents"
        config.corpus.validation_fraction, config.max_bytes = 0.0, None
        other = train_tokenizer(config)
        said = "trained on all of the corpus, as no split is held out: 200 bytes of 2 documents"
        assert capsys.readouterr().err.splitlines()[-1] == said
        # A record beside another tokenizer says nothing of it; one that is damaged is an error.
        assert TokenizerRecord.load(Path(config.output), "0" * 64) is None
        path = Path(config.output) / "training.json"
        good = json.loads(path.read_text())
        wrong = ({"documents": True}, {"corpus": 3}, {"corpus": {**good["corpus"], "split": "odd"}}, {"unknown": 1})
        for damage in ("{", "[]", *(json.dumps({**good, **each}) for each in wrong)):
            path.write_text(damage)
            with pytest.raises(UserError, match=r"training\.json is damaged .*; remove it, or train") as error:
                TokenizerRecord.load(Path(config.output), other.digest)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("letters", ["aqz", "123", "-+_", "\u00e9\u65e5\u0436", " \n\t"])
def test_a_word_that_never_ends_is_learned_in_parts(letters: str) -> None:
    """As a genome in one line, on which the trainer would take time by more than the square of its length."""
    filler, left, right = letters
    # Twice the same pair, where the word is cut in two.
    text = filler * 9_999 + left + right + filler * 9_998 + left + right + filler * 4_000
    pair = (left + right).encode()

    def merged(text: str) -> list[bytes]:
        with pytest.raises(UserError, match=r"supports only (\d+) tokens") as raised:
            train_bpe([text], 300, False)
        size = int(re.search(r"only (\d+)", str(raised.value))[1])
        return [left + right for left, right in train_bpe([text], size, False).merges]

    assert not any(pair in token for token in merged(text))
    space = "x" if letters.isspace() else " "
    apart = text[:5_000] + space + text[5_001:15_000] + space + text[15_001:]
    assert any(pair in token for token in merged(apart))
