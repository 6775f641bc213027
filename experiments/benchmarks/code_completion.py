"""Models of Python on text of packages that they have not read: bits per byte, and completions that parse.

    python experiments/benchmarks/code_completion.py --texts checkpoints/corpora/code_held_out \\
        --models code_30m=checkpoints/code_30m quickstart=checkpoints/quickstart
    python experiments/benchmarks/code_completion.py --quick    # an untrained model and these scripts, just to run

Files are drawn from the corpus until there are `--megabytes` of text. Every model scores the whole of it, each file
alone and in windows of its own context that overlap by half; gzip, xz and zstd compress the same text as one stream.
Then `--prompts` functions of these files, drawn from those with a docstring, are each cut after their docstring: the
model reads the file up to there, as much as fits, and writes on greedily until a line returns to the function's margin.
The header with what was written counts if it is one function that does something; a text that reaches `--new` tokens
is cut back to its last whole line. All of the real functions would count. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from reporting import print_report

from lit_llm.config import CorpusConfig, LoadConfig, SamplingConfig, TokenizerTrainingConfig, preset
from lit_llm.data.corpus.documents import Corpus
from lit_llm.evaluation.baselines import compressor_bits_per_byte
from lit_llm.evaluation.perplexity import score, summary
from lit_llm.evaluation.token_windows import TextSource, WindowOptions
from lit_llm.generation import complete
from lit_llm.interop import save_model_folder
from lit_llm.model import Decoder
from lit_llm.quickstart.functions import parses
from lit_llm.stages.loading import LoadedModel, load
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.tokenizer import Tokenizer, begin_ids


@dataclass(frozen=True)
class Cut:
    """A function whose body is to be written.

    Attributes:
        before: the file up to the end of the function's docstring, without the end of that line: with it, a tokenizer
            whose tokens join it to the indentation after it would tell the model that there is none.
        header: the end of that, from the def line on.
        margin: columns before the def line.
    """

    before: str
    header: str
    margin: int


def draw(path: str, size: int, seed: int) -> list[str]:
    """Files in random order up to `size` bytes, the last one whole."""
    texts = [document.text for document in Corpus(CorpusConfig(path=path, validation_fraction=0.0)).documents()]
    random.Random(seed).shuffle(texts)
    drawn, total = [], 0
    for text in texts:
        if total >= size:
            break
        drawn.append(text)
        total += len(text.encode())
    return drawn


def cuts_of(text: str) -> list[Cut]:
    """The functions of a file that have a docstring and, on lines of its own, a body behind it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    lines = text.split("\n")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            end = node.body[0].end_lineno or 0
            if node.body[1].lineno > end:
                before, header = lines[:end], lines[node.lineno - 1 : end]
                found.append(Cut("\n".join(before), "\n".join(header), node.col_offset))
    return found


def function_of(cut: Cut, written: str, ended: bool) -> str:
    """The function that begins as `cut` and goes on as `written` up to where its margin is reached."""
    body = re.split(rf"\n(?= {{0,{cut.margin}}}\S)", written, maxsplit=1)
    text = body[0]
    if len(body) == 1 and not ended:
        text = text[: max(text.rfind("\n"), 0)]
    return textwrap.dedent(cut.header + text)


def is_written(text: str) -> bool:
    """Whether a text is one function that does something besides having a docstring."""
    if not parses(text):
        return False
    body = ast.parse(text).body
    return len(body) == 1 and isinstance(body[0], ast.FunctionDef) and len(body[0].body) > 1


def completions(loaded: LoadedModel, cuts: list[Cut], new: int) -> list[str]:
    """What a model makes of each cut."""
    model, tokenizer = loaded.model, loaded.tokenizer
    most = model.config.max_position_embeddings - new
    begin = begin_ids(tokenizer, "auto")
    prompts = [[*begin, *tokenizer.encode(cut.before)[-(most - len(begin)) :]] for cut in cuts]
    sampling = SamplingConfig(max_new_tokens=new, temperature=0.0)
    written = complete(
        model, prompts, sampling, tokenizer=tokenizer, stop_tokens=loaded.stop_tokens, max_batch=16, prefill_chunk=None
    )
    pairs = zip(cuts, written, strict=True)
    return [function_of(cut, text.text, text.finish_reason == "stop") for cut, text in pairs]


def measure(loaded: LoadedModel, texts: Path, cuts: list[Cut], new: int) -> dict[str, Any]:
    """The figures of one model."""
    context = loaded.model.config.max_position_embeddings
    scores = score(
        loaded.model, loaded.tokenizer, TextSource(str(texts)), WindowOptions(context, context // 2), batch_size=16
    )
    told = summary([scores], seed=0)
    functions = completions(loaded, cuts, new)
    return {
        "bits_per_byte": told["bits_per_byte"],
        "interval_nats_per_token": told["interval"],
        "nats_per_token": told["loss"],
        "parse": sum(map(is_written, functions)) / len(functions),
        "functions": functions[:8],
    }


def untrained(folder: Path) -> LoadedModel:
    """A tiny model that has learnt nothing."""
    corpus = CorpusConfig(path="stdlib")
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=512, output=str(folder / "tok"), max_bytes=100_000))
    tokenizer = Tokenizer.load(folder / "tok")
    config = preset("modern-1m", vocab_size=tokenizer.vocab_size, num_layers=1)
    save_model_folder(folder / "model", config, Decoder(config, seed=0).state_dict(), tokenizer)
    return load(LoadConfig(str(folder / "model"), accelerator="cpu"))


def main() -> None:
    """Measure every model and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", default="checkpoints/corpora/code_held_out", help="a corpus that no model has read")
    parser.add_argument("--models", nargs="*", default=[], help="NAME=FOLDER of each")
    parser.add_argument("--megabytes", type=float, default=1.0, help="text to score")
    parser.add_argument("--prompts", type=int, default=96, help="functions to be completed")
    parser.add_argument("--new", type=int, default=192, help="most tokens to write for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few files")
    options = parser.parse_args()
    if options.quick:
        options.texts, options.megabytes, options.prompts, options.new = (
            str(Path(__file__).parent / "*.py"),
            0.03,
            4,
            16,
        )
    files = draw(options.texts, int(options.megabytes * 1e6), options.seed)
    cuts = [cut for file in files for cut in cuts_of(file)]
    cuts = random.Random(options.seed).sample(cuts, min(options.prompts, len(cuts)))
    whole = "".join(files).encode()
    figures: dict[str, Any] = {"bytes": len(whole), "files": len(files), "functions": len(cuts)}
    figures["compressors"] = compressor_bits_per_byte(whole)
    packed = pa.Codec("zstd", compression_level=22).compress(whole, asbytes=True)
    figures["compressors"]["zstd -22"] = 8 * len(packed) / len(whole)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": file}) + "\n" for file in files))
        models = {"untrained": untrained(folder)} if options.quick else {}
        for pair in options.models:
            called, _, place = pair.partition("=")
            models[called] = load(LoadConfig(place, accelerator="cpu"))
        figures["models"] = {
            called: measure(loaded, folder / "texts.jsonl", cuts, options.new) for called, loaded in models.items()
        }
    rows = [[name, f"{bits:.3f}", ""] for name, bits in figures["compressors"].items()]
    rows += [[name, f"{of['bits_per_byte']:.3f}", f"{of['parse']:.0%}"] for name, of in figures["models"].items()]
    print_report(f"{len(files)} files, {len(cuts)} functions", ["", "bits per byte", "parse"], rows, figures)


if __name__ == "__main__":
    main()
