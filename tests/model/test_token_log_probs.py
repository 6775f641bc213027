"""How likely a model finds given tokens, against log-softmax of its logits."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens

from lit_llm.model import Decoder, token_log_probs
from lit_llm.model.quantization import quantize
from lit_llm.objectives import IGNORE_INDEX


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_decoder(tiny_model(logits_softcap=5.0, tie_word_embeddings=False))


def plain(model: Decoder, tokens: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of the targets [b, t] from all logits at once."""
    log_probs = (model(tokens).float() / temperature).log_softmax(-1)
    chosen = log_probs.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return torch.where(targets == IGNORE_INDEX, 0.0, chosen)


def test_of_the_next_token(model: Decoder) -> None:
    tokens = random_tokens(model.config, 2, 12)
    found = token_log_probs(model, tokens)
    shifted = torch.cat([tokens[:, 1:], torch.full((2, 1), IGNORE_INDEX)], dim=1)
    assert found.log_probs.shape == (2, 12) and found.entropy is None and found.likeliest is None
    torch.testing.assert_close(found.log_probs, plain(model, tokens, shifted))
    assert not found.log_probs[:, -1].any() and found.log_probs[:, :-1].lt(0).all()


@pytest.mark.parametrize("chunk_tokens", [None, 7])
@pytest.mark.parametrize("kind", ["none", "int8"])
def test_everything_about_given_targets(kind: str, chunk_tokens: int | None, model: Decoder) -> None:
    """Also of a head that is quantized, which has no weight to multiply with."""
    decoder = model if kind == "none" else quantize(copy.deepcopy(model), kind)
    tokens = random_tokens(model.config, 3, 20)
    with torch.no_grad():
        logits = decoder(tokens)
    targets = random_tokens(model.config, 3, 20, seed=2)
    targets[:, ::2] = logits.argmax(-1)[:, ::2]
    targets[:, ::3] = IGNORE_INDEX
    scored = targets != IGNORE_INDEX
    with torch.no_grad():
        found = token_log_probs(
            decoder, tokens, targets, temperature=0.7, chunk_tokens=chunk_tokens, with_entropy=True, with_likeliest=True
        )
        torch.testing.assert_close(found.log_probs, plain(decoder, tokens, targets, 0.7))
    entropy = torch.distributions.Categorical(logits=logits.float() / 0.7).entropy()
    torch.testing.assert_close(found.entropy, torch.where(scored, entropy, 0.0))
    assert torch.equal(found.likeliest, scored & (logits.argmax(-1) == targets))
    assert 5 < int(found.likeliest.sum()) < int(scored.sum())


def test_gradients_and_documents(model: Decoder) -> None:
    decoder = copy.deepcopy(model)
    tokens = random_tokens(model.config, 1, 10)
    documents = torch.tensor([[0] * 4 + [1] * 6])
    packed = token_log_probs(decoder, tokens, document_ids=documents, chunk_tokens=3).log_probs
    torch.testing.assert_close(packed[:, 4:], token_log_probs(decoder, tokens[:, 4:]).log_probs)
    found = torch.autograd.grad(token_log_probs(decoder, tokens).log_probs.sum(), list(decoder.parameters()))
    targets = torch.cat([tokens[:, 1:], torch.full((1, 1), IGNORE_INDEX)], dim=1)
    wanted = torch.autograd.grad(plain(decoder, tokens, targets).sum(), list(decoder.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_targets_of_another_shape(model: Decoder) -> None:
    tokens = random_tokens(model.config, 1, 4)
    with pytest.raises(ValueError, match="one shape"):
        token_log_probs(model, tokens, tokens[:, 1:])
