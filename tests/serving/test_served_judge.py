"""Our own server as a judge, and as one of the models that are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from chat_rows import letter_tokenizer, save_policy, write_rows
from serving_models import save_tiny, serving

from lit_llm.config import JudgeConfig, JudgeSourceConfig, SamplingConfig, UserError
from lit_llm.stages.judge import judge

PROMPTS = ["bcd", "gfh"]


def test_our_own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("outlines_core", reason="the extra constrained is not installed")
    (tmp_path / "key").write_text("sesame")
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    folder = save_policy(tmp_path / "policy", letter_tokenizer())
    monkeypatch.setenv("LIT_LLM_API_KEY", "sesame")
    with serving(save_tiny(tmp_path, context=2048), api_key="sesame") as own:
        source = JudgeSourceConfig(url=own.url, json_verdict=True, api_key_file=str(tmp_path / "key"))
        models = {"policy": str(folder), "served": f"{own.url}#tiny"}
        sampling = SamplingConfig(max_new_tokens=6)
        config = JudgeConfig(models, [rows], judge=source, sampling=sampling, output=str(tmp_path / "out"))
        found = judge(config).report
        assert found["unparsed"]["replies"] == 0 and found["judge"] == f"tiny at {own.url}/v1"
        assert found["pairs"][0]["comparisons"] == len(PROMPTS)
        assert found["tokens"]["prompt_tokens"] > 500 * found["replies"]
        prose = replace(config, judge=replace(source, json_verdict=False, max_tokens=5), output=str(tmp_path / "prose"))
        with pytest.raises(UserError, match=r"no comparison has a verdict: \d+ replies could not be read"):
            judge(prose)
        monkeypatch.setenv("LIT_LLM_API_KEY", "wrong")
        wrong = replace(config, output=str(tmp_path / "wrong"))
        with pytest.raises(UserError, match=r"models\.served .*: the key was refused \(status 401.*API key"):
            judge(wrong)
