"""Models of transformers in memory as decoders of ours."""

from __future__ import annotations

import pytest
import torch
from random_decoder import largest_difference

from lit_llm.config import UserError
from lit_llm.interop import decoder_from_transformers
from lit_llm.model import last_scores

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "gpt2": lambda **more: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, **more
    ),
    "llama": lambda **more: transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64, **more
    ),
}


def build(kind: str, head: str = "AutoModelForCausalLM", **more):
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(CONFIGS[kind](**more)).eval()
    with torch.no_grad():  # large enough weights, and biases, that each of them matters
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_the_same_and_nothing_is_shared(kind: str) -> None:
    theirs = build(kind)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    decoder = decoder_from_transformers(theirs)
    tokens = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, decoder(tokens)
    assert largest_difference(found, expected) < 1e-5 * float(expected.abs().max())
    assert not decoder.training and decoder.config.tie_word_embeddings == (kind == "gpt2")
    # it can be trained, and the other stays as it is
    decoder(tokens).logsumexp(-1).sum().backward()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.sub_(0.1 * parameter.grad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())


def test_scores_and_another_type() -> None:
    theirs = build("llama", "AutoModelForSequenceClassification", num_labels=1, pad_token_id=96)
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    decoder = decoder_from_transformers(theirs)
    with torch.no_grad():
        found = decoder(tokens, head=lambda hidden, head: last_scores(hidden, head, torch.tensor([12, 12])))
        torch.testing.assert_close(found, theirs(tokens).logits[:, 0], rtol=1e-4, atol=1e-4)
    assert {p.dtype for p in decoder_from_transformers(theirs, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_what_cannot_be_read() -> None:
    with pytest.raises(UserError, match="GPT2Model in memory has another head"):
        decoder_from_transformers(build("gpt2", "AutoModel"))
    with pytest.raises(UserError, match=r"LlamaForCausalLM in memory: .*hidden_act"):
        decoder_from_transformers(build("llama", hidden_act="tanh"))
    other = transformers.OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32
    )
    with pytest.raises(UserError, match="OPTForCausalLM in memory is of type opt; only gpt2, llama"):
        decoder_from_transformers(transformers.AutoModelForCausalLM.from_config(other))
    broken = build("llama")
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"model\.norm\.weight holds NaN"):
        decoder_from_transformers(broken)
