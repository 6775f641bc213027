"""Templates of strangers: they reach nothing, and neither run for long nor make much."""

from __future__ import annotations

import tracemalloc

import pytest
from chat_templates import TEMPLATES

from lit_llm.config import UserError
from lit_llm.tokenizer import template_limits
from lit_llm.tokenizer.chat_template import ChatTemplate

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
DOUBLED = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.x %s }}"
TOO_LARGE, PADS, STEPS = "what it makes is too large", "it pads too much", "it takes too many steps"
HOSTILE: dict[str, tuple[str, str]] = {
    "lipsum": ("{{ lipsum(n=100000) }}", "'lipsum' is undefined"),
    # width
    "center": ("{{ 'a'.center(3000000000) }}", PADS),
    "center, filter": ("{{ 'a'|center(3000000000) }}", PADS),
    "zfill": ("{{ 'a'.zfill(10000000000) }}", PADS),
    "expandtabs": ("{{ ('\t' * 99999).expandtabs(99999) }}", PADS),
    "percent": ("{{ '%1000000000d' % 1 }}", PADS),
    "percent, key": ("{{ '%((a))1000000000d' % {'(a)': 1} }}", PADS),
    "percent, star": ("{{ '%*d' % (1000000000, 1) }}", PADS),
    "percent, precision": ("{{ '%.1000000000f' % 1.5 }}", PADS),
    "percent, filter": ("{{ '%1000000000d'|format(1) }}", PADS),
    "format": ("{{ '{:1000000000}'.format(1) }}", PADS),
    "format, nested": ("{{ '{:{}}'.format(1, 1000000000) }}", PADS),
    "format_map": ("{{ '{a:1000000000}'.format_map({'a': 1}) }}", PADS),
    "indent": ("{{ ('a\n' * 99999)|indent(99999) }}", PADS),
    "batch": ("{{ [1]|batch(1000000000, 'a')|list }}", PADS),
    "slice": ("{{ [1]|slice(1000000000)|list }}", PADS),
    "round": ("{{ 1.5|round(1000000000, 'ceil') }}", PADS),
    "tojson": ("{{ [[1] * 1000]|tojson(indent=1000000000) }}", PADS),
    # products
    "text": ("{{ 'a' * 10**10 }}", TOO_LARGE),
    "list": ("{{ 10**10 * [1] }}", TOO_LARGE),
    "power": ("{{ 10**(10**6) }}", TOO_LARGE),
    "join": ("{{ range(99999)|join('a' * 99999) }}", TOO_LARGE),
    "join, method": ("{{ ('a' * 99999).join(['b'] * 999) }}", TOO_LARGE),
    "replace": ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", TOO_LARGE),
    "replace, filter": ("{{ ('a' * 99999)|replace('', 'b' * 99999) }}", TOO_LARGE),
    "indent, text": ("{{ ('a\n' * 99999)|indent('b' * 99999) }}", TOO_LARGE),
    "format, fields": ("{{ ('{0}' * 1000).format('a' * 99999) }}", TOO_LARGE),
    "percent, fields": ("{{ ('%(a)s' * 1000) % {'a': 'a' * 99999} }}", TOO_LARGE),
    "map": ("{{ range(99999)|map('string')|map('center', 999)|list|length }}", TOO_LARGE),
    "output": ("{% set x = 'a' * 999999 %}{% for i in range(99999) %}{{ x }}{% endfor %}", TOO_LARGE),
    "lists in a block": (
        "{% set x = ['a' * 999999] %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}",
        TOO_LARGE,
    ),
    "slices": ("{% set x = 'a' * 999999 %}" + "".join(f"{{% set a{n} = x[1:] %}}" for n in range(100)), TOO_LARGE),
    "indented JSON": (
        "{% set ns = namespace(x=[1] * 9999) %}{% for i in range(90) %}{% set ns.x = [ns.x] %}{% endfor %}"
        "{{ ns.x|tojson(indent=1000) }}",
        TOO_LARGE,
    ),
    "depth": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(900) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "nested too deeply",
    ),
    # doubling
    "doubled by +": (DOUBLED % ("'abcdefgh'", "{% set ns.x = ns.x + ns.x %}", ""), TOO_LARGE),
    "doubled by ~": (DOUBLED % ("'abcdefgh'", "{% set ns.x = ns.x ~ ns.x %}", ""), TOO_LARGE),
    "doubled lists": (DOUBLED % ("[1]", "{% set ns.x = ns.x + ns.x %}", ""), TOO_LARGE),
    "doubled by a macro": (
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLED % ("'abcd'", "{% set ns.x = twice(ns.x) %}", ""),
        TOO_LARGE,
    ),
    "doubled by a block": (
        DOUBLED % ("'abcd'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}", ""),
        TOO_LARGE,
    ),
    "lists of lists": (DOUBLED % ("['ha']", "{% set ns.x = [ns.x, ns.x] %}", ""), TOO_LARGE),
    "tuples of tuples": (DOUBLED % ("('ha',)", "{% set ns.x = (ns.x, ns.x) %}", "|tojson"), TOO_LARGE),
    "mappings of mappings": (DOUBLED % ("{}", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "|string"), TOO_LARGE),
    "mappings that are called": (DOUBLED % ("{}", "{% set ns.x = dict(a=ns.x, b=ns.x) %}", ""), TOO_LARGE),
    # loops
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", STEPS),
    "skipped turns": ("{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}", STEPS),
    "continue": ("{% for a in range(99999) %}{% for b in range(99999) %}{% continue %}{% endfor %}{% endfor %}", STEPS),
    "tests": ("{{ range(99999)|select('even')|list|length }}", STEPS),
    "filters": ("{{ range(99999)|map('abs')|list|length }}", STEPS),
    "calls": ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", STEPS),
    "endless calls": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
    "blocks": ("{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}", "maximum recursion depth"),
    # what takes long in one call, or makes what is not counted
    "sum": ("{{ [[1] * 1000]|sum(start=[]) }}", "adds up what is not numbers"),
    "strip": ("{{ ('a' * 99999).strip('b' * 99999) }}", "it takes too long"),
    "trim": ("{{ ('a' * 99999)|trim('b' * 99999) }}", "it takes too long"),
    "rfind": ("{{ ('a' * 99999).rfind('b' + 'a' * 9999) }}", "it takes too long"),
    "encode": ("{{ 'a'.encode() }}", "calls str.encode, which no chat template needs"),
    "to_bytes": ("{{ (1).to_bytes(10000000000, 'big') }}", "calls int.to_bytes"),
    "translate": ("{{ 'a'.translate({97: 'b' * 99999}) }}", "calls str.translate"),
    "markup": ("{{ ('<!---->'|safe).striptags() }}", "calls str.striptags"),
    "fromkeys": ("{{ {}.fromkeys([1]) }}", "calls type.fromkeys"),
    "urlize": ("{{ 'a'|urlize }}", "No filter named 'urlize'"),
    # which cannot even be read
    "digits": ("{{ " + "9" * 5000 + " }}", "is broken"),
    "parentheses": ("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "is broken"),
    "ifs": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "is broken"),
    "length": ("a" * 200_000, "has 200,000 characters"),
}
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages['__class__'] }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', '__class__')|join }}",
    "{{ messages|groupby('__class__') }}",
    "{{ messages|sum(attribute='__class__') }}",
    "{{ (1).__class__.__base__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__call__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ range.__self__ }}",
    "{{ range.__globals__['__builtins__'] }}",
    "{{ ''.format.__self__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{% for m in messages %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ (messages|map('upper')).gi_frame }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}'|safe).format(1) }}",
    "{{ dict.mro() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_leaves_the_sandbox(template: str) -> None:
    turns = [dict(turn) for turn in TURNS]
    try:
        written = ChatTemplate(template, {})(turns)
    except UserError as error:
        written = str(error).partition("(")[0]
    # an attribute that is out of reach is undefined, and is written as nothing
    assert written in ("the chat template refuses the conversation ", "", "[Undefined, Undefined]")
    assert turns == TURNS


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused_in_bounded_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template, message = HOSTILE[name]
    monkeypatch.setattr(template_limits, "STEPS", 5_000)
    monkeypatch.setattr(template_limits, "ROOM", 1_500_000)
    if message != STEPS:  # many steps take long where memory is traced
        tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            ChatTemplate(template, {})(TURNS)
        assert not tracemalloc.is_tracing() or tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_slow_steps_are_bounded_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.1)
    slow = "{% set l = range(99999)|list %}{% for i in l %}{% if 'x' in l %}{% endif %}{% endfor %}"
    with pytest.raises(UserError, match="it takes too long"):
        ChatTemplate(slow, {})(TURNS)


def test_namespaces_hide_what_is_in_them() -> None:
    """What is put into one after it was measured is written by nothing that holds it."""
    template = "{% set a = namespace() %}{% set l = [a] * 3 %}{% set a.x = [l] * 99 %}{{ l }}"
    assert ChatTemplate(template, {})(TURNS) == "[<Namespace>, <Namespace>, <Namespace>]"


@pytest.mark.parametrize("name", TEMPLATES)
def test_limits_leave_room_for_any_conversation(name: str) -> None:
    template = ChatTemplate(TEMPLATES[name][2], {"bos_token": "<s>", "eos_token": "</s>"})
    turns = [{"role": role, "content": f"{n} " * 50} for n in range(150) for role in ("user", "assistant")]
    text = template(turns)
    assert all(f"{n} {n} " in text for n in range(150))
    assert len(template([{"role": "user", "content": "word " * 200_000}])) > 999_000


def test_filters_and_methods_write_what_jinjas_do() -> None:
    written = ChatTemplate(
        "{{ 'a'|center(5) }}|{{ 'a\nb'|indent(2, true) }}|{{ messages|join('-', attribute='role') }}|"
        "{{ 'aXbX'|replace('X', 'y', 1) }}|{{ '%3d%s'|format(7, 'x') }}|{{ 2.567|round(1) }}|{{ [1, 2, 3]|sum }}|"
        "{{ [1, 2, 3]|batch(2, 0)|list }}|{{ [1, 2, 3]|slice(2)|list }}|{{ ' x '|trim }}|{{ 'xax'|trim('x') }}|"
        "{{ {'b': 'é', 'a': [1]}|tojson }}|{{ {'b': 1, 'a': 2}|tojson(indent=1, sort_keys=true) }}|"
        "{{ '{}-{a}'.format(1, a=2) }}|{{ ','.join(['a', 'b']) }}|{{ 'a' ~ 1 ~ [2] }}|{{ (1, 2)[1:] }}|{{ 2 ** 10 }}|"
        "{{ '<b>'|e }}|{{ 'ab'.rjust(3) }}|{{ 'a.b'.rsplit('.', 1) }}|{{ 7 % 4 }}|{{ 'x' * 3 }}|{{ [1] + [2] }}",
        {},
    )(TURNS)
    assert written == (
        "  a  |  a\n  b|user-assistant|aybX|  7x|2.6|6|[[1, 2], [3, 0]]|[[1, 2], [3]]|x|a|"
        '{"b": "é", "a": [1]}|{\n "a": 2,\n "b": 1\n}|1-2|a,b|a1[2]|(2,)|1024|'
        "&lt;b&gt;| ab|['a', 'b']|3|xxx|[1, 2]"
    )
