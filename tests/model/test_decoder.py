"""The decoder as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from published import PUBLISHED
from random_decoder import largest_difference, random_decoder, random_tokens
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_llm.config import PRESETS, DataConfig, ModelConfig, PretrainConfig, UserError, preset
from lit_llm.model import Decoder
from lit_llm.model.attention import AttentionContext
from lit_llm.modules import PretrainingModule


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_without_memory(name: str) -> None:
    config = preset(name)
    if config.vocab_size is None:
        config = preset(name, vocab_size=50304)
    with torch.device("meta"):
        model = Decoder(config)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_every_architecture_with_published_weights_is_counted() -> None:
    assert {name for name in PRESETS if preset(name).vocab_size is not None} == set(PUBLISHED)


def transformers_config(config: ModelConfig, name: str):
    """The same architecture for Hugging Face transformers."""
    import transformers

    if name.startswith("gpt2"):
        return transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_positions=config.max_position_embeddings,
        )
    families = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "olmo2": "Olmo2", "gemma2": "Gemma2"}
    families["gemma3"] = "Gemma3Text"
    family = next((kind for start, kind in families.items() if name.startswith(start)), "Llama")
    return getattr(transformers, f"{family}Config")(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.width_per_head,
        intermediate_size=config.feedforward_size,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_counts_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers_config(preset(name), name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_a_block_with_norms_after_each_sum_by_hand() -> None:
    model = random_decoder(tiny_model("transformer-2017"))
    assert model.final_norm is None
    block = model.blocks[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    context = AttentionContext(torch.zeros(2, 5), None, True, None, None)

    def norm(layer: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    middle = norm(block.attention_norm, x + block.attention(x, context))
    expected = norm(block.feedforward_norm, middle + block.feedforward(middle))
    assert largest_difference(block(x, context), expected) < 1e-5


def test_a_block_with_norms_before_by_hand() -> None:
    model = random_decoder(tiny_model("modern-1m", value_embeddings=False))
    block = model.blocks[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    context = AttentionContext(torch.zeros(2, 5), None, True, None, None)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    middle = x + block.attention(norm(x), context)
    expected = middle + block.feedforward(norm(middle))
    assert largest_difference(block(x, context), expected) < 1e-5


def test_blocks_read_their_shares_of_the_stream_and_of_the_embedding() -> None:
    model = random_decoder(tiny_model("modern-1m", value_embeddings=False))
    read = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: read.append((inputs[0], output)))
    model(torch.randint(0, 400, (1, 5)))
    stream, shortcut = model.stream_share, model.shortcut_share
    embedded = read[0][0] / (stream[0] + shortcut[0])
    assert largest_difference(read[1][0], stream[1] * read[0][1] + shortcut[1] * embedded) < 1e-5


def test_the_smear_adds_a_gated_share_of_the_token_before() -> None:
    smear = random_decoder(tiny_model("modern-1m")).smear
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    out = smear(x, torch.tensor([[0, 1, 0, 1]]))
    gate = smear.strength * torch.sigmoid(smear.gate.weight @ x[0].T)[0]  # [t]
    assert torch.equal(out[0, [0, 2]], x[0, [0, 2]])
    assert largest_difference(out[0, 1], x[0, 1] + gate[1] * x[0, 0]) < 1e-6
    assert largest_difference(out[0, 3], x[0, 3] + gate[3] * x[0, 2]) < 1e-6


@pytest.mark.parametrize("name", ["gpt2", "modern-1m", "transformer-2017"])
def test_no_token_sees_a_later_one(name: str) -> None:
    model = random_decoder(tiny_model(name))
    tokens = random_tokens(model.config, 1, 12)
    changed = tokens.clone()
    changed[0, 7] = (tokens[0, 7] + 1) % 400
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, :7], after[0, :7])
    assert ((before - after)[0, 7:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("name", ["gpt2", "llama-10m", "transformer-2017"])
def test_dropout_works_in_training_alone(name: str) -> None:
    dropping = random_decoder(tiny_model(name, dropout=0.3))
    plain = random_decoder(tiny_model(name, dropout=0.0))
    tokens = random_tokens(plain.config, 2, 12)
    assert torch.equal(dropping(tokens), plain(tokens))
    dropping.train()
    assert largest_difference(dropping(tokens), dropping(tokens)) > 0.1
    assert torch.equal(plain.train()(tokens), plain.eval()(tokens))


def test_the_embedding_and_both_branches_are_dropped() -> None:
    model = random_decoder(tiny_model("gpt2", dropout=0.25)).train()
    model.blocks[0].attention.config = tiny_model("gpt2", dropout=0.0)
    shares = []
    for module in (model.dropout, model.blocks[0].dropout):
        module.register_forward_hook(lambda module, inputs, output: shares.append(float((output == 0).float().mean())))
    model(random_tokens(model.config, 16, 32))
    assert len(shares) == 3
    assert shares == pytest.approx([0.25] * 3, abs=0.02)


def test_padded_rows_are_no_logits_and_get_no_gradient() -> None:
    config = tiny_model("gpt2", vocab_size=390, pad_vocab_to_multiple_of=64, tie_word_embeddings=False, dropout=0.0)
    module = PretrainingModule(PretrainConfig(model=config, data=DataConfig(sequence_length=16)))
    model = module.model
    assert model.embedding.weight.shape == model.head.weight.shape == (448, 32)
    tokens = random_tokens(config, 2, 16)
    assert model(tokens).shape == (2, 16, 390)
    targets = random_tokens(config, 2, 16, seed=2)
    loss, count = module.token_loss({"tokens": tokens, "targets": targets}, training=True)
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert count == 32
    loss.backward()
    assert not model.head.weight.grad[390:].any()
    assert model.head.weight.grad[:390].any(dim=1).all()
    assert not model.embedding.weight.grad[390:].any()


def test_padding_the_vocabulary_changes_no_logit() -> None:
    plain = random_decoder(tiny_model("gpt2", vocab_size=390))
    padded = random_decoder(tiny_model("gpt2", vocab_size=390, pad_vocab_to_multiple_of=64))
    state = plain.state_dict()
    wide = torch.cat([state["embedding.weight"], torch.full((58, 32), 100.0)])
    padded.load_state_dict({**state, "embedding.weight": wide, "head.weight": wide})
    tokens = random_tokens(plain.config, 2, 16)
    assert largest_difference(plain(tokens), padded(tokens)) < 1e-5


def test_a_text_beyond_the_context_is_an_error_with_both_numbers() -> None:
    model = random_decoder(tiny_model("gpt2"))
    model(random_tokens(model.config, 1, 32))
    with pytest.raises(UserError, match=r"text of 33 tokens is longer than the model's context of 32 tokens"):
        model(random_tokens(model.config, 1, 33))


def test_a_decoder_needs_a_vocabulary() -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size is not set"):
        Decoder(tiny_model("gpt2", vocab_size=None))


def test_head_gets_the_last_hidden_states_and_the_output_layer() -> None:
    model = random_decoder(tiny_model("llama-10m", logits_softcap=3.0))
    tokens = random_tokens(model.config, 2, 8)
    hidden, layer = model(tokens, head=lambda x, head: (x, head))
    assert hidden.shape == (2, 8, 32)
    assert layer is model.head
    assert torch.equal(model.logits(hidden), model(tokens))


class Narrowed(TorchDispatchMode):
    """Notes the operations that read float64 numbers and give floating-point numbers of a narrower type."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the types of what goes in and comes out."""
        result = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(part) if torch.is_tensor(x)] for part in ((args, kwargs), result))
        narrow = any(x.is_floating_point() and x.dtype != torch.float64 for x in made)
        if narrow and any(x.dtype == torch.float64 for x in given):
            self.found.add(str(func))
        return result


@pytest.mark.parametrize("output", ["logits", "score"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2-2b", "qwen3-0.6b", "modern-1m", "transformer-2017"])
def test_float64_stays_float64(name: str, output: str) -> None:
    """Soft caps, norms and scores are computed in float32 for the sake of narrower types, not of wider ones."""
    config = tiny_model(name)
    model = random_decoder(config if output == "logits" else config.as_score()).double()
    tokens = random_tokens(config, 2, 12)
    with torch.no_grad():
        model(tokens)  # makes the tables of positions, which are float32
        with Narrowed() as narrowed:
            result = model(tokens)
    assert narrowed.found == set() and result.dtype == torch.float64


def test_bfloat16_weights_give_nearly_the_logits_of_float32() -> None:
    for name in ("gpt2", "llama-10m", "modern-1m", "transformer-2017"):
        model = random_decoder(tiny_model(name), std=0.1)
        tokens = random_tokens(model.config, 2, 32)
        expected = model(tokens)
        rounded = model.to(torch.bfloat16)(tokens).float()
        error = (rounded - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < 0.03, name


def test_autocast_gives_nearly_the_logits_of_float32() -> None:
    for name in ("gpt2", "llama-10m", "modern-1m", "transformer-2017"):
        model = random_decoder(tiny_model(name), std=0.1)
        tokens = random_tokens(model.config, 2, 32)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(tokens).float()
        expected = model(tokens)
        error = (rounded - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert 0.0 < error < 0.03, name
