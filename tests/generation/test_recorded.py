"""Steps that are recorded read and write at the same places each time, and write the same text."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lit_llm.config import SamplingConfig
from lit_llm.generation import Engine
from lit_llm.generation import compiled as compilation
from lit_llm.generation import engine as engines
from lit_llm.generation.recorded import RecordedSteps, Run


class Recorder:
    """Runs a step first and then again for each replay, as CUDA graphs do, and notes where its tensors lie."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.replays = 0

    def __call__(self, run: Run) -> Run:
        arguments = run.args  # type: ignore[attr-defined]
        places = self.places(arguments)
        self.rows.append(arguments[0].size(0))
        run()

        def replay() -> Tensor:
            self.replays += 1
            assert self.places(arguments) == places
            return run()

        return replay

    def places(self, arguments: Any) -> list[int]:
        return [each.data_ptr() for each in tree_leaves(arguments) if isinstance(each, Tensor)]


@pytest.mark.parametrize("fields", [{}, {"sliding_window": 10, "token_smear": True}])
def test_recorded_steps_write_the_same(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(tiny_model("llama-10m", num_layers=1, max_position_embeddings=300, **fields))
    recorder = Recorder()
    monkeypatch.setattr(compilation, "check_compiler", lambda: None)
    monkeypatch.setattr(compilation, "_ahead_of_time", lambda one_token, *_: one_token)  # as it is
    monkeypatch.setattr(engines, "CompiledStep", partial(compilation.CompiledStep, record=recorder))
    texts = []
    for compiles in (False, True):
        engine = Engine(model, max_batch=3, compile=compiles)
        # three rows take a step of four; the longest text goes on alone, past the last power of two
        ids = [
            engine.submit(
                random_tokens(model.config, 5 + number, seed=number).tolist(),
                SamplingConfig(max_new_tokens=length, temperature=0.0),
            )
            for number, length in enumerate((3, 10, 280))
        ]
        done = engine.run()
        texts.append([done[each].ids for each in ids])
    assert texts[0] == texts[1]
    assert [len(text) for text in texts[1]] == [3, 10, 280]
    assert recorder.rows == [3, 2, 1, 1, 1]  # slots: 128 each, then 256 and 288 of one row
    assert recorder.replays == 279


def test_the_number_of_slots() -> None:
    recorded = RecordedSteps(lambda rows: lambda *_: None, lambda run: run)  # type: ignore[arg-type, return-value]
    lengths = range(1, 1001)
    read = [recorded.slots(length, 1008) for length in lengths]
    assert all(length <= slots <= 1008 for length, slots in zip(lengths, read, strict=True))
    assert sorted(set(read)) == [128, 256, 512, 1008]
