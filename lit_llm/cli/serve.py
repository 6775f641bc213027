"""Serving a model over HTTP. Heavy libraries are imported only once the options are right."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.cli.serve_models import ModelFolders
from lit_llm.config import ServeConfig, UserError
from lit_llm.stages.loading import LoadedModel, device_of, find_model, tell_begin_token

if TYPE_CHECKING:
    from lit_llm.model.adapters import RowAdapters
    from lit_llm.serving.draining import DrainingServer
    from lit_llm.serving.gate import Access
    from lit_llm.serving.operations import Operations
    from lit_llm.serving.registry import ModelGroup, Registry
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
        models = ModelFolders(config, make_worker)
        with _ended_at_once():
            groups = [models.look(name) for name in models.names]
            tell_begin_token(config, next(iter(groups[0].served.values())).tokenizer)
            if config.compile:
                print("compiling the model: some minutes, or seconds if it was compiled before", file=sys.stderr)
            registry = make_registry(config, models, groups)
        line = _said_at_start(config, groups, listener)

        def started() -> None:
            read_anew_on_hangup(registry)
            print(line, flush=True)

        server = make_server(config, registry, models, access, operations, started)
        _run(server, listener)
    if server.failure is not None:
        raise _cannot_listen(config.host, config.port, server.failure)
    failure = registry.worker.failure
    if failure is not None:
        raise UserError(f"the engine failed and could not be started again: {failure}")


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """End the process on an interrupt without taking Python down, which aborts while another thread is inside torch."""
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)


def make_registry(config: ServeConfig, models: ModelFolders, groups: Sequence[ModelGroup]) -> Registry:
    """Return what finds the model of a request, with the first model in memory.

    Raises:
        UserError: a model alone takes more memory than `max_models_gib`, or the first one cannot be read.
    """
    from lit_llm.serving.registry import Registry

    room = None if config.max_models_gib is None else config.max_models_gib * 2**30
    for group in groups[1:]:
        if room is not None and group.nbytes > room:
            raise UserError(
                f"{group.name} takes {group.nbytes / 2**30:.2f} GiB, and max_models_gib is {config.max_models_gib}; "
                "raise it, or lower max_batch or max_length"
            )
    first = models.load(groups[0])
    return Registry(groups, first, models.load, models.look, most=config.max_models, most_bytes=room)


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


def make_worker(config: ServeConfig, loaded: LoadedModel, adapters: RowAdapters | None = None) -> Worker:
    """Return the thread that is going to write the texts, with these adapters as well; it is not started yet.

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
            adapters=adapters,
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


def _said_at_start(config: ServeConfig, groups: Sequence[ModelGroup], listener: socket.socket) -> str:
    from lit_llm.interop import read_model_config
    from lit_llm.planning.counting import count_parameters

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    url = f"http://[{host}]" if ":" in host else f"http://{host}"
    url += f":{listener.getsockname()[1]}"
    served = groups[0].served[groups[0].name]
    millions = count_parameters(read_model_config(find_model(config.model))) / 1e6
    quantized = f"quantized to {served.quantize}" if served.quantize else "not quantized"
    line = (
        f"{url}/v1 serves {served.name} ({millions:.1f}M parameters, {quantized}, context {served.context_length}, "
        f"{device_of(config)}); chat page: {url}/"
    )
    more = [f"{group.name} (loaded when it is asked for)" for group in groups[1:]]
    more += [
        f"{each.name} (adapter of {each.parent})" for group in groups for each in group.served.values() if each.parent
    ]
    return f"{line}; and also {', '.join(more)}" if more else line


def make_server(
    config: ServeConfig,
    registry: Registry,
    models: ModelFolders,
    access: Access,
    operations: Operations,
    on_start: Callable[[], None] = lambda: None,
) -> DrainingServer:
    """Return the server of some models, the first of which is in memory; it calls `on_start` once it takes requests."""
    from lit_llm.serving.app import create_app
    from lit_llm.serving.connections import server_config
    from lit_llm.serving.draining import DrainingServer

    app = create_app(registry, access, operations)
    uvicorns = server_config(app, config.read_timeout, config.write_timeout)
    server = DrainingServer(uvicorns, operations, registry, config.drain_timeout, on_start)

    def end() -> None:
        server.should_exit = True

    def end_with_first(name: str, worker: Worker) -> None:
        if name == models.names[0]:
            worker.on_failure = end

    registry.worker.on_failure = end
    models.on_loaded = end_with_first
    return server


def _run(server: DrainingServer, listener: socket.socket) -> None:
    def end(*_: object) -> None:
        server.should_exit = True

    # for signals until uvicorn takes them; and it raises those that it had again, when there is nothing left to end
    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def read_anew_on_hangup(registry: Registry) -> None:
    """Have SIGHUP make the running event loop look at every model folder again, where a system has that signal."""
    if not hasattr(signal, "SIGHUP"):
        return
    loop, running = asyncio.get_running_loop(), set()

    def reload() -> None:
        task = loop.create_task(registry.reload())
        running.add(task)  # the loop itself would forget it
        task.add_done_callback(running.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
