import json
import os
import pickle
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.config import UserError
from lit_llm.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe, train_character

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
SAMPLE = "The quick brown fox jumps over the lazy dog; the dog's bark isn't worse than its bite.\n" * 40
FOREIGN = " naïve 日本語 😀😀 \t\x00\x85 \u3000 <|endoftext|><|pad|> <0x0A> e\u0301\r\n"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([SAMPLE, "def f(x):\n    return x\n" * 9], 300, show_progress=False)


@pytest.fixture(scope="module")
def character() -> Tokenizer:
    return train_character([SAMPLE], show_progress=False)


@pytest.fixture(params=["bpe", "character"], scope="module")
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


any_text = st.lists(st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, "<0x0A>", "the dog", "\n\n"]))).map("".join)


@given(text=any_text)
@settings(max_examples=80, deadline=None)
def test_any_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())
    (bulk,) = tokenizer.encode_bulk([text])
    assert bulk.tolist() == ids and bulk.dtype == np.uint16
    with_special = tokenizer.encode(text, allow_special=True)
    assert tokenizer.decode(with_special) == text
    named = sum(text.count(name) for name in SPECIAL_TOKENS)
    assert sum(index in tokenizer.special_ids.values() for index in with_special) == named


def test_special_tokens_are_read_only_when_allowed_and_skipped_when_asked(tokenizer):
    text = "<|im_start|>the dog<|im_end|>"
    ids = tokenizer.encode(text, allow_special=True)
    assert ids[0] == tokenizer.im_start_id and ids[-1] == tokenizer.im_end_id
    assert tokenizer.decode(ids, skip_special=True) == "the dog"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text
    assert tokenizer.byte_lengths()[ids].sum() == len("the dog")
    assert tokenizer.token_bytes(tokenizer.eot_id) == b"<|endoftext|>"
    # After allow_special, ordinary text is ordinary still.
    assert tokenizer.eot_id not in tokenizer.encode("<|endoftext|>")


def test_vocabulary_is_contiguous_and_specials_are_last(bpe, character):
    characters = len(set(SAMPLE))
    assert bpe.vocab_size == 300 and character.vocab_size == characters + 256 + 4
    for tokenizer in (bpe, character):
        size = tokenizer.vocab_size
        assert list(tokenizer.special_ids.values()) == list(range(size - 4, size))
        assert (tokenizer.eot_id, tokenizer.pad_id, tokenizer.im_start_id, tokenizer.im_end_id) == tuple(
            range(size - 4, size)
        )
        assert all(tokenizer.token_bytes(index) for index in range(size))
        assert tokenizer.byte_lengths().dtype == np.int64 and (tokenizer.byte_lengths()[:-4] > 0).all()
        assert tokenizer.token_bytes(size) == b"" and tokenizer.decode([size + 7]) == ""
    assert [character.token_bytes(index).decode() for index in range(characters)] == sorted(set(SAMPLE))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_stream_decoder_gives_what_decode_gives(tokenizer, seed):
    rng = random.Random(seed)
    ids = [rng.randrange(tokenizer.vocab_size + 2) for _ in range(30)] + tokenizer.encode(FOREIGN)[: seed % 40]
    for skip in (False, True):
        stream = tokenizer.stream_decoder(skip_special=skip)
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids, skip_special=skip)


def test_stream_decoder_never_splits_a_character(tokenizer):
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(index) for index in tokenizer.encode("a😀b")]
    assert "😀" in pieces and "\ufffd" not in "".join(pieces) and stream.flush() == ""
    stream.push(tokenizer.encode("😀")[0])
    assert stream.flush() == "\ufffd"


def test_auto_tokenizer_reads_the_folder(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token, theirs.pad_token, theirs.bos_token) == ("<|endoftext|>", "<|pad|>", None)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (
        tokenizer.eot_id,
        tokenizer.pad_id,
        tokenizer.vocab_size,
    )
    for text in (SAMPLE, FOREIGN, "a , b . <|im_start|>user 's<|im_end|>", ""):
        ids = tokenizer.encode(text, allow_special=True)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids) == text
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special=True)
    if tokenizer.kind == "bpe":
        noise = [random.Random(1).randrange(tokenizer.vocab_size) for _ in range(500)]
        assert theirs.decode(noise) == tokenizer.decode(noise)


def test_a_full_disk_leaves_the_old_tokenizer_and_nothing_else(tmp_path):
    folder = tmp_path / "tokenizer"
    train_character(["abc"]).save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    large = train_character(["".join(map(chr, range(0x4E00, 0x5E00)))])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The first file fits, the second does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(UserError, match=r"cannot write .*tokenizer\.json: File too large; what was there before"):
            large.save(folder)
        with pytest.raises(UserError, match=r"cannot write .*tokenizer\.json: File too large"):
            large.save(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file: File exists"):
        large.save(tmp_path / "file")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_saved_files_have_the_permissions_of_the_umask(tokenizer, tmp_path, umask):
    before = os.umask(umask)
    try:
        tokenizer.save(tmp_path)
        tokenizer.save(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_save_and_load_keep_ids_and_digest(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.digest, loaded.kind, loaded.special_ids) == (
        tokenizer.digest,
        tokenizer.kind,
        tokenizer.special_ids,
    )
    assert loaded.encode(FOREIGN) == tokenizer.encode(FOREIGN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.encode(FOREIGN) == tokenizer.encode(FOREIGN) and copied.digest == tokenizer.digest


def test_a_loaded_configuration_is_kept(bpe, tmp_path):
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages }}"}))
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_no_space_is_put_before_what_goes_on(bpe, steps):
    state = json.loads(json.dumps(bpe.state))
    splitting = {**state["pre_tokenizer"], "add_prefix_space": True}
    digits = {"type": "Digits", "individual_digits": True}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [splitting, digits][:steps]} if steps else splitting
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)))
    for text in ("dog's bark", "'s bark", " dog", "the dog", "!", ""):
        assert tokenizer.encode_further(text) == bpe.encode(text)
    assert tokenizer.encode("dog's bark") == bpe.encode(" dog's bark") != bpe.encode("dog's bark")


def test_dropout_of_merges_is_left_out(bpe, tmp_path, capsys):
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["dropout"] = 0.5
    path.write_text(json.dumps(state))
    tokenizer = Tokenizer.load(tmp_path)
    assert capsys.readouterr().err == "the tokenizer's dropout 0.5 is left out: a text has the same tokens each time\n"
    expected = bpe.encode(SAMPLE)
    for allow_special in (False, True) * 5:
        assert tokenizer.encode(SAMPLE, allow_special) == expected
    assert tokenizer.encode_bulk([SAMPLE])[0].tolist() == expected and tokenizer.digest == bpe.digest
    tokenizer.save(tmp_path)
    assert json.loads(path.read_text())["model"]["dropout"] is None


def test_digest_differs_for_different_tokenizers(bpe, character):
    others = [
        train_bpe([SAMPLE, "def f(x):\n    return x\n" * 9], 299, show_progress=False),
        train_bpe([SAMPLE[::-1]], 300, show_progress=False),
        train_character([SAMPLE + "ß"], show_progress=False),
        train_character([SAMPLE], byte_fallback=False, show_progress=False),
    ]
    assert len({tokenizer.digest for tokenizer in [bpe, character, *others]}) == 6


def test_character_without_fallback_names_what_it_lacks():
    tokenizer = train_character(["abc"], byte_fallback=False, show_progress=False)
    assert tokenizer.vocab_size == 7 and tokenizer.encode("cab") == [2, 0, 1]
    assert tokenizer.decode([2, 0, 1]) == "cab"
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_bulk(["a", text])):
        with pytest.raises(UserError, match=r"'é' \(U\+00E9\) at position 3"):
            encode("abcé")


def test_lone_surrogates_are_an_error(tokenizer):
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_bulk([text])):
        with pytest.raises(UserError, match=r"U\+D800.*character 2"):
            encode("ab\ud800")


def test_load_errors_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such tokenizer folder"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    for broken in ("{", "{}", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer") as error:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(error.value)
    from tokenizers import Tokenizer as Raw
    from tokenizers import models

    Raw(models.WordPiece({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="WordPiece"):
        Tokenizer.load(tmp_path)
    train_character(["ab"], show_progress=False).save(tmp_path)
    deep, long = "[" * 100_000 + "]" * 100_000, "9" * 5_000
    for broken in ('{"a":\n', f'{{"a": {deep}}}', f'{{"a": {long}}}'):
        (tmp_path / "tokenizer_config.json").write_text(broken)
        with pytest.raises(UserError, match=r"tokenizer_config\.json: broken JSON") as error:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    templates = [{"chat_template": value} for value in (5, [{"name": "default", "template": {}}, 3], {"default": "x"})]
    for config in (*templates, {"bos_token": ["a"]}, {"eos_token": {"content": 3}}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=rf"{next(iter(config))} is .*; it must be (the )?text"):
            Tokenizer.load(tmp_path)


def test_qwen_style_folder_loads(tmp_path):
    """Split by another pattern, NFC, an added token that is not special, a post-processor that adds a token."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Raw

    from lit_llm.tokenizer.alphabet import BYTE_TO_CHARACTER

    raw = Raw(models.BPE({token: index for index, token in enumerate(BYTE_TO_CHARACTER)} | {"ab": 256}, [("a", "b")]))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|begin|>", "<|end_of_text|>"])
    raw.add_tokens([AddedToken("<tool>", special=False)])
    raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 257)])
    raw.enable_truncation(3)
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    text = "ab12 日<tool><|begin|>"
    ids = tokenizer.encode(text)
    assert ids[0] == 256 and ids.count(259) == 1 and 257 not in ids and tokenizer.decode(ids) == text
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id) == ("bpe", 260, 258, None)
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())
    assert [array.tolist() for array in tokenizer.encode_bulk([text, ""])] == [ids, []]


@pytest.mark.skipif(not (DATA / "gpt2").is_dir(), reason="GPT-2's vocabulary is not at ../shared/data/gpt2")
class TestGPT2:
    @pytest.fixture(scope="class")
    def gpt2(self) -> Tokenizer:
        return Tokenizer.from_gpt2_files(DATA / "gpt2" / "vocab.json", DATA / "gpt2" / "merges.txt")

    def test_ids_are_those_of_transformers(self, gpt2):
        transformers = pytest.importorskip("transformers")
        vocab, merges = DATA / "gpt2" / "vocab.json", DATA / "gpt2" / "merges.txt"
        try:
            theirs = transformers.GPT2Tokenizer(vocab=str(vocab), merges=str(merges))
        except TypeError:  # transformers 4
            theirs = transformers.GPT2Tokenizer(vocab_file=str(vocab), merges_file=str(merges))
        texts = [path.read_text(encoding="utf-8")[:100_000] for path in sorted(DATA.glob("*.txt"))] + [FOREIGN]
        assert len(texts) == 3
        for text in texts:
            ids = gpt2.encode(text, allow_special=True)
            assert theirs(text)["input_ids"] == ids
            assert gpt2.decode(ids) == text

    def test_known_ids_and_size(self, gpt2):
        assert gpt2.encode("Hello world") == [15496, 995]
        assert (gpt2.vocab_size, gpt2.eot_id, gpt2.pad_id, gpt2.im_end_id) == (50257, 50256, None, None)
        assert gpt2.token_bytes(995) == b" world"

    def test_saved_folder_has_no_token_that_gpt2_lacks(self, gpt2, tmp_path):
        transformers = pytest.importorskip("transformers")
        gpt2.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert (len(theirs), theirs.pad_token, theirs.eos_token_id) == (50257, None, 50256)
        assert Tokenizer.load(tmp_path).digest == gpt2.digest

    def test_specials_can_be_added(self):
        files = DATA / "gpt2" / "vocab.json", DATA / "gpt2" / "merges.txt"
        tokenizer = Tokenizer.from_gpt2_files(*files, add_special=True)
        assert list(tokenizer.special_ids.values()) == [50256, 50257, 50258, 50259]

    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match=r"vocab.json: no such file"):
            Tokenizer.from_gpt2_files(tmp_path / "vocab.json", DATA / "gpt2" / "merges.txt")
