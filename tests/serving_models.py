"""Servers of tiny models on a real port, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from chat_rows import letter_tokenizer
from conftest import tiny_model
from random_decoder import add_random_lora, random_decoder

from lit_llm.cli.serve import access_to, bound_socket, make_registry, make_server, make_worker, operations_of
from lit_llm.cli.serve_models import ModelFolders, describe_model
from lit_llm.config import LoraConfig, SamplingConfig, ServeConfig
from lit_llm.generation import Completion, complete
from lit_llm.interop import load_model_folder, save_adapter, save_model_folder
from lit_llm.model.adapters import RowAdapters
from lit_llm.serving.draining import DrainingServer
from lit_llm.serving.served_model import Served
from lit_llm.serving.worker import Worker
from lit_llm.stages.loading import LoadedModel
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer

CONTEXT = 160


@dataclass
class Server:
    """A server that runs, and what it was made of."""

    url: str
    loaded: LoadedModel
    worker: Worker
    client: httpx.Client
    process: DrainingServer

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.tokenizer

    def post(self, kind: str, **options: Any) -> httpx.Response:
        """A request with the model's name; kind is "chat", "text" or "vector"."""
        path = {"chat": "/v1/chat/completions", "text": "/v1/completions", "vector": "/v1/embeddings"}[kind]
        return self.client.post(path, json={"model": "tiny", **options})

    def ask(self, kind: str, **options: Any) -> dict[str, Any]:
        """The body of an answer that must be there."""
        response = self.post(kind, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def expected(self, kind: str, prompt: str | list[int], **sampling: Any) -> Completion:
        """The text that the package writes without a server."""
        ids = self.ids(kind, prompt)
        config = SamplingConfig(context_full="stop", **{"temperature": 1.0, "max_new_tokens": 512, **sampling})
        ends = self.loaded.stop_tokens + (ChatFormat(self.tokenizer).stop_ids if kind == "chat" else [])
        return complete(self.loaded.model, [ids], config, tokenizer=self.tokenizer, stop_tokens=ends)[0]

    def ids(self, kind: str, prompt: str | list[int]) -> list[int]:
        """What the model reads."""
        if isinstance(prompt, list):
            return prompt
        if kind == "chat":
            return ChatFormat(self.tokenizer).render_prompt([Message("user", prompt)])
        return [self.tokenizer.begin_id, *self.tokenizer.encode(prompt)]

    def counts(self) -> tuple[int, int]:
        """Requests that run and wait."""
        told = self.client.get("/health").json()
        return told["running"], told["waiting"]

    def wait_for(self, running: int, waiting: int) -> None:
        """Until there are so many requests."""
        wait_until(lambda: self.counts() == (running, waiting))


def wait_until(there: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not there():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.01)


def save_tiny(
    folder: Path, tokenizer: Tokenizer | None = None, context: int = CONTEXT, name: str = "tiny", seed: int = 0
) -> Path:
    """A folder named tiny of a model that writes nearly anything."""
    tokenizer = tokenizer or letter_tokenizer()
    config = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=context)
    model = random_decoder(config, seed=seed, std=0.1)
    save_model_folder(folder / name, model.config, model.state_dict(), tokenizer)
    return folder / name


def save_adapter_of(base: Path, folder: Path, seed: int, tokenizer: Tokenizer | None = None, **fields: Any) -> Path:
    """An adapter folder over a model folder, whose additions matter."""
    config = LoraConfig(**{"rank": 4, "alpha": 6.0, **fields})
    model, _ = load_model_folder(base)
    save_adapter(folder, model.config, config, add_random_lora(model, config, seed), str(base), tokenizer)
    return folder


def describe(config: ServeConfig, loaded: LoadedModel) -> Served:
    """A model as requests see it."""
    model, tokenizer = loaded.model.config, loaded.tokenizer
    return describe_model(config, "tiny", loaded.folder, model, tokenizer, loaded.stop_tokens)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Server]:
    """Serve a model folder for the block, and the models and adapters that the options name."""
    config = ServeConfig(str(folder), port=0, **options)
    first: list[LoadedModel] = []

    def make(config: ServeConfig, loaded: LoadedModel, adapters: RowAdapters | None) -> Worker:
        if not first:
            first.append(loaded)
        return make_worker(config, loaded, adapters)

    models = ModelFolders(config, make)
    registry = make_registry(config, models, [models.look(name) for name in models.names])
    server = make_server(config, registry, models, access_to(config), operations_of(config))
    listener = bound_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30, limits=httpx.Limits(max_connections=None)) as client:
            yield Server(url, first[0], registry.worker, client, server)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


@contextmanager
def held(model: torch.nn.Module, fail: bool = False, after: int = 0) -> Iterator[Callable[[], None]]:
    """The engine stands still after so many calls of the model until the block ends, or what it is given is called;
    then it goes on, or fails once."""
    gate = threading.Event()
    calls = 0

    def wait(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls <= after:
            return
        handle.remove()
        assert gate.wait(90)  # longer than `wait_until`, so that what does not come is not taken for a failure
        if fail:
            raise RuntimeError("broken on purpose")

    handle = model.register_forward_pre_hook(wait)
    try:
        yield gate.set
    finally:
        gate.set()


def no_end(server: Server) -> dict[str, int]:
    """A logit bias that keeps a text from ending before its limit."""
    ends = {*server.loaded.stop_tokens, *ChatFormat(server.tokenizer).stop_ids}
    return {str(token): -100 for token in ends}
