"""Measure how short tokenizers make texts, by corpus and by language. See --help, or --help-all for every option."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("evaluate_tokenizer")
