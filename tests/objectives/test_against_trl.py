"""The same numbers as TRL (https://github.com/huggingface/trl), where it is installed."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from lit_llm.objectives import (
    IGNORE_INDEX,
    PreferenceLoss,
    bradley_terry,
    linear_log_probs,
    masked_whiten,
    sequence_log_probs,
    tail_weights,
)

pytest.importorskip("trl", reason="TRL is not installed; pip install trl")

B, T, D, V = 3, 9, 6, 19
TRL_NAMES = {
    "sigmoid": "sigmoid",
    "robust": "robust",
    "hinge": "hinge",
    "ipo": "ipo",
    "sigmoid_norm": "sigmoid_norm",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
}
SMOOTHING = {"robust": 0.1, "exo": 0.01}


class Accelerator:
    device = torch.device("cpu")

    def gather(self, value):
        return value

    gather_for_metrics = gather

    def unwrap_model(self, model):
        return model


class Model(torch.nn.Module):
    """What TRL asks of a model, over fixed logits [2b, t, V]; newer versions ask for more than the logits."""

    is_gradient_checkpointing = False

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, labels=None, **_):
        full = torch.log_softmax(self.logits[:, :-1], -1)
        outputs = SimpleNamespace(logits=self.logits)
        if labels is not None:
            targets = labels[:, 1:]
            outputs.log_probs = full.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (targets >= 0)
            outputs.entropy = -(full.exp() * full).sum(-1)
            outputs.mean_logits = self.logits[:, :-1].mean(-1)
            outputs.is_top1 = full.argmax(-1) == targets
        return outputs


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs():
    """Hidden states of policy and reference [2b, t, d], a head, tokens and completion mask [2b, t], chosen first."""
    tokens = torch.randint(0, V, (2 * B, T), generator=torch.Generator().manual_seed(0))
    starts, ends = torch.tensor([2, 1, 4, 2, 1, 4]), torch.tensor([8, 9, 7, 5, 9, 9])
    positions = torch.arange(T)
    mask = ((positions >= starts[:, None]) & (positions < ends[:, None])).long()
    return random(1, 2 * B, T, D), random(2, 2 * B, T, D), random(3, V, D), tokens, mask


def trl_loss(name, beta, smoothing, alpha, metrics):
    from trl import DPOTrainer

    hidden, reference, weight, tokens, mask = pairs()
    policy = Model(hidden @ weight.T)
    trainer = SimpleNamespace(
        model=policy,
        ref_model=Model(reference @ weight.T),
        accelerator=Accelerator(),
        args=SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=alpha,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[name],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics={"train": metrics},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"input_ids": tokens, "completion_mask": mask, "attention_mask": torch.ones_like(tokens)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DPOTrainer._compute_loss(trainer, policy, inputs, return_outputs=False)


def our_arguments(alpha):
    hidden, reference, weight, tokens, mask = pairs()
    mask = mask[:, 1:]
    targets = tokens[:, 1:].masked_fill(mask == 0, IGNORE_INDEX)
    weights = torch.cat(tail_weights(*mask.chunk(2), 1.0 if alpha is None else alpha))
    sums, counts = [], None
    for states in (hidden, reference):
        log_probs = linear_log_probs(states[:, :-1].flatten(0, 1), weight, targets.flatten(), chunk_tokens=4)
        total, counts = sequence_log_probs(log_probs.view_as(targets) * weights, mask)
        sums.extend(total.chunk(2))
    return *sums, *counts.chunk(2)


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("kind", TRL_NAMES)
def test_preference_losses(kind, beta, alpha):
    smoothing, metrics = SMOOTHING.get(kind, 0.0), defaultdict(list)
    expected = trl_loss(TRL_NAMES[kind], beta, smoothing, alpha, metrics)
    arguments = our_arguments(alpha)
    loss = PreferenceLoss(kind, beta=beta, label_smoothing=smoothing)
    # tail_weights are float32
    torch.testing.assert_close(loss(*arguments).mean(), expected.double(), rtol=1e-6, atol=1e-6)
    for name, reward in zip(("chosen", "rejected"), loss.implicit_rewards(*arguments), strict=True):
        assert reward.mean().item() == pytest.approx(metrics[f"rewards/{name}"][-1], rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probs_and_entropy(dtype, temperature):
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    hidden, _, weight, tokens, _ = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in pairs())
    logits = hidden @ weight.T / temperature
    log_probs, entropy = linear_log_probs(
        hidden.flatten(0, 1), weight, tokens.flatten(), chunk_tokens=7, temperature=temperature, with_entropy=True
    )
    torch.testing.assert_close(log_probs.view(2 * B, T), selective_log_softmax(logits, tokens))
    torch.testing.assert_close(entropy.view(2 * B, T), entropy_from_logits(logits))


@pytest.mark.parametrize("with_margin", [False, True])
@pytest.mark.parametrize("centring", [None, 0.01])
def test_reward_loss(centring, with_margin):
    from trl import RewardTrainer

    rewards, margin = random(5, 2 * B, 1), random(6, B)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {"margin": margin} if with_margin else {}
    expected = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=rewards), inputs)
    chosen, rejected = rewards.squeeze(1).chunk(2)
    actual = bradley_terry(chosen, rejected, margin if with_margin else None, centring or 0.0).mean()
    torch.testing.assert_close(actual, expected)


def test_whitening():
    ppo = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="this version of TRL has no PPO")
    values, mask = random(7, B, T), pairs()[4][:B].bool()
    for shift_mean in (True, False):
        expected = ppo.masked_whiten(values, mask, shift_mean)
        torch.testing.assert_close(masked_whiten(values, mask, shift_mean=shift_mean)[mask], expected[mask])
