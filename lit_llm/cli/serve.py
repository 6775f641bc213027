"""Serving a model over HTTP. Heavy libraries are imported only once the options are right."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.config import ServeConfig, UserError
from lit_llm.stages.loading import LoadedModel, load, tell_begin_token

if TYPE_CHECKING:
    from lit_llm.serving.draining import DrainingServer
    from lit_llm.serving.gate import Access
    from lit_llm.serving.operations import Operations
    from lit_llm.serving.served_model import Served
    from lit_llm.serving.worker import Worker

KEY_VARIABLE = "LIT_LLM_API_KEY"
"""Environment variable that holds the key which requests must bring."""


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; what runs then is finished, for as long as the configuration says.

    Raises:
        UserError: the extra `serve` is not installed, the port is taken, the model cannot be used as asked, or the
            engine fails and cannot be started again.
    """
    for package in ("fastapi", "uvicorn"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise UserError(
                f"serving needs the package {package}; install it with: pip install 'lit-llm[serve]'"
            ) from None
    access, operations = access_to(config), operations_of(config)
    with bound_socket(config.host, config.port) as listener:  # before the model is read, which takes longer
        loaded = load(config, compile=config.compile)
        tell_begin_token(config, loaded.tokenizer)
        served = describe(config, loaded)
        worker = make_worker(config, loaded)
        if config.compile:
            print("compiling the model; this takes some minutes", file=sys.stderr)
        worker.start()
        line = _said_at_start(config, loaded, served, listener)
        server = make_server(config, served, worker, access, operations, lambda: print(line, flush=True))
        _run(server, worker, listener)
    if server.failure is not None:
        raise _cannot_listen(config.host, config.port, server.failure)
    if worker.failure is not None:
        raise UserError(f"the engine failed and could not be started again: {worker.failure}")


def access_to(config: ServeConfig) -> Access:
    """Return what is asked of requests: the key, the host names, the number at once and the time to arrive.

    Raises:
        UserError: the file or the environment variable of the key has none.
    """
    from lit_llm.serving.gate import Access
    from lit_llm.serving.keys import Key, Keys

    most = config.max_per_client or config.max_batch + (config.max_waiting + 1) // 2
    if config.keys_file is not None:
        keys: Keys | None = Keys.from_file(config.keys_file)
    else:
        secret = _api_key(config)
        keys = None if secret is None else Keys([Key.of("api_key", secret)])
    return Access.to(
        config.host,
        config.allowed_hosts,
        keys=keys,
        most_at_once=most,
        read_timeout=config.read_timeout,
    )


def operations_of(config: ServeConfig) -> Operations:
    """Return what records requests and ends some of them early.

    Raises:
        UserError: the log cannot be written.
    """
    from lit_llm.serving.operations import Operations, TimeLimits
    from lit_llm.serving.request_log import RequestLog

    log = None if config.request_log is None else RequestLog(config.request_log)
    return Operations(TimeLimits(config.queue_timeout, config.request_timeout), log, config.log_texts)


def _api_key(config: ServeConfig) -> str | None:
    """Return the key from the options, or else from the environment; None where neither has one."""
    if config.api_key_file is not None:
        key, source = _read_key(Path(config.api_key_file)), config.api_key_file
    elif config.api_key is not None:
        key, source = config.api_key, "api_key"
    elif KEY_VARIABLE in os.environ:
        key, source = os.environ[KEY_VARIABLE], KEY_VARIABLE
    else:
        return None
    if not key or key != key.strip() or not key.isprintable():
        raise UserError(f"{source} has no key; a key is some letters, digits and signs on one line")
    return key


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the key cannot be read ({error})") from None


def describe(config: ServeConfig, loaded: LoadedModel) -> Served:
    """Return the model's name, tokenizer and limits, as requests are to see them.

    Raises:
        UserError: `max_length` is more than the model's context.
    """
    from lit_llm.interop import read_quantization
    from lit_llm.interop.peft import base_of
    from lit_llm.serving.served_model import Served

    context = loaded.model.config.max_position_embeddings
    if config.max_length is not None and config.max_length > context:
        raise UserError(f"max_length is {config.max_length}; the model's context is {context} tokens")
    stored = read_quantization(base_of(loaded.folder) or loaded.folder)
    folder = loaded.folder.resolve()
    return Served(
        config.name or (folder.parent.name if folder.name == "model" else folder.name),
        loaded.tokenizer,
        loaded.model.config.vocab_size or 0,
        config.max_length or context,
        loaded.stop_tokens,
        default_max_tokens=config.default_max_tokens,
        begin_token=config.begin_token,
        quantize=stored if config.quantize == "none" else config.quantize,
    )


def make_worker(config: ServeConfig, loaded: LoadedModel) -> Worker:
    """Return the thread that is going to write the texts; it is not started yet.

    Raises:
        UserError: the prefix cache cannot be had.
    """
    from lit_llm.generation import Engine
    from lit_llm.serving.worker import Worker
    from lit_llm.stages.prefix_cache import make_prefix_cache

    context = config.max_length or loaded.model.config.max_position_embeddings
    prefix_cache = make_prefix_cache(loaded.model, config.prefix_cache_mib, 16 * config.max_batch * context)

    def engine() -> Engine:
        return Engine(
            loaded.model,
            config.max_batch,
            config.max_length,
            tokenizer=loaded.tokenizer,
            prefill_chunk=config.prefill_chunk,
            compile=config.compile,
            prefix_cache=prefix_cache,
        )

    # compiled functions are for 1, 2, 4, ... rows
    rows = [1 << power for power in range((config.max_batch - 1).bit_length())] + [config.max_batch]
    rows = rows if config.compile else []
    return Worker(engine, config.max_batch, config.max_waiting, warm_up=rows, prefix_cache=prefix_cache)


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that has taken the port but does not listen yet.

    Raises:
        UserError: the address is not there, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
    return UserError(f"cannot listen on {host}, port {port}: {reason}; choose another port or host")


def _said_at_start(config: ServeConfig, loaded: LoadedModel, served: Served, listener: socket.socket) -> str:
    from lit_llm.planning.counting import count_parameters

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    url = f"http://[{host}]" if ":" in host else f"http://{host}"
    url += f":{listener.getsockname()[1]}"
    millions = count_parameters(loaded.model.config) / 1e6
    quantized = f"quantized to {served.quantize}" if served.quantize else "not quantized"
    return (
        f"{url}/v1 serves {served.name} ({millions:.1f}M parameters, {quantized}, context {served.context_length}, "
        f"{loaded.device}); chat page: {url}/"
    )


def make_server(
    config: ServeConfig,
    served: Served,
    worker: Worker,
    access: Access,
    operations: Operations,
    on_start: Callable[[], None] = lambda: None,
) -> DrainingServer:
    """Return the server of a worker that has been started; it calls `on_start` once it takes requests."""
    from lit_llm.serving.app import create_app
    from lit_llm.serving.connections import server_config
    from lit_llm.serving.draining import DrainingServer

    app = create_app(served, worker, access, operations)
    uvicorns = server_config(app, config.read_timeout, config.write_timeout)
    server = DrainingServer(uvicorns, operations, app.state.preparation, worker, config.drain_timeout, on_start)

    def end() -> None:
        server.should_exit = True

    worker.on_failure = end
    return server


def _run(server: DrainingServer, worker: Worker, listener: socket.socket) -> None:
    # uvicorn would end the process by the signal that it had; by then there is nothing left to do
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
