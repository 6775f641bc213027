"""The chat page's logic, which needs no browser: branches, files, what is kept, streams, tokens and calls of tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from lit_llm.data.conversations.reading import read_conversations, read_preferences

PAGE = Path(str(resources.files("lit_llm.serving").joinpath("page")))
SCRIPTS = sorted((Path(__file__).parent / "page").glob("*.test.mjs"))
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node; apt-get install nodejs")


def in_node(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script whose imports from PAGE are the page's."""
    (folder / "script.mjs").write_text(script.replace("PAGE/", f"{PAGE.as_uri()}/"), encoding="utf-8")
    return subprocess.run([NODE or "", folder / "script.mjs"], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name.partition(".")[0])
def test_logic(script: Path, tmp_path: Path) -> None:
    done = in_node(tmp_path, script.read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


WRITE = """
import { lineOf, preferenceOf, rowsOf } from "PAGE/rows.mjs";
import { add, newConversation } from "PAGE/tree.mjs";
const conversation = newConversation("Be brief."), texts = TEXTS;
const question = add(conversation, 0, "user", texts[0]);
add(conversation, question, "assistant", texts[2]);
const answer = add(conversation, question, "assistant", texts[1]);
add(conversation, add(conversation, answer, "user", "and more?"), "assistant", "<tool_call>\\n{}\\n</tool_call>",
  { fields: { tool_calls: [{ type: "function", function: { name: "f", arguments: { a: 1 } } }] } });
const [chosen, rejected] = [texts[1], texts[2]].map((content) => ({ content }));
const row = preferenceOf(conversation, [question], chosen, rejected, true);
console.log(JSON.stringify({ sft: rowsOf([conversation], true).text, dpo: `${lineOf(row)}\\n` }));
"""


def test_files_are_read_by_the_stages(tmp_path: Path) -> None:
    """What the page writes for SFT and DPO is what they read, whatever the texts."""
    question, good, bad = "Why?\n\u2028 \u202eשלום </script> \\ud800 \"'", "Because\u0000\u0085 😀", "No\r\n\ttab"
    done = in_node(tmp_path, WRITE.replace("TEXTS", json.dumps([question, good, bad])))
    assert done.returncode == 0, done.stderr
    for name, text in json.loads(done.stdout).items():
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    first, second = read_conversations([str(tmp_path / "sft.jsonl")])
    assert [turn.content for turn in first.messages] == ["Be brief.", question, bad]
    assert [turn.content for turn in second.messages][1:4] == [question, good, "and more?"]
    assert second.messages[-1].fields["tool_calls"][0]["function"]["name"] == "f"
    (pair,) = read_preferences([str(tmp_path / "dpo.jsonl")])
    assert [(turn.role, turn.content) for turn in pair.prompt] == [("system", "Be brief."), ("user", question)]
    assert ([turn.content for turn in pair.chosen], [turn.content for turn in pair.rejected]) == ([good], [bad])
