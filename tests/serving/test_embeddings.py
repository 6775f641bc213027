"""/v1/embeddings: the hidden states of transformers, pooled; no text depends on the others."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import CONTEXT, Server, save_adapter_of, save_tiny, serving

from lit_llm.generation.embeddings import MOST_TOKENS, passes
from lit_llm.interop import load_model_folder

INPUTS = ["bcdfgh", "k", [70, 71, 72, 73, 74], "jj" * 40, "ghj"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = save_tiny(tmp_path_factory.mktemp("embedding"))
    return {"tiny": base, "adapted": save_adapter_of(base, base.parent / "adapted", 1)}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    with serving(folders["tiny"], adapters={"adapted": str(folders["adapted"])}, max_batch=3) as server:
        yield server


def vectors(server: Server, **options: Any) -> torch.Tensor:
    body = server.ask("vector", **options)
    assert body["object"] == "list" and {each["object"] for each in body["data"]} == {"embedding"}
    return torch.tensor([each["embedding"] for each in body["data"]])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_they_are_the_hidden_states_of_transformers(server: Server, folders: dict[str, Path], pooling: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["tiny"]).eval()
    expected = []
    for text in INPUTS:
        ids = server.ids("text", text)
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        expected.append(hidden.mean(0) if pooling == "mean" else hidden[-1])
    raw = vectors(server, input=INPUTS, pooling=pooling, normalize=False)
    torch.testing.assert_close(raw, torch.stack(expected), rtol=1e-4, atol=1e-4)
    unit = vectors(server, input=INPUTS, pooling=pooling)
    torch.testing.assert_close(unit, F.normalize(torch.stack(expected), dim=-1), rtol=1e-4, atol=1e-5)


def test_an_adapter_has_vectors_of_its_own(server: Server, folders: dict[str, Path]) -> None:
    merged, _ = load_model_folder(folders["adapted"])
    ids = server.ids("text", "bcd")
    with torch.no_grad():
        hidden = merged(torch.tensor([ids]), head=lambda hidden, head: hidden)[0]
    found = vectors(server, model="adapted", input="bcd", pooling="last", normalize=False)
    torch.testing.assert_close(found[0], hidden[-1], rtol=1e-4, atol=1e-4)
    base = vectors(server, model="tiny", input="bcd", pooling="last", normalize=False)
    assert float((base - found).abs().max()) > 0.01


def test_their_form_and_count(server: Server) -> None:
    body = server.ask("vector", input="bcd", encoding_format="base64")
    (packed,) = [base64.b64decode(each["embedding"]) for each in body["data"]]
    plain = vectors(server, input="bcd")
    assert (
        len(packed) == 4 * 32 and torch.frombuffer(bytearray(packed), dtype=torch.float32).tolist() == plain[0].tolist()
    )
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4} and body["model"] == "tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "k" * CONTEXT}, "tokens, and the context of 160 tokens cannot hold them"),
        ({"input": []}, "input must be a text, a list of texts"),
        ({"input": ""}, "a text of input is empty, and has no vector"),
        ({"input": ["b", ""]}, "a text of input is empty, and has no vector"),
        ({"input": ["b", 3]}, "input must be a text, a list of texts"),
        ({"input": ["b"] * 1025}, "1025 inputs are more than 1024 texts"),
        ({"input": [[999]]}, "input has the token id 999, which is not in the vocabulary of 271"),
        ({"input": "b", "dimensions": 31}, "dimensions is 31; vectors of tiny have 32, and are not shortened"),
        ({"input": "b", "encoding_format": "int8"}, "encoding_format is 'int8'"),
        ({"input": "b", "pooling": "max"}, "pooling is 'max'"),
        ({"input": "b", "top_k": 3}, "there is no option top_k here"),
    ],
)
def test_what_is_refused(server: Server, options: dict[str, Any], message: str) -> None:
    response = server.post("vector", **options)
    assert response.status_code == 400 and message in response.json()["error"]["message"]
    fits = server.post("vector", input="k" * (CONTEXT - 1))  # and the begin token
    assert fits.status_code == 200


def test_texts_of_like_lengths_are_read_together() -> None:
    assert [*passes([5, 900, 5, 4, 1000, 6], 2)] == [[3, 0], [2, 5], [1, 4]]
    assert [*passes([3000, 3000, 20], 8)] == [[2], [0], [1]]
    assert [*passes([MOST_TOKENS + 1], 8)] == [[0]]
