"""Several models and adapters on one server: who answers, what makes room, and folders that change."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from chat_rows import letter_tokenizer
from serving_models import Server, held, save_adapter_of, save_tiny, serving

from lit_llm.cli.serve import make_registry, make_worker
from lit_llm.cli.serve_models import ModelFolders
from lit_llm.config import SamplingConfig, ServeConfig, UserError
from lit_llm.generation import complete
from lit_llm.interop import load_model_folder, stop_token_ids
from lit_llm.model import Decoder
from lit_llm.model.adapters import RowAdapters
from lit_llm.serving.errors import ApiError
from lit_llm.serving.protocol import CompletionRequest
from lit_llm.serving.registry import Registry, Use
from lit_llm.serving.responses import CompletionAnswer
from lit_llm.serving.worker import Worker
from lit_llm.stages.loading import LoadedModel
from lit_llm.tokenizer import train_bpe


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model "tiny", two adapters over it, and another model. Not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny(folder)
    return {
        "tiny": base,
        "polite": save_adapter_of(base, folder / "run" / "adapter", 1),
        "terse": save_adapter_of(base, folder / "terse", 2, rank=2, dora=True, targets=["q_proj", "down_proj"]),
        "other": save_tiny(folder, name="other", seed=5),
    }


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    adapters = {"polite": str(folders["polite"].parent), "terse": str(folders["terse"])}  # a run's, and a folder
    with serving(folders["tiny"], adapters=adapters, models={"other": str(folders["other"])}, max_batch=12) as server:
        yield server


def alone(folder: Path, ids: list[int], tokens: int) -> list[int]:
    """What the model of a folder writes by itself; an adapter folder is merged into its base."""
    model, tokenizer = load_model_folder(folder)
    greedy = SamplingConfig(max_new_tokens=tokens, temperature=0.0)
    return complete(model, [ids], greedy, stop_tokens=stop_token_ids(folder, tokenizer))[0].ids


def ask_for_ids(server: Server, name: str, prompt: list[int], tokens: int) -> list[int]:
    """The ids of a greedy answer, by the spelling of its tokens."""
    body = server.ask("text", model=name, prompt=prompt, temperature=0, max_tokens=tokens, logprobs=0)
    assert body["model"] == name
    spelling = CompletionAnswer(name, server.tokenizer, 0)._spelled
    ids = {spelling(index): index for index in range(server.tokenizer.vocab_size)}
    return [ids[token] for token in body["choices"][0]["logprobs"]["tokens"]]


def test_adapters_and_their_base_answer_together_as_each_alone(server: Server, folders: dict[str, Path]) -> None:
    """16 clients at once, 12 in one batch with the three in turn, and 4 that wait; prompts of different lengths, and
    some that begin alike."""
    names = ["tiny", "polite", "terse"]
    prompts = [[70 + number // 3] * (20 + number) for number in range(16)]
    before = server.worker.steps
    with ThreadPoolExecutor(16) as pool, held(server.loaded.model):
        asked = [
            pool.submit(ask_for_ids, server, names[number % 3], prompt, 15) for number, prompt in enumerate(prompts)
        ]
        server.wait_for(12, 4)
    found = [request.result() for request in asked]
    assert found == [alone(folders[names[number % 3]], prompt, 15) for number, prompt in enumerate(prompts)]
    assert len(set(map(tuple, found[:3]))) == 3, "the adapters change what is written"
    assert server.worker.steps - before < 16 * 15 / 3, "they were written together"


def test_names_are_listed_and_an_unknown_one_is_refused_with_them(server: Server) -> None:
    told = {each["id"]: each for each in server.client.get("/v1/models").json()["data"]}
    assert list(told) == ["tiny", "polite", "terse", "other"]
    assert [told[name]["parent"] for name in told] == [None, "tiny", "tiny", None]
    assert server.client.get("/v1/models/terse").json()["id"] == "terse"
    for response in (server.post("text", model="gpt-9", prompt="b"), server.client.get("/v1/models/gpt-9")):
        error = response.json()["error"]
        assert response.status_code == 404 and error["code"] == "model_not_found" and error["param"] == "model"
        assert error["message"] == ("there is no model 'gpt-9' here; the models are 'tiny', 'polite', 'terse', 'other'")


def test_a_model_is_loaded_when_it_is_first_asked_for(server: Server, folders: dict[str, Path]) -> None:
    assert server.client.get("/v1/models/tiny").json()["loaded"]
    assert not server.client.get("/v1/models/other").json()["loaded"]
    with ThreadPoolExecutor(3) as pool:  # it is loaded once for all of them
        asked = [pool.submit(ask_for_ids, server, "other", [70] * 5, 9) for _ in range(3)]
    assert [request.result() for request in asked] == [alone(folders["other"], [70] * 5, 9)] * 3
    assert server.client.get("/v1/models/other").json()["loaded"]
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    counts = re.findall(r'lit_llm_batch_size_sum\{model="(.*)"\} (.*)', server.client.get("/metrics").text)
    assert float(dict(counts)["other"]) == 3 * 9  # each text of a step writes a token


def made(config: ServeConfig, watch: Callable[[Decoder], None] = lambda model: None) -> tuple[ModelFolders, Registry]:
    def make(config: ServeConfig, loaded: LoadedModel, adapters: RowAdapters | None) -> Worker:
        watch(loaded.model)
        return make_worker(config, loaded, adapters)

    models = ModelFolders(config, make)
    return models, make_registry(config, models, [models.look(name) for name in models.names])


async def written(use: Use, tokens: int = 8) -> list[int]:
    """The ids of a text by a model that is in use."""
    ask = CompletionRequest(model=use.served.name, prompt=[70] * 5, temperature=0, max_tokens=tokens)
    job = use.worker.submit(await use.preparation.texts(ask))
    return [event.token async for _, event in job.events() if event.token is not None]


def test_the_model_not_asked_for_the_longest_makes_room(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its memory is given back; one in use stays, and who asks for another then is told so."""
    models = {"one": str(folders["other"]), "two": str(save_tiny(tmp_path, name="two", seed=6))}
    models["three"] = str(save_tiny(tmp_path, name="three", seed=7))
    config = ServeConfig(str(folders["tiny"]), models=models, max_models=2, max_batch=2)
    seen: list[weakref.ref[Decoder]] = []
    _, registry = made(config, lambda model: seen.append(weakref.ref(model)))

    def there() -> list[str]:
        return [each["id"] for each in registry.descriptions() if each["loaded"]]

    async def ask() -> None:
        for name in ("one", "two", "one"):
            use = await registry.use(name)
            assert await written(use) == alone(Path(models[name]), [70] * 5, 8)
            use.release()
        assert there() == ["tiny", "one", "two"] and len(seen) == 3
        (await registry.use("three")).release()  # "two" was asked for before "one" was
        assert there() == ["tiny", "one", "three"]
        del use
        gc.collect()
        assert [model() is not None for model in seen] == [True, True, False, True]
        first, second = await registry.use("one"), await registry.use("three")
        with pytest.raises(ApiError, match="there is no room for two while these are in use: one, three") as refused:
            await registry.use("two")
        assert refused.value.status == 503
        assert await written(first) == alone(folders["other"], [70] * 5, 8)
        second.release()
        second.release()  # twice is once
        (await registry.use("two")).release()
        assert there() == ["tiny", "one", "two"]
        first.release()
        await registry.close()

    asyncio.run(ask())


def test_models_make_room_by_their_memory(folders: dict[str, Path]) -> None:
    models = {"one": str(folders["other"]), "two": str(folders["other"])}
    config = ServeConfig(str(folders["tiny"]), models=models, max_models=5, max_batch=2)
    size = ModelFolders(config, make_worker).look("one").nbytes / 2**30
    with pytest.raises(UserError, match=r"one takes 0.00 GiB, and max_models_gib is 1e-06; raise it"):
        made(ServeConfig(str(folders["tiny"]), models=models, max_batch=2, max_models_gib=1e-6))

    async def loaded(registry: Registry) -> list[bool]:
        for name in models:
            (await registry.use(name)).release()
        await registry.close()
        return [registry.description(name)["loaded"] for name in models]

    for room, expected in ((1.5 * size, [False, True]), (2.5 * size, [True, True])):
        config = ServeConfig(str(folders["tiny"]), models=models, max_models=5, max_batch=2, max_models_gib=room)
        _, registry = made(config)
        assert asyncio.run(loaded(registry)) == expected


def overwrite(target: Path, source: Path) -> None:
    """Change the bytes of a file where they lie, as a copy over it does."""
    with target.open("r+b") as file:
        file.write(source.read_bytes())


def test_a_folder_that_changes_under_the_server(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in memory answers as before, even while another takes its place; what is not is refused until it is read
    anew; what cannot be read stays as it was."""
    first, second = (Path(shutil.copytree(folders["tiny"], tmp_path / name)) for name in ("first", "second"))
    adapter = save_adapter_of(first, tmp_path / "polite", 1)
    old = {"first": alone(first, [70] * 5, 8), "polite": alone(adapter, [70] * 5, 8)}
    other = alone(folders["other"], [70] * 5, 8)
    config = ServeConfig(str(first), models={"second": str(second)}, adapters={"polite": str(adapter)}, max_batch=2)
    _, registry = made(config)

    async def says(name: str) -> list[int]:
        use = await registry.use(name)
        try:
            return await written(use)
        finally:
            use.release()

    async def ask() -> None:
        for folder in (first, second):
            overwrite(folder / "model.safetensors", folders["other"] / "model.safetensors")
        assert await says("first") == old["first"] and await says("polite") == old["polite"]
        with pytest.raises(ApiError, match="the files of second have changed since the server looked") as changed:
            await registry.use("second")
        assert changed.value.status == 503
        held_on = await registry.use("first")
        (second / "config.json").write_text("{")
        (second / "gone.json").symlink_to(tmp_path / "nowhere")
        await registry.reload()
        assert caplog.messages[0] == "first has been read anew"
        refused, _, reason = caplog.messages[1].partition("; requests for it are refused: ")
        assert refused == "second is not in memory and cannot be read" and "config.json" in reason
        assert await says("first") == other and await written(held_on) == old["first"]
        held_on.release()
        assert await says("polite") == alone(adapter, [70] * 5, 8) != old["polite"]
        with pytest.raises(ApiError, match="the files of second have changed"):
            await registry.use("second")
        shutil.copy(folders["other"] / "config.json", second)
        await registry.reload()
        assert await says("second") == other
        await registry.close()

    asyncio.run(ask())
    assert len(registry.running) == 2, "the old one has ended"


def test_an_adapter_that_turns_to_another_base_is_told(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, other = folders["tiny"], folders["other"]
    adapter = save_adapter_of(base, tmp_path / "turns", 1)
    _, registry = made(ServeConfig(str(base), models={"other": str(other)}, adapters={"turns": str(adapter)}))

    async def ask() -> None:
        save_adapter_of(other, adapter, 1)
        await registry.reload()
        await registry.close()

    asyncio.run(ask())
    assert caplog.messages == [
        f"tiny stays as it was: adapter turns ({adapter}) is for {other} by now, not for tiny ({base}); "
        "start the server anew"
    ]


def test_a_model_that_cannot_be_loaded_is_told_and_the_others_go_on(
    folders: dict[str, Path],
) -> None:
    config = ServeConfig(str(folders["tiny"]), models={"other": str(folders["other"])}, max_batch=2)

    def fail(model: Decoder) -> None:
        if broken:
            raise MemoryError("no room")

    broken: list[int] = []
    _, registry = made(config, fail)

    async def ask() -> None:
        broken.append(1)
        with pytest.raises(ApiError, match="other cannot be loaded now; the server's log says why"):
            await registry.use("other")
        use = await registry.use("tiny")
        assert await written(use) == alone(folders["tiny"], [70] * 5, 8)
        use.release()
        broken.clear()
        (await registry.use("other")).release()
        await registry.close()
        with pytest.raises(ApiError, match="the server is ending"):
            await registry.use("other")

    asyncio.run(ask())


def refuses(config: ServeConfig) -> str:
    with pytest.raises(UserError) as refused:
        made(config)
    return str(refused.value)


def test_what_does_not_fit_is_refused_at_the_start(folders: dict[str, Path], tmp_path: Path) -> None:
    """In one line that names both."""
    base, foreign = str(folders["tiny"]), save_adapter_of(folders["other"], tmp_path / "foreign", 3)

    def refused(**adapters: Path | str) -> str:
        return refuses(ServeConfig(base, adapters={name: str(folder) for name, folder in adapters.items()}))

    message = refused(foreign=foreign)
    assert message == (
        f"adapter foreign ({foreign}) is for {folders['other']}, which is none of the models served: tiny ({base})"
    )
    assert refused(x=folders["other"]) == (
        f"adapter x: {folders['other']} is no adapter folder; it has no adapter_config.json"
    )
    damaged = Path(shutil.copytree(folders["polite"], tmp_path / "damaged"))
    weights = (damaged / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").write_bytes(weights[:-100])
    message = refused(damaged=damaged)
    assert message.startswith(f"adapter damaged of tiny ({base}): {damaged}/adapter_model.safetensors cannot be read")
    (damaged / "adapter_model.safetensors").write_bytes(weights)
    config = (damaged / "adapter_config.json").read_text()
    (damaged / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 3'))
    assert "it has another shape for" in refused(damaged=damaged) and str(damaged) in refused(damaged=damaged)
    assert refused(tiny=folders["polite"]) == (
        f"a model and an adapter are called tiny: {base} and {folders['polite']}; rename one"
    )
    assert refuses(ServeConfig(base, models={"tiny": "elsewhere"})) == (
        f"two models are called tiny: {base} and elsewhere; give one another name"
    )
    assert "nowhere is not a model folder" in refuses(ServeConfig(base, models={"x": "nowhere"}))


def test_an_adapter_with_a_tokenizer_of_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its chat template and ends count for its texts; another vocabulary is refused. Its base may be a copy."""
    copy = Path(shutil.copytree(folders["tiny"], tmp_path / "copy"))
    adapter = save_adapter_of(copy, tmp_path / "own", 1, letter_tokenizer())
    for file in adapter.glob("tokenizer_config.json"):
        template = {"chat_template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"}
        file.write_text(json.dumps({**json.loads(file.read_text()), **template}))
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    with serving(folders["tiny"], adapters={"own": str(adapter)}) as server:
        body = server.ask("chat", model="own", messages=[{"role": "user", "content": "bcd"}], max_tokens=9)
        assert body["usage"]["prompt_tokens"] < len(server.ids("chat", "bcd"))
    different = train_bpe(["another text altogether"] * 4, vocab_size=271, show_progress=False)
    adapter = save_adapter_of(copy, tmp_path / "different", 1, different)
    message = refuses(ServeConfig(str(folders["tiny"]), adapters={"x": str(adapter)}))
    assert message.startswith(f"adapter x ({adapter}) is for another vocabulary than its base: token ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": {"": "x"}}, "models has '': 'x'; give a name on one line and a folder"),
        ({"adapters": {"a\nb": "x"}}, "adapters has"),
        ({"models": {"a": "x"}, "adapters": {"a": "y"}}, "a model and an adapter are called a: x and y"),
        ({"models": {"a": "x"}, "max_models": 0}, "max_models is 0"),
        ({"models": {"a": "x"}, "max_models_gib": 0.0}, "max_models_gib is 0.0"),
        ({"max_models": 2}, "max_models and max_models_gib are for models"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServeConfig(**options)
