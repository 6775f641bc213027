"""Programs that use up time, memory, processes, output or the disk, or break their interpreter."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator

from hostile_forms import MARK, attack

from lit_llm.evaluation.sandbox import Program


def fork_bombs() -> Iterator[Program]:
    yield attack("import os\nwhile True:\n    os.fork()")
    for count in (100, 1000, 10000):
        yield attack(f"""
            import os, time
            for number in range({count}):
                if os.fork() == 0:
                    time.sleep(60)
            return True""")
        yield attack(f"""
            import subprocess, sys
            started = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range({count})]
            return len(started) == {count}""")
        yield attack(f"""
            import os
            for number in range({count}):
                try:
                    os.fork()
                except OSError:
                    pass
            while True:
                pass""")


def many_threads() -> Iterator[Program]:
    for count, work in itertools.product((100, 1000, 5000), ("time.sleep(60)", "sum(range(10**9))")):
        yield attack(f"""
            import threading, time
            def work():
                {work}
            for number in range({count}):
                threading.Thread(target=work, daemon=True).start()
            return True""")


def memory_bombs() -> Iterator[Program]:
    for size in (1, 4, 64, 1024):
        yield attack(f"block = bytearray({size} << 30)\nreturn len(block)")
        yield attack(f"import mmap\nblock = mmap.mmap(-1, {size} << 30)\nblock[:] = bytes(len(block))\nreturn True")
        yield attack(
            f"blocks = []\nfor _ in range({size} << 6):\n    blocks.append(bytes(range(256)) * (1 << 16))\nreturn 1"
        )
        yield attack(f"""
            import os, time
            for number in range(7):
                if os.fork() == 0:
                    block = bytes(range(256)) * {(90 << 20) // 256}
                    time.sleep(60)
            time.sleep(1.5)
            block = b"x" * ({size} << 30)
            return True""")
    for grow in ("text += text", "text = [text, text] * 1000", "text = text * 2 + 'b'"):
        yield attack(f"text = 'a'\nfor _ in range(100):\n    {grow}\n    str(text)\nreturn True")


def endless() -> Iterator[Program]:
    for loop in (
        "while True:\n    pass",
        "import itertools\nfor _ in itertools.count():\n    pass",
        "import time\nwhile True:\n    time.sleep(1)",
        "import threading\nthreading.Event().wait()",
        "import signal\nsignal.pause()",
        "return 7 ** (7 ** 20) % 2 or 1",
        "return sum(range(10 ** 13))",
        "return str(3 ** (10 ** 8)) or 1",
        "return sorted(range(10 ** 12))",
        "return ('a' * 10 ** 7).count('a' * 5 * 10 ** 6 + 'b') or [1 for _ in iter(int, 1)]",
        "import os\nos.read(os.pipe()[0], 1)",
        "import select\nselect.select([], [], [])",
    ):
        yield attack(loop)
        yield Program(f"def start():\n{textwrap.indent(loop, '    ')}\nstart()\n", "")


def ignored_signals() -> Iterator[Program]:
    ignore = """
        import signal, time
        for kind in range(1, 65):
            try:
                signal.signal(kind, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        """
    for work in ("pass", "time.sleep(1)", "sum(range(1000))", "list(range(1000))"):
        yield attack(f"while True:\n    {work}", ignore)
        yield attack(f"import os\nos.fork()\nos.setsid() if os.fork() == 0 else 0\nwhile True:\n    {work}", ignore)


def floods() -> Iterator[Program]:
    for write in (
        "print('x' * 1000)",
        "sys.stderr.write('x' * 10000)",
        "os.write(1, b'\\x1b[2J' * 1000)",
        "os.write(2, bytes(65536))",
        "print(end='\\a', flush=True)",
        "os.system('echo x')" + " or os.write(1, bytes(9999))",
    ):
        yield attack(f"import os, sys\nwhile True:\n    {write}")
        yield attack(f"import os, sys\nfor _ in range(1000000):\n    {write}\nreturn True")
        yield attack(f"import os, sys\nos.fork()\nwhile True:\n    {write}")


def full_disks() -> Iterator[Program]:
    for place in (".", "/tmp", "/dev/shm", "/", "/var/tmp"):
        name = f"{place}/{MARK}"
        yield attack(f"""
            with open({name!r}, "wb") as file:
                for _ in range(1 << 10):
                    file.write(bytes(1 << 20))
            return True""")
        yield attack(f"""
            for number in range(1000):
                with open({name!r} + str(number), "wb") as file:
                    file.write(bytes(4 << 20))
            return True""")
        yield attack(f"import os\nfor number in range(100000):\n    os.mkdir({name!r} + str(number))\nreturn True")
        yield attack(f"""
            import os
            with open({name!r}, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 8 << 30)
            return True""")


def daemons() -> Iterator[Program]:
    for seconds, work in itertools.product((5, 60, 600), ("time.sleep(1)", "pass", "open('file', 'a').write('x')")):
        for twice in (True, False):
            yield attack(f"""
                import os, time
                if os.fork() == 0:
                    os.setsid()
                    if {twice} and os.fork():
                        os._exit(0)
                    os.closerange(0, 256)
                    until = time.time() + {seconds}
                    while time.time() < until:
                        {work}
                    os._exit(0)
                return False""")


def deep() -> Iterator[Program]:
    for depth in (10**5, 10**6, 10**9):
        start = f"import sys\nsys.setrecursionlimit({depth})"
        yield attack("def down(n):\n    return down(n + 1) + 1\nreturn down(0)", start)
        yield attack("value = []\nfor _ in range(10 ** 6):\n    value = [value]\nreturn repr(value)", start)
        yield attack("return eval('(' * 10 ** 5 + ')' * 10 ** 5) or 1", start)
        yield attack("import json\nreturn json.loads('[' * 10 ** 6)", start)
    yield attack("value = []\nvalue.append(value)\nreturn value")
    yield attack("value = {}\nvalue[1] = (value,)\nreturn value")


def slow_patterns() -> Iterator[Program]:
    for pattern in (r"(a+)+$", r"(a|aa)+$", r"(a|a)*$", r"(.*a){25}$", r"(a*)*b", r"^(\w+\s?)*$"):
        yield attack(
            f"import re\nfor count in (60, 90, 900):\n    re.match({pattern!r}, 'a' * count + '!!')\nreturn True"
        )


def crashes() -> Iterator[Program]:
    for crash in (
        "ctypes.string_at(0)",
        "ctypes.memset(0, 1, 1 << 20)",
        "ctypes.CFUNCTYPE(None)(8)()",
        "os.kill(os.getpid(), 11)",
        "os.abort()",
        "ctypes.pythonapi.Py_FatalError(b'x')",
        "ctypes.memmove(id(None), bytes(64), 64)",
    ):
        yield attack(f"import ctypes, os\n{crash}\nreturn False")


def bombs() -> Iterator[Program]:
    packers = {"zlib": "compressobj", "bz2": "BZ2Compressor", "lzma": "LZMACompressor"}
    for (module, make), gigabytes in itertools.product(packers.items(), (1, 16)):
        yield attack(f"""
            import {module}
            packer = {module}.{make}()
            packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range({gigabytes << 4})) + packer.flush()
            whole = b"".join({module}.decompress(packed) for _ in range({64}))
            return len(whole) >> 30""")
    for width in (10**9, 10**10, 10**12):
        yield attack(f"return len('%{width}d' % 1)")
        yield attack(f"return len(format(1, '0{width}d'))")
        yield attack(f"return len(b'x'.ljust({width}))")
