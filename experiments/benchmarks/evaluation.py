"""A battery beside lm-evaluation-harness with transformers: the same weights and questions, item by item, and the time.

    lit-llm fetch_model smollm2-135m-instruct --output checkpoints/smollm2
    python experiments/benchmarks/evaluation.py --data FOLDER      # BLiMP, MMLU, GSM8K; see `evaluate --battery base`
    python experiments/benchmarks/evaluation.py --quick            # a tiny model and a few made-up questions

The questions of the batteries `base` and `code` are put to our decoder and to the harness's own HFLM, task by task,
both in float32 and by as many at once. Of choices every log-probability is compared, of written answers (greedy) the
texts. The harness writes answers without judging them; our time has the judging in it. The last line of the output is
JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from reporting import print_report

from lit_llm.config import preset
from lit_llm.evaluation.battery.definition import open_batteries
from lit_llm.evaluation.battery.reading import QuestionReader
from lit_llm.evaluation.battery.run import AskedTask, Examinee, ask, open_tasks
from lit_llm.interop import load_model_folder, save_model_folder, stop_token_ids
from lit_llm.model import Decoder
from lit_llm.tokenizer import train_bpe

LIMITS = {"blimp": 10, "mmlu": 6, "gsm8k": 8, "humaneval": 8}
"""Questions of each part of a task."""


def write_quick(folder: Path) -> Path:
    """A tiny model of random weights, and a few questions of each form."""
    texts = [f"The {a} of the {b} is {a} and not {b}." for a in "abcdefghij" for b in "klmnopqrst"]
    tokenizer = train_bpe(texts, vocab_size=280)
    small = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_key_value_heads": None, "intermediate_size": 64}
    config = preset("llama-10m", vocab_size=tokenizer.vocab_size, **small)
    torch.manual_seed(0)
    save_model_folder(folder / "model", config, Decoder(config).state_dict(), tokenizer)
    (folder / "mmlu" / "test").mkdir(parents=True)
    (folder / "mmlu" / "dev").mkdir()
    pairs = [{"sentence_good": text, "sentence_bad": text[::-1], "paradigm": "turned"} for text in texts[:6]]
    (folder / "blimp_sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    for split in ("test", "dev"):
        rows = "".join(f"What is {i}?,a,b,c,d,{'ABCD'[i % 4]}\n" for i in range(6))
        (folder / "mmlu" / split / f"letters_{split}.csv").write_text(rows)
    sums = [{"question": f"{i} and {i}?", "answer": f"It is\n#### {2 * i}"} for i in range(8)]
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    return folder / "model"


def ours(asked: AskedTask, folder: Path, batch_size: int) -> tuple[list[Any], float, float]:
    """Log-probabilities or texts of every question, the accuracy, and the seconds."""
    model, tokenizer = load_model_folder(folder, dtype=torch.float32)
    examinee = Examinee(model, QuestionReader(tokenizer), list(stop_token_ids(folder, tokenizer)), batch_size)
    began = time.perf_counter()
    answers = ask(asked, examinee)
    seconds = time.perf_counter() - began
    found = [answers[question.id] for question in asked.questions]
    values = [each.get("log_probs") or each["samples"][0]["text"] for each in found]
    return values, sum(each["score"] for each in found) / len(found), seconds


def theirs(asked: AskedTask, harness: Any) -> tuple[list[Any], float]:
    """The same from the harness: log-probabilities or texts, and the seconds."""
    from lm_eval.api.instance import Instance

    task = asked.task
    began = time.perf_counter()
    if asked.questions[0].choices:
        arguments: list[tuple[Any, ...]] = [
            (question.context(task), f"{task.delimiter}{choice}")
            for question in asked.questions
            for choice in question.choices
        ]
        requests = [Instance("loglikelihood", {}, each, i, (task.name, i, 1)) for i, each in enumerate(arguments)]
        flat = iter(value for value, _ in harness.loglikelihood(requests, disable_tqdm=True))
        found: list[Any] = [[next(flat) for _ in question.choices] for question in asked.questions]
    else:
        options = {"until": list(task.stops), "max_gen_toks": task.answer_tokens, "do_sample": False}
        arguments = [(question.context(task), options) for question in asked.questions]
        requests = [Instance("generate_until", {}, each, i, (task.name, i, 1)) for i, each in enumerate(arguments)]
        found = list(harness.generate_until(requests, disable_tqdm=True))
    return found, time.perf_counter() - began


def compare(asked: AskedTask, folder: Path, harness: Any, batch_size: int) -> dict[str, Any]:
    """One task by both sides."""
    mine, accuracy, seconds = ours(asked, folder, batch_size)
    other, harness_seconds = theirs(asked, harness)
    figures: dict[str, Any] = {"questions": len(asked.questions), "accuracy": round(accuracy, 4)}
    if asked.questions[0].choices:
        pairs = [(a, b) for one, two in zip(mine, other, strict=True) for a, b in zip(one, two, strict=True)]
        figures["largest_difference"] = round(max(abs(a - b) for a, b in pairs), 6)
    else:
        figures["equal_texts"] = sum(a.strip() == b.strip() for a, b in zip(mine, other, strict=True))
    return figures | {
        "seconds": round(seconds, 2),
        "harness_seconds": round(harness_seconds, 2),
        "speed": round(harness_seconds / seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--data", help="folder of the questions, as evaluate --battery_data has it")
    parser.add_argument("--tasks", default=",".join(LIMITS), help="which of them")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a tiny model, made-up questions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.quick:
            options.model, options.data = str(write_quick(folder)), str(folder)
        model, tokenizer = load_model_folder(Path(options.model), dtype=torch.float32)
        save_model_folder(folder / "plain", model.config, model.state_dict(), tokenizer)
        own = AutoTokenizer.from_pretrained(folder / "plain")
        own.pad_token = own.pad_token or own.eos_token
        decoder = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)
        longest = decoder.config.max_position_embeddings
        harness = HFLM(decoder, tokenizer=own, batch_size=options.batch_size, max_length=longest)
        found = {}
        for located in open_batteries("base,code", options.data, options.tasks):
            most = 2 if options.quick else LIMITS[located.task.name]
            if options.quick and located.task.form in ("answers", "code"):
                located = replace(located, task=replace(located.task, max_new_tokens=8))
            (asked,) = open_tasks([located], most)
            found[located.task.name] = compare(asked, folder / "plain", harness, options.batch_size)
            print(located.task.name, found[located.task.name], flush=True)
    seconds, other = (sum(each[name] for each in found.values()) for name in ("seconds", "harness_seconds"))
    rows = [
        [
            name,
            str(each["questions"]),
            f"{each['accuracy']:.1%}",
            f"{each['largest_difference']:.1e} nats"
            if "largest_difference" in each
            else f"{each['equal_texts']} equal",
            f"{each['seconds']:.1f} / {each['harness_seconds']:.1f}",
            f"{each['speed']:.2f}x",
        ]
        for name, each in found.items()
    ]
    figures = {"tasks": found, "speed": round(other / seconds, 2), "batch_size": options.batch_size}
    header = ["task", "questions", "accuracy", "difference", "seconds, ours / theirs", "speed"]
    print_report("Ours beside lm-evaluation-harness with transformers", header, rows, figures)


if __name__ == "__main__":
    main()
