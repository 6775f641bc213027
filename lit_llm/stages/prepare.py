"""Encoding a corpus into shards."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from lit_llm.config import PrepareConfig, UserError, to_plain
from lit_llm.data.corpus.documents import Corpus
from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.preparation import CorpusEncoder, begin_preparation, document_batches, refuse_finished
from lit_llm.data.corpus.shards import token_dtype
from lit_llm.data.corpus.tokenizer_record import TokenizerRecord
from lit_llm.data.progress import byte_progress
from lit_llm.interop import load_tokenizer


def prepare_data(config: PrepareConfig) -> dict[str, Manifest]:
    """Encodes a corpus into output/train, output/validation and output/test, with the tokenizer in output/tokenizer.

    Run again after an interruption, it goes on from the last commit point.

    Args:
        config: names the corpus, the tokenizer and the folder for the shards.

    Returns:
        The manifest of each split that has a share of the corpus.

    Raises:
        UserError: the tokenizer or corpus is missing; the output is complete, or was begun with other options; a split
            comes out empty; the disk is full.
    """
    tokenizer = load_tokenizer(Path(config.tokenizer))
    if tokenizer.eot_id is None:
        raise UserError(f"the tokenizer in {config.tokenizer} has no end-of-text token to put between documents")
    if config.num_workers is not None:
        # Where the tokenizer falls back to the tokenizers library, that library's own pool does the work.
        os.environ["RAYON_NUM_THREADS"] = str(config.num_workers)
    output = Path(config.output)
    refuse_finished(config, output)  # before the corpus is read to find out how to split it
    corpus = Corpus(config.corpus, end_of_text=tokenizer.end_of_text)
    corpus.say_split()
    config = replace(config, corpus=corpus.settled_config)
    record = TokenizerRecord.load(Path(config.tokenizer), tokenizer.digest)
    if record and (differences := record.held_out_text_read(corpus)):
        print(
            f"the tokenizer in {config.tokenizer} may have been trained on text that is held out here ({differences}); "
            "train it again with the corpus options of this command",
            file=sys.stderr,
        )
    progress = begin_preparation(config, tokenizer, corpus, output)
    _encode(CorpusEncoder(config, tokenizer, output, progress), corpus)
    manifests = {
        split: Manifest(
            tokenizer_digest=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
            dtype=token_dtype(tokenizer.vocab_size),
            eot_id=tokenizer.eot_id,
            pad_id=tokenizer.pad_id,
            special_ids=dict(tokenizer.special_ids),
            corpus=to_plain(config.corpus),
            shards=shards,
        )
        for split, shards in progress.shards.items()
    }
    _check_not_empty(config, manifests)
    if record:
        record.save(output / "tokenizer")
    for split, manifest in manifests.items():
        manifest.save(output / split)
    (output / "progress.json").unlink()
    corpus.counts.say()
    return manifests


def _encode(encoder: CorpusEncoder, corpus: Corpus) -> None:
    """Write the shards that are still to be written."""
    progress = encoder.progress
    with byte_progress("encoding", corpus.size_bytes()) as advance:
        advance(sum(shard.bytes for shards in progress.shards.values() for shard in shards))
        try:
            for batch in document_batches(corpus.documents(skip=progress.documents)):
                advance(encoder.add(batch))
            encoder.commit()
        except BaseException:
            encoder.discard()
            raise


def _check_not_empty(config: PrepareConfig, manifests: dict[str, Manifest]) -> None:
    for split, manifest in manifests.items():
        if not manifest.tokens:
            documents = sum(other.documents for other in manifests.values())
            raise UserError(
                f"the {split} split of {config.corpus.path} is empty ({documents:,} documents in all); use more text, "
                "other fractions in corpus, or corpus.split tail"
            )
