"""How much sooner an answer begins with the prefix cache: the turns of a conversation, and a shared system prompt.

    python experiments/benchmarks/prefix_cache.py                                   # an untrained model of 30M
    python experiments/benchmarks/prefix_cache.py --models SmolLM2-135M.gguf        # and one that can chat
    python experiments/benchmarks/prefix_cache.py --quick                           # a tiny one, to see that it runs

Both sides are the server's engine in one process, with the cache and without, on the same weights; they take turns, and
the best run of each counts. A conversation has a first turn of some 1,900 tokens and an answer of 100, so that the
second turn reads 2,000 tokens and a short question after them, and the third a little more. Then some clients, fewer
than half of whom have a place at once, send questions with the same system prompt. All texts are greedy, and have to be
the same on both sides.

The last line of the output is JSON. By model: `prompt_tokens` and `cached_tokens` of each turn,
`seconds_to_first_token` of each side and `speedup` of each turn, `seconds_for_clients` of each side and their
`clients_speedup`, `same_texts`, and `mib_per_1000_tokens` that the cache takes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reporting import print_report

from lit_llm.config import LoadConfig, SamplingConfig, preset
from lit_llm.generation import Completion, Engine, PrefixCache
from lit_llm.model import Decoder
from lit_llm.model.packed_linear import pack_weights
from lit_llm.stages.loading import load
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer

SHAPES = {
    "30m": {"name": "llama-50m", "vocab_size": 16384, "num_layers": 7},
    "tiny": {"name": "llama-10m", "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "num_heads": 2},
}
SIDES = ("without", "with")


@dataclass
class Talk:
    """A model, and how it is talked to: in ids drawn at random where it has no tokenizer."""

    model: Decoder
    tokenizer: Tokenizer | None = None

    def piece(self, length: int, seed: int) -> list[int]:
        """Ids of a text of so many tokens."""
        if self.tokenizer is None:
            generator = torch.Generator().manual_seed(seed)
            return torch.randint(0, self.model.config.vocab_size or 0, (length,), generator=generator).tolist()
        text = Path(argparse.__file__).read_text(encoding="utf-8")
        return self.tokenizer.encode(text[400 * seed :][: 8 * length])[:length]

    def prompt(self, pieces: list[list[int]]) -> list[int]:
        """What is read after messages and answers in turn."""
        if self.tokenizer is None:
            return [token for piece in pieces for token in piece]
        roles = ["assistant" if place % 2 else "user" for place in range(len(pieces))]
        messages = [Message(role, self.tokenizer.decode(piece)) for role, piece in zip(roles, pieces, strict=True)]
        return ChatFormat(self.tokenizer).render_prompt(messages)


def written(engine: Engine, prompt: list[int], new: int) -> tuple[Completion, float]:
    """The answer to a prompt, and the seconds until its first token."""
    began, first, done = time.perf_counter(), 0.0, Completion()
    engine.submit(prompt, SamplingConfig(max_new_tokens=new, temperature=0.0))
    while engine.busy:
        for event in engine.step():
            first = first or time.perf_counter() - began
            done.add(event)
    return done, first


def conversation(talk: Talk, engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Three turns, each of which reads all that was said."""
    found: dict[str, Any] = {"prompt_tokens": [], "cached_tokens": [], "seconds": [], "texts": []}
    pieces: list[list[int]] = []
    for turn, length in enumerate((options.first, options.question, options.question)):
        pieces.append(talk.piece(length, turn))
        prompt = talk.prompt(pieces)
        answer, seconds = written(engine, prompt, options.answer)
        pieces.append(answer.ids)
        found["prompt_tokens"].append(len(prompt))
        found["cached_tokens"].append(answer.cached_tokens)
        found["seconds"].append(seconds)
        found["texts"].append(answer.ids)
    return found


def clients(talk: Talk, engine: Engine, options: argparse.Namespace) -> tuple[list[list[int]], float]:
    """The answers to questions after the same system prompt, and the seconds until the last of them."""
    system = talk.piece(options.first // 2, 9)
    began = time.perf_counter()
    ids = [
        engine.submit(
            talk.prompt([system + talk.piece(options.question, 10 + client)]),
            SamplingConfig(max_new_tokens=8, temperature=0.0),
        )
        for client in range(options.clients)
    ]
    done = engine.run()
    return [done[request].ids for request in ids], time.perf_counter() - began


def compare(talk: Talk, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn."""
    model = talk.model
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    shared: dict[str, list[tuple[list[list[int]], float]]] = {side: [] for side in SIDES}
    length = 2 * (options.first + 3 * (options.question + options.answer)) + 200
    for _ in range(options.repeats):
        for side in SIDES:
            # a cache of its own each time, so that a first turn is one
            cache = PrefixCache(model, PrefixCache.mib_for(model, 2 * length)) if side == "with" else None
            engine = Engine(model, 4, length, prefix_cache=cache)
            turns[side].append(conversation(talk, engine, options))
            shared[side].append(clients(talk, engine, options))
    texts = {side: [run["texts"] for run in turns[side]] + [run[0] for run in shared[side]] for side in SIDES}
    first = {side: [min(each) for each in zip(*(run["seconds"] for run in turns[side]), strict=True)] for side in SIDES}
    whole = {side: min(run[1] for run in shared[side]) for side in SIDES}
    return {
        "prompt_tokens": turns["with"][0]["prompt_tokens"],
        "cached_tokens": turns["with"][0]["cached_tokens"],
        "seconds_to_first_token": first,
        "speedup": [before / after for before, after in zip(first["without"], first["with"], strict=True)],
        "seconds_for_clients": whole,
        "clients_speedup": whole["without"] / whole["with"],
        "same_texts": texts["without"] == texts["with"],
        "mib_per_1000_tokens": PrefixCache.mib_for(model, 1000),
    }


def untrained(shape: str) -> Talk:
    """A model of a shape, with room for the conversation."""
    return Talk(Decoder(preset(**SHAPES[shape], max_position_embeddings=8192), seed=0).eval())


def trained(path: str) -> Talk:
    """A model that has a chat template."""
    loaded = load(LoadConfig(path, accelerator="cpu"))
    return Talk(loaded.model, loaded.tokenizer)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and short texts")
    parser.add_argument("--models", nargs="*", default=[], help="folders or GGUF files of models that can chat")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    vars(options).update(first=1900, answer=100, question=30, clients=12)
    if options.quick:
        vars(options).update(first=190, answer=10, question=5, clients=6, repeats=1)
    talks = {"tiny" if options.quick else "30m": untrained("tiny" if options.quick else "30m")}
    talks |= {Path(path).stem: trained(path) for path in options.models}
    figures: dict[str, Any] = {"models": {}}
    rows = []
    for name, talk in talks.items():
        pack_weights(talk.model)
        found = figures["models"][name] = compare(talk, options)
        for turn, speedup in enumerate(found["speedup"]):
            before, after = (found["seconds_to_first_token"][side][turn] for side in SIDES)
            of = f"{found['cached_tokens'][turn]} of {found['prompt_tokens'][turn]}"
            rows.append([f"{name}, turn {turn + 1}", of, f"{before:.3f} s", f"{after:.3f} s", f"{speedup:.1f}"])
        before, after = (found["seconds_for_clients"][side] for side in SIDES)
        told = f"{before:.3f} s", f"{after:.3f} s", f"{found['clients_speedup']:.1f}"
        rows.append([f"{name}, {options.clients} clients", "", *told])
        rows.append([f"{name}, same texts", "yes" if found["same_texts"] else "NO", "", "", ""])
    header = ["to the first token", "tokens held", *SIDES, "times sooner"]
    print_report("The prefix cache", header, rows, figures)


if __name__ == "__main__":
    main()
