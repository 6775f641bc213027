"""What the chat page makes of Markdown: in headless Chromium, or its parser alone in Node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from chromium import browsing, find_chromium

PAGE = Path(str(resources.files("lit_llm.serving").joinpath("page")))

ELEMENTS = "p h2 h3 h4 h5 h6 hr blockquote ul ol li table thead tbody tr th td strong em del code span figure"
ALLOWED = set(re.findall(r"\w+", ELEMENTS + " figcaption button pre"))
TREES: dict[str, tuple[str, list[Any]]] = {
    "headings": ("# One #\n###### six\n#no", [["h2", ["One"]], ["h6", ["six"]], ["p", ["#no"]]]),
    "emphasis": (
        "a *b* __c__ ***d*** ~~e~~ `*f*` 2 * 3 * 4 snake_case_name \\*g\\*",
        [
            [
                "p",
                [
                    *("a ", ["em", ["b"]], " ", ["strong", ["c"]], " ", ["strong", [["em", ["d"]]]], " "),
                    *(["del", ["e"]], " ", ["code", ["*f*"]], " 2 * 3 * 4 snake_case_name *g*"),
                ],
            ]
        ],
    ),
    "marks without an end": ("**a *b `c [d](e", [["p", ["**a *b `c [d](e"]]]),
    "crossing marks": (
        "**a *b** c*\n\n_d **e_ f",
        [["p", ["**a ", ["em", ["b"]], "* c*"]], ["p", [["em", ["d **e"]], " f"]]],
    ),
    "code with a backtick": ("`` a`b `` ```c`", [["p", [["code", ["a`b"]], " ```c`"]]]),
    "links": (
        "[here](https://x.y/a_(b)) ![pic](p.png) <https://z.w> [z](z)",
        [
            [
                "p",
                [
                    *(["span", ["here"], "link"], ["span", [" (https://x.y/a_(b))"], "soft"], " "),
                    *(["span", ["pic"], "link"], ["span", [" (p.png)"], "soft"], " "),
                    *(["span", ["https://z.w"], "link"], " ", ["span", ["z"], "link"]),
                ],
            ]
        ],
    ),
    "paragraphs": ("one\ntwo\n\nthree\n---\n", [["p", ["one\ntwo"]], ["p", ["three"]], ["hr", []]]),
    "lists": (
        "Do:\n2. a\n   ```sh\n   ls\n     -l\n   ```\n3. b\n   - c\n   - d\n\n     more\n\nend",
        [
            ["p", ["Do:"]],
            [
                "ol",
                [
                    ["li", ["a", ["figure", ["ls\n  -l"], "sh"]]],
                    ["li", ["b", ["ul", [["li", ["c"]], ["li", ["d", ["p", ["more"]]]]]]]],
                ],
                2,
            ],
            ["p", ["end"]],
        ],
    ),
    "an empty line between items": ("- a\n\n- b\n\n\n- c", [["ul", [["li", ["a"]], ["li", ["b"]], ["li", ["c"]]]]]),
    "quotes": ("> a\n> - b\n\nc", [["blockquote", [["p", ["a"]], ["ul", [["li", ["b"]]]]]], ["p", ["c"]]]),
    "tables": (
        "| a | **b** |\n|---|--:|\n| 1 | 2 | 3 |\n4|\nno | mark",
        [
            [
                "table",
                [
                    ["thead", [["tr", [["th", ["a"]], ["th", [["strong", ["b"]]], "right"]]]]],
                    [
                        "tbody",
                        [
                            ["tr", [["td", ["1"]], ["td", ["2"], "right"]]],
                            ["tr", [["td", ["4"]]]],
                            ["tr", [["td", ["no"]], ["td", ["mark"], "right"]]],
                        ],
                    ],
                ],
            ]
        ],
    ),
    "fences": (
        "```py\nx = 1\n\n  # *y*\n```\n~~~~\n~~~\n~~~~\n````\n```",
        [["figure", ["x = 1\n\n  # *y*"], "py"], ["figure", ["~~~"], "code"], ["figure", ["```"], "code"]],
    ),
    "a fence that is being written": ("a\n```js\nlet x = `", [["p", ["a"]], ["figure", ["let x = `"], "js"]]),
}
N = 100_000
HOSTILE = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>\n\n# <b>x</b>\n- <i>\n\n|<u>|\n|-|\n|<a href=x>|",
    "javascript": "[x](javascript:alert(1)) ![x](data:text/html,1) <javascript:alert(1)> [<img>](<b>)",
    "open fence": "```html\n<script>" + "x" * N,
    **{
        name: (part * N)[:N]
        for name, part in {
            "stars": "*a",
            "opening marks": "**a ",
            "brackets": "[",
            "link beginnings": "[a](b",
            "nested quotes": ">",
            "quoted lines": ">>>>>>>>>>>>\n",
            "items": "- \n",
            "pipes": "|",
            "many fences": "```\n",
            "addresses": "<https://",
            "rows": "|a|b|\n|-|-|\n",
        }.items()
    },
    "backticks": "x".join("`" * n for n in range(1, 440)),
    "deep list": "\n".join(" " * n + "- a" for n in range(440)),
    "long info": "```" + " " * N + "`",
    "long code": "` " + "a" * N + "`",
    "blank lines": "- a\n" + "\n" * N + "x",
}

# Elements come out as the parser's trees: [tag, children, class or first number or language].
WALK = """
(async () => {
  const { make, show } = await import("/page/elements.mjs"), { fencesOf } = await import("/page/markdown.mjs");
  const { blocksOfAnswer } = await import("/page/parts.mjs");
  const write = (body, text, role) => show(body, role === "user" ? fencesOf(text) : blocksOfAnswer(text));
  const treeOf = (element) => {
    const tag = element.tagName.toLowerCase();
    const textOf = (name) => element.querySelector(name).textContent;
    if (tag === "figure") return [tag, [textOf("code")], textOf("span")];
    const inside = [...element.childNodes].map((node) => (node.nodeType === 3 ? node.data : treeOf(node)));
    return [tag, inside, tag === "ol" ? element.start : element.className];
  };
  const shown = TEXTS.map(([name, role, text]) => {
    const body = make("div"), all = [];
    write(body, text, role);
    body.querySelectorAll("*").forEach((element) => all.push(element));
    const parts = text.length < 2000 ? text.length : 0, streamed = make("div");
    for (let end = 1; end <= parts; end += 1) write(streamed, text.slice(0, end), role);
    return {
      name, tags: [...new Set(all.map((element) => element.tagName.toLowerCase()))],
      attributes: [...new Set(all.flatMap((element) => element.getAttributeNames()))],
      text: text.length > 2000 ? body.textContent.length : body.textContent,
      tree: text.length > 2000 ? null : [...body.children].map(treeOf),
      streamed: parts ? streamed.innerHTML === body.innerHTML : null,
    };
  });
  const body = make("div");
  write(body, "*a*\\n\\n```py\\nx", "assistant");
  const [first, block] = body.children, button = block.querySelector("button");
  write(body, "*a*\\n\\n```py\\nx = 1\\n```\\nend", "assistant");
  const kept = body.children[0] === first && body.children[1] === block && block.querySelector("button") === button;
  return { shown, kept, copied: block.querySelector("code").textContent };
})()
"""
NODE = """
import { fencesOf, markdownOf } from "PAGE/markdown.mjs";
const shown = TEXTS.map(([name, role, text]) => {
  const trees = (role === "user" ? fencesOf(text) : markdownOf(text)).map(([tree]) => tree), tags = new Set();
  const walk = (tree) => {
    if (typeof tree === "string") return tree;
    tags.add(tree[0]);
    return [tree[0], tree[1].map(walk), tree[2] ?? ""];
  };
  const walked = trees.map(walk);
  return { name, tags: [...tags], tree: text.length > 2000 ? null : walked };
});
console.log(JSON.stringify({ shown }));
"""
TEXTS = [
    *((name, "assistant", text) for name, (text, _) in TREES.items()),
    *((name, "assistant", text) for name, text in HOSTILE.items()),
    ("user", "user", "2*3*4 <b>\n\n\n# x\n```\ncode\n```\n  end  "),
]


def in_chromium(folder: Path) -> dict[str, Any]:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from page_server import serving_page

    with serving_page() as url, browsing(folder) as page:
        page.goto(url)
        return page.run(WALK.replace("TEXTS", json.dumps(TEXTS)))


def in_node(program: str, folder: Path) -> dict[str, Any]:
    script = NODE.replace("PAGE/", f"{PAGE.as_uri()}/").replace("TEXTS", json.dumps(TEXTS))
    (folder / "script.mjs").write_text(script, encoding="utf-8")
    done = subprocess.run([program, folder / "script.mjs"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes out in a browser, or, where there is none, of the parser in Node."""
    folder = tmp_path_factory.mktemp("page")
    if find_chromium():
        return in_chromium(folder)
    if program := shutil.which("node"):
        return in_node(program, folder)
    pytest.skip("there is neither chromium nor node; apt-get install chromium")


def filled(tree: Any) -> Any:
    """A tree of the table above with what it leaves out."""
    if isinstance(tree, str):
        return tree
    return [tree[0], [filled(each) for each in tree[1]], tree[2] if len(tree) > 2 else ""]


def test_markdown_becomes_elements(results: dict[str, Any]) -> None:
    trees = {each["name"]: each["tree"] for each in results["shown"]}
    for name, (_, wanted) in TREES.items():
        assert trees[name] == [filled(tree) for tree in wanted], name
    user = ["p", ["2*3*4 <b>\n\n\n# x"], ""], ["figure", ["code"], "code"], ["p", ["  end"], ""]
    assert trees["user"] == list(user)


def test_no_text_becomes_an_element_that_is_not_allowed(results: dict[str, Any]) -> None:
    shown = {each["name"]: each for each in results["shown"]}
    for name in [*HOSTILE, *TREES]:
        assert set(shown[name]["tags"]) <= ALLOWED, name
        assert set(shown[name].get("attributes", [])) <= {"class", "type", "tabindex", "start", "dir"}, name
    assert "strong" not in shown["opening marks"]["tags"]
    if "text" in shown["script"]:
        assert "<script>alert(1)</script><img src=x onerror=alert(1)>" in shown["script"]["text"]
        assert "x (javascript:alert(1))" in shown["javascript"]["text"]
        assert shown["open fence"]["text"] >= N


def test_text_that_comes_in_leaves_what_is_shown(results: dict[str, Any]) -> None:
    """Letter by letter the end is the same, and a block that grows keeps its elements, as the button to copy it."""
    if "kept" not in results:
        pytest.skip("elements are in a browser alone")
    assert all(each["streamed"] for each in results["shown"] if each["streamed"] is not None)
    assert results["kept"] and results["copied"] == "x = 1"
