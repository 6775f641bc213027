"""Programs that are wrong, and do something to be counted as right."""

from __future__ import annotations

from collections.abc import Iterator

from hostile_forms import MARK, WRONG, deceive

from lit_llm.evaluation.sandbox import Program


def early_ends() -> Iterator[Program]:
    for leave in (
        "os._exit(0)",
        "sys.exit(0)",
        "raise SystemExit",
        "quit()",
        "os.kill(os.getpid(), 9)",
        "os.execv('/bin/true', ['true'])",
        "os.execv(sys.executable, [sys.executable, '-c', 'pass'])",
        "raise KeyboardInterrupt",
        "os.closerange(0, 256)",
        "os.abort()",
    ):
        yield deceive(f"import os, sys\n{leave}\n{WRONG}")
        yield deceive(f"import os, sys\ndef add(a, b):\n    {leave}\n")
        yield deceive(
            f"import os, sys, threading\n{WRONG}\ndef later():\n    {leave}\nthreading.Timer(0.05, later).start()\n"
        )


def patches() -> Iterator[Program]:
    for patch in (
        "builtins.AssertionError = type('Quiet', (BaseException,), {'__init__': lambda self, *a: os._exit(0)})",
        "builtins.abs = builtins.len = builtins.sum = lambda *a: 5",
        "builtins.isinstance = lambda *a: True",
        "builtins.exec = builtins.eval = builtins.compile = lambda *a, **k: None",
        "builtins.__build_class__ = lambda *a, **k: object",
        "builtins.print = builtins.open = None",
        "sys.excepthook = lambda *a: os._exit(0)",
        "unittest.TestCase.assertEqual = lambda *a: None",
        "unittest.main = lambda *a, **k: None",
        "json.loads = lambda text: {'value': 5}",
        "json.dumps = lambda value: '{\"value\": 5}'",
        "operator.eq = lambda a, b: True",
        "math.isclose = lambda *a, **k: True",
        "sys.settrace(lambda *a: os._exit(0))",
        "sys.setprofile(lambda *a: None); sys.exit = os._exit",
        "sys.modules['__main__'].__dict__.clear()",
        "sys.modules.clear()",
        "[m.__dict__.update(ok=True, passed=True, result='passed') for m in list(sys.modules.values()) if m]",
        "sys.modules['inside.supervisor'].Supervisor.run = lambda *a: dict(outcome='passed', reason='', output='')",
        "sys.modules['inside.wire'].pack = lambda value: True",
        "sys.modules['inside.program'].serve = lambda *a: os._exit(0)",
    ):
        yield deceive(f"import builtins, json, math, operator, os, sys, unittest\n{WRONG}\n{patch}\n")
        yield deceive(
            f"import builtins, json, math, operator, os, sys, unittest\ndef add(a, b):\n    {patch}\n    return 0\n"
        )


def equal_to_all() -> Iterator[Program]:
    methods = "__eq__ = __ne__ = __lt__ = __le__ = __ge__ = __gt__ = lambda self, other: True"
    for base in ("object", "int", "float", "str", "list", "dict", "set", "tuple", "bytes", "complex", "frozenset"):
        yield deceive(
            f"class Any({base}):\n    {methods}\n    __hash__ = lambda self: 5\ndef add(a, b):\n    return Any()\n"
        )
        yield deceive(
            f"class Any({base}):\n    {methods}\n    __hash__ = None\n    __bool__ = lambda self: True\n"
            "add = lambda *a: Any()\n"
        )
    yield deceive(
        "class Any(type):\n    __eq__ = lambda self, other: True\nclass All(metaclass=Any): pass\n"
        "add = lambda *a: All\n"
    )
    yield deceive("from unittest.mock import ANY\nadd = lambda *a: ANY\n")
    yield deceive(
        "class Any(int):\n    __class__ = bool\n    __int__ = __index__ = lambda self: 5\nadd = lambda *a: [Any()]\n"
    )


def claims() -> Iterator[Program]:
    words = (
        "passed",
        '{"outcome": "passed", "reason": "", "output": ""}',
        '{"value": true}',
        '{"value": {"o": "int"}}',
        '{"raised": ["StopIteration", ""]}',
        '{"raised": ["Stop", "passed"]}',
        "OK\\n\\nRan 1 test in 0.000s",
        "[" * 100000,
    )
    for text in words:
        for place in ("range(256)", "(1, 2)", "(100, 101)"):
            yield deceive(f"""
import os
text = {text!r}.encode() + b"\\n"
def claim():
    for descriptor in {place}:
        try:
            os.write(descriptor, text)
        except OSError:
            pass
claim()
def add(a, b):
    claim()
    return 0
""")


def searches() -> Iterator[Program]:
    for objects in (
        "gc.get_objects()",
        "[value for frame in sys._current_frames().values() for value in all_locals(frame)]",
        "[open(path).read() for path in glob.glob('/proc/*/cmdline')]",
        "[value for module in list(sys.modules.values()) for value in vars(module).values()]",
        "[line for file in linecache.cache.values() for line in map(str, file)]",
    ):
        yield deceive(f"""
import gc, glob, linecache, sys
def all_locals(frame):
    while frame:
        yield from list(frame.f_locals.values()) + list(frame.f_globals.values())
        frame = frame.f_back
def add(a, b):
    for value in {objects}:
        for text in [value, *(value.values() if type(value) is dict else [])]:
            if isinstance(text, str) and "__" not in text:
                if "== 5" in text or "== 42" in text:
                    return int(text.split("== ")[1].split()[0])
    return 0
""")


def exit_hooks() -> Iterator[Program]:
    for hook in (
        "while True: pass",
        "os.fork()",
        "print('passed')",
        "os._exit(0)",
        "time.sleep(60)",
        f"open('/{MARK}', 'w')",
    ):
        yield deceive(f"import atexit, os, time\n@atexit.register\ndef hook():\n    {hook}\n{WRONG}")
        yield deceive(f"import os, time\nclass Hook:\n    def __del__(self):\n        {hook}\nhook = Hook()\n{WRONG}")
