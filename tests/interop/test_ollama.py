"""A Modelfile says in Go's templates what the chat template says in Jinja."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from chat_rows import letter_tokenizer
from chat_templates import CHATML_TOKENS, GEMMA, LLAMA3, LLAMA3_TOKENS, MISTRAL, QWEN2, QWEN3
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import random_decoder

from lit_llm.cli.commands import COMMANDS
from lit_llm.config import ExportConfig, UserError
from lit_llm.interop import GenerationSettings, save_model_folder
from lit_llm.interop.ollama import modelfile, turn_pieces
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat_template import CHATML_TEMPLATE, ChatTemplate

USER, ANSWER, MORE = {"role": "user", "content": "a\nb {{ x }}"}, {"role": "assistant", "content": "c"}, "d"
TALKS = [
    [USER],
    [USER, ANSWER, {"role": "user", "content": MORE}],
    [{"role": "system", "content": "e f"}, USER],
    [{"role": "system", "content": "e f"}, USER, ANSWER, USER, ANSWER, USER],
]
FORMS = {
    "chatml": (CHATML_TEMPLATE, CHATML_TOKENS),
    "llama3": (LLAMA3, LLAMA3_TOKENS),
    "qwen2": (QWEN2, CHATML_TOKENS),
    "qwen3": (QWEN3, CHATML_TOKENS),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),  # it refuses system messages
}


def tokenizer_with(folder: Path, form: str, template: str, tokens: list[str]) -> Tokenizer:
    pytest.importorskip("transformers")
    save_foreign_tokenizer(form, folder)
    (folder / "chat_template.jinja").write_text(template)
    return Tokenizer.load(folder).extended(tokens)


@pytest.mark.parametrize("name", FORMS)
def test_the_pieces_write_what_the_template_writes(name: str, tmp_path: Path) -> None:
    template, tokens = FORMS[name]
    tokenizer = tokenizer_with(tmp_path, "qwen", template, tokens)
    pieces, jinja = turn_pieces(tokenizer), ChatTemplate(template, tokenizer.named_tokens)
    assert pieces is not None
    assert ("system" in pieces.around) is (name != "gemma")
    for talk in TALKS[: 2 if name == "gemma" else None]:
        assert pieces.write(talk) == jinja(talk, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (MISTRAL, "chat template cannot be written for Ollama"),
        ("{{ strftime_now('%Y') }}" + CHATML_TEMPLATE, "it writes today's date"),
        (CHATML_TEMPLATE.replace("message['role']", "message['role'] ~ loop.index", 1), "in a way of its own"),
        (
            CHATML_TEMPLATE.replace("{{ '<|im_s", "{% if 'W' in message['content'] %}!{% endif %}{{ '<|im_s", 1),
            "depends on more than its role",
        ),
        ("{% for message in messages %}x{% endfor %}", "it leaves words out"),
        (CHATML_TEMPLATE.replace("{{ '<", "{{ '" + '"' * 3 + "<", 1), "characters that a Modelfile cannot hold"),
    ],
    ids=["mistral", "date", "numbered", "by words", "silent", "quotes"],
)
def test_a_template_without_such_a_form_is_refused(template: str, reason: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "qwen", template, CHATML_TOKENS)
    with pytest.raises(UserError, match=reason):
        modelfile("model.gguf", tokenizer, [], {}, 64)


def test_a_modelfile_by_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    tokenizer = letter_tokenizer()
    config = tiny_model("llama-10m", vocab_size=tokenizer.vocab_size, max_position_embeddings=48)
    settings = {"eos_token_id": tokenizer.eot_id, "do_sample": True, "temperature": 0.6, "top_k": 7}
    save_model_folder(
        tmp_path / "model",
        config,
        random_decoder(config).state_dict(),
        tokenizer,
        settings=GenerationSettings({}, settings),
    )
    options = ExportConfig(str(tmp_path / "model"), str(tmp_path / "out"), format="ollama", dtype="q8_0", license="mit")
    COMMANDS["export"].run(options)
    assert f"ollama create NAME -f {tmp_path / 'out' / 'Modelfile'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "README.md", "model.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text()
    head, template, tail = text.split('"""', 2)
    assert head == "FROM ./model.gguf\nTEMPLATE "
    assert template == (
        "{{ if not .System }}{{ end }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}'
        "{{ if not $last }}<|im_end|>\n{{ end }}{{ end }}"
        '{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n{{ end }}{{ end }}'
    )
    assert tail.splitlines()[1:] == [
        'PARAMETER stop "<|endoftext|>"',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER num_ctx 48",
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 7",
        "PARAMETER top_p 1.0",
        "PARAMETER min_p 0.0",
        "PARAMETER repeat_penalty 1.0",
        'LICENSE """mit"""',
    ]
    with pytest.raises(UserError, match="already holds a model"):
        COMMANDS["export"].run(options)


def test_a_begin_token_is_written_once(tmp_path: Path) -> None:
    """llama.cpp puts it there where the tokenizer's own rule does, so that the template must not."""
    for form, begins in (("llama3", ""), ("qwen", "<s>")):
        tokenizer = tokenizer_with(tmp_path / form, form, LLAMA3, LLAMA3_TOKENS)
        assert bool(tokenizer.rule_ids) is (form == "llama3")
        text = modelfile("model.gguf", tokenizer, [], {}, 64)
        assert f'TEMPLATE """{{{{ if not .System }}}}{begins}<|start_header_id|>' in text
        assert text.count("<s>") == 2 * bool(begins)


def test_a_base_model_goes_on_with_the_prompt(tmp_path: Path) -> None:
    text = modelfile("model.gguf", tokenizer_with(tmp_path, "qwen", "", []), [], {"do_sample": False}, 64)
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in text
    assert "PARAMETER temperature 0\n" in text


PROGRAM = r"""package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
type Case struct { Template, System string; Messages []*Message }
func main() {
    var cases []Case
    if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
    for _, each := range cases {
        made := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
        values := map[string]any{"System": each.System, "Messages": each.Messages, "Response": ""}
        if err := made.Execute(os.Stdout, values); err != nil { panic(err) }
        os.Stdout.WriteString("\x00")
    }
}
"""


@pytest.mark.slow
def test_go_itself_writes_the_same(tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no go here, which would run the templates (apt install golang-go)")
    cases, expected = [], []
    for name, (template, tokens) in FORMS.items():
        tokenizer = tokenizer_with(tmp_path / name, "qwen", template, tokens)
        jinja = ChatTemplate(template, tokenizer.named_tokens)
        text = modelfile("model.gguf", tokenizer, [], {}, 64)
        found = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
        assert found is not None
        for talk in TALKS[: 2 if name == "gemma" else None]:
            system = "".join(each["content"] for each in talk if each["role"] == "system")
            messages = [{"Role": each["role"], "Content": each["content"]} for each in talk]
            cases.append({"Template": found[1], "System": system, "Messages": messages})
            expected.append(jinja(talk, add_generation_prompt=True))
    (tmp_path / "main.go").write_text(PROGRAM)
    done = subprocess.run(
        [go, "run", "main.go"], cwd=tmp_path, input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\x00")[:-1] == expected
