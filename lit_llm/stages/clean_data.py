"""A clean corpus from raw sources, as a recipe says."""

from __future__ import annotations

import sys

from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.corpus.recipes.engine import CleanCorpus, make_corpus
from lit_llm.evaluation.data_report import PAGE, write_data_report


def clean_data(config: RecipeConfig) -> CleanCorpus:
    """Makes the corpus that a recipe describes in `config.output`, or what is left to do of it.

    The folder has documents/*.parquet, which `train_tokenizer` and `prepare_data` read, recipe.yaml, report.json, and
    data_card.md and data_report.html, which show what that says. The documents are the same to the byte whatever the
    number of processes and interruptions.

    Raises:
        UserError: see `make_corpus`.
    """
    corpus = make_corpus(config)
    if corpus.is_new or not (corpus.folder / PAGE).exists():
        write_data_report(corpus.folder, corpus.report)
    if not corpus.is_new:
        print(f"{config.output} has the corpus of this very recipe already; nothing is done", file=sys.stderr)
    return corpus
