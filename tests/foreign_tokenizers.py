"""Small tokenizers of the forms that other models have, as folders that transformers wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}"
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS = "<s>", "</s>"


def split_and_bytes(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level(texts: Iterable[str], pre_tokenizer: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    return tokenizer


def gpt2(texts: Iterable[str]) -> tokenizers.Tokenizer:
    return byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3(texts: Iterable[str]) -> tokenizers.Tokenizer:
    tokenizer = byte_level(texts, split_and_bytes(LLAMA3_PATTERN))
    return with_bos(tokenizer)


def qwen(texts: Iterable[str]) -> tokenizers.Tokenizer:
    tokenizer = byte_level(texts, split_and_bytes(LLAMA3_PATTERN.replace("{1,3}", "")))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def with_bos(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return tokenizer


def sentencepiece(
    texts: Iterable[str], normalizer: normalizers.Normalizer, pre_tokenizer: pre_tokenizers.PreTokenizer | None
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    special = ["<unk>", BOS, EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines()), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return with_bos(tokenizers.Tokenizer.from_str(json.dumps(state)))


SPELLING = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def llama2(texts: Iterable[str]) -> tokenizers.Tokenizer:
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = sentencepiece(texts, spaces, None)
    tokenizer.decoder = decoders.Sequence([*SPELLING, decoders.Strip(" ", 1, 0)])
    return tokenizer


def gemma(texts: Iterable[str]) -> tokenizers.Tokenizer:
    words = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer = sentencepiece(texts, normalizers.Replace(" ", "▁"), words)
    tokenizer.decoder = decoders.Sequence(SPELLING)
    return tokenizer


FORMS: dict[str, Callable[[Iterable[str]], tokenizers.Tokenizer]] = {
    "gpt2": gpt2,
    "llama3": llama3,
    "qwen": qwen,
    "llama2": llama2,
    "gemma": gemma,
}


def save_foreign_tokenizer(form: str, folder: Path) -> Path:
    """A tokenizer of the form, learnt from this file, in a folder that transformers wrote."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = FORMS[form]([Path(__file__).read_text(encoding="utf-8")])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    return folder
