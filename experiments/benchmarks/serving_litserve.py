"""transformers behind LitServe, for `serving.py`: run by a Python that has litserve, torch and transformers.

    PYTHON serving_litserve.py FOLDER --port 9000 --batch 8 --threads 2

It answers POST /v1/completions with a prompt of token ids, greedily, as a stream of as many tokens as are asked for.
"""

# LitServe makes fields of these annotations: so none are texts, and `encode_response` has none
import argparse
import json
from collections.abc import Iterator
from typing import Any

import litserve
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Completions(litserve.LitAPI):
    """Requests that come together are one batch, and the next ones wait for its end."""

    def __init__(self, folder: str, threads: int, **options: Any) -> None:
        super().__init__(**options)
        self.folder, self.threads = folder, threads

    def setup(self, device: str) -> None:
        torch.set_num_threads(self.threads)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.decoder = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def decode_request(self, request: dict[str, Any]) -> tuple[list[int], int]:
        return request["prompt"], request["max_tokens"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return list(inputs)

    def unbatch(self, output: Iterator[Any]) -> Iterator[Any]:
        yield from output

    def predict(self, asked: list[tuple[list[int], int]]) -> Iterator[list[str]]:
        """Yield an event for each request after each token: prompts are padded at the left."""
        width = max(len(prompt) for prompt, _ in asked)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in asked])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in asked])
        written: list[list[int]] = [[] for _ in asked]
        told = [""] * len(asked)
        cache = None
        for place in range(max(most for _, most in asked)):
            with torch.inference_mode():
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.size(1) :]
                out = self.decoder(
                    ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
                )
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            events = []
            for row, (_, most) in enumerate(asked):
                if place >= most:
                    events.append("")
                    continue
                written[row].append(int(ids[row, 0]))
                text = self.tokenizer.decode(written[row])
                events.append(_event(text[len(told[row]) :], place + 1 == most, place + 1))
                told[row] = text
            yield events

    def encode_response(self, output):
        yield from output


def _event(text: str, last: bool, tokens: int) -> str:
    chunk = {"choices": [{"index": 0, "text": text, "finish_reason": "length" if last else None}]}
    if last:
        chunk["usage"] = {"completion_tokens": tokens}
    return f"data: {json.dumps(chunk)}\n\n" + ("data: [DONE]\n\n" if last else "")


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8, help="texts at once")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    places = {"max_batch_size": options.batch, "batch_timeout": 0.01, "stream": True, "api_path": "/v1/completions"}
    server = litserve.LitServer(Completions(options.model, options.threads, **places), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
