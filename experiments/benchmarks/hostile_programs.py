"""More than 500 programs that do harm, or claim to have passed: 30 kinds, each with several parameters.

Every program comes with a test that passes if it has got what it is after: it has read the file, reached the server,
started its thousand processes, or had a wrong answer counted as right. So none may pass.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_llm.evaluation.sandbox import Program

MARK = "lit_llm_hostile"
"""Is in the name of every file that a program tries to write outside."""
PORTS = range(45310, 45330)
"""Where programs listen."""


@dataclass(frozen=True)
class Target:
    """What there is on the host to get at."""

    secret: str
    """Stands in the environment of this process and in the file."""
    file: Path
    port: int
    """A server on the loopback that counts who connects."""


@dataclass(frozen=True)
class Hostile:
    """A program of some kind."""

    kind: str
    program: Program


def attack(body: str, before: str = "") -> Program:
    """A program whose function returns something true if it succeeds."""
    source = f"{textwrap.dedent(before)}\ndef attack():\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"
    return Program(source, "assert attack()", ("attack",))


def deceive(source: str) -> Program:
    """A program that has to add, and does not."""
    return Program(textwrap.dedent(source), "assert add(2, 3) == 5\nassert add(20, 22) == 42", ("add",))


WRONG = "def add(a, b):\n    return 0\n"


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


def read_files(target: Target) -> Iterator[Program]:
    here = Path(__file__).resolve()
    files = [
        str(target.file),
        str(here),
        str(here.parents[2] / "setup.cfg"),
        "/etc/shadow",
        "/etc/passwd",
        "/etc/hostname",
        "/etc/ssh/sshd_config",
        "/root/.bashrc",
        "/proc/kcore",
        "/dev/mem",
        "/dev/vda",
        "/dev/sda",
        "/dev/tty",
        "/dev/kmsg",
        "/sys/kernel/notes",
        "/host/etc/passwd",
        f"/proc/1/root{target.file}",
        f"/proc/1/cwd/../..{target.file}",
        f"/tmp/../..{target.file}",
        "/var/log/dpkg.log",
    ]
    for file in files:
        yield attack(f"with open({file!r}, 'rb') as file:\n    return len(file.read(64)) > 0")
    for pattern in ("~/.ssh/*", "~/.netrc", "~/.cache/huggingface/*", "~/.config/*", "/home/*", "/work/*", "/root/*/*"):
        ours = "".join(f" and not path.startswith({place!r})" for place in ("/root/.pyenv",))
        yield attack(f"""
            import glob, os
            return [path for path in glob.glob(os.path.expanduser({pattern!r})) if os.path.isfile(path){ours}]""")


def environments(target: Target) -> Iterator[Program]:
    half = len(target.secret) // 2
    # the program does not hold the secret that it looks for
    known = f"def known(text):\n    return any(part[:{half}] == {target.secret[:half]!r} for part in text.split('='))\n"
    yield attack("import os\nreturn any(map(known, map(str, os.environ.values())))", known)
    for place in ("self", "1", "{parent}", "thread-self", "{session}"):
        yield attack(
            f"""
            import os
            place = {place!r}.format(parent=os.getppid(), session=os.getsid(0))
            with open(f"/proc/{{place}}/environ", "rb") as file:
                return known(file.read().decode().replace("\\0", "="))""",
            known,
        )
    for file in ("environ", "cmdline", "mem", "maps", "fd/0"):
        yield attack(f"""
            import glob, os
            others = [path for path in glob.glob("/proc/[0-9]*/{file}") if path.split("/")[2] != str(os.getpid())]
            read = []
            for path in others:
                try:
                    with open(path, "rb") as file:
                        read.append(file.read())
                except OSError:
                    pass
            # the sandbox's own first process has a command line, and nothing else that can be read
            return [text for text in read if text and b"inside.main" not in text]""")


def kills() -> Iterator[Program]:
    for whom, kind in itertools.product(
        ("os.getppid()", "1", "-1", "0", "os.getpgid(os.getppid())"),
        ("KILL", "TERM", "INT", "STOP", "ALRM", "SEGV"),
    ):
        yield attack(f"""
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            try:
                os.kill({whom}, signal.SIG{kind})
            except OSError:
                return False
            time.sleep(0.2)
            return False""")
    yield attack("""
        import os, signal
        for process in range(2, 40000):
            if process != os.getpid():
                try:
                    os.kill(process, signal.SIGKILL)
                except OSError:
                    pass
        return False""")


def connections(target: Target) -> Iterator[Program]:
    for address in ("127.0.0.1", "localhost", "::1", "0.0.0.0"):
        yield attack(f"import socket\nsocket.create_connection(({address!r}, {target.port}), 1)\nreturn True")
    for address, port in itertools.product(("1.1.1.1", "8.8.8.8", "169.254.169.254", "10.0.0.1"), (80, 443, 53)):
        yield attack(f"import socket\nsocket.create_connection(({address!r}, {port}), 1)\nreturn True")
        yield attack(
            f"import socket\nclient = socket.socket(type=socket.SOCK_DGRAM)\nclient.connect(({address!r}, {port}))\n"
            "return client.send(b'x')"
        )
    for name in ("example.com", "pypi.org", "metadata.google.internal"):
        yield attack(f"import socket\nreturn socket.gethostbyname({name!r})")
        yield attack(f"import urllib.request\nreturn urllib.request.urlopen('http://{name}', timeout=1).read()")
    for path in ("/var/run/docker.sock", "/run/dbus/system_bus_socket", "\\0lit_llm"):
        yield attack(f"import socket\nclient = socket.socket(socket.AF_UNIX)\nclient.connect('{path}')\nreturn True")
    for kind in ("socket.AF_INET, socket.SOCK_RAW, 1", "socket.AF_PACKET, socket.SOCK_RAW, 3"):
        yield attack(f"import socket\nreturn socket.socket({kind})")


def listeners() -> Iterator[Program]:
    for port in PORTS:
        yield attack(f"""
            import os, socket, time
            server = socket.create_server(("0.0.0.0", {port}))
            if os.fork() == 0:
                os.setsid()
                time.sleep(60)
            return False""")


def writes_outside(target: Target) -> Iterator[Program]:
    here = Path(__file__).resolve()
    for place in (
        *map(str, (target.file.parent, here.parent, here.parents[2])),
        *("/etc", "/root", "/home", "/var/tmp", "/usr/lib", "/opt", "/", "/dev", "/proc", "/sys", "/run"),
    ):
        yield attack(f"open('{place}/{MARK}', 'w').write('x')\nreturn True")
        yield attack(f"import os\nos.mkdir('{place}/{MARK}_folder')\nreturn True")
    for file in ("os.__file__", "sys.executable", "json.__file__", "'/etc/ld.so.cache'", repr(str(target.file))):
        yield attack(f"import json, os, sys\nopen({file}, 'ab').close()\nreturn True")
        yield attack(f"import json, os, sys\nos.chmod({file}, 0o777)\nreturn True")
        yield attack(f"import json, os, sys\nos.unlink({file})\nreturn True")


def links(target: Target) -> Iterator[Program]:
    for file in (str(target.file), "/etc/shadow", "/etc/hostname", "/proc/1/environ", "/root/.bashrc"):
        yield attack(f"import os\nos.symlink({file!r}, 'link')\nreturn open('link', 'rb').read(10)")
        yield attack(f"import os\nos.link({file!r}, 'link')\nreturn open('link', 'rb').read(10)")
    for folder in (str(target.file.parent), "/etc", "/var/tmp"):
        yield attack(f"import os\nos.symlink({folder!r}, 'folder')\nopen('folder/{MARK}', 'w').write('x')\nreturn True")


def tracing() -> Iterator[Program]:
    library = "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)"
    for whom, request in itertools.product(("os.getppid()", "1"), (16, 0x4206)):
        yield attack(f"return library.ptrace({request}, {whom}, None, None) == 0", library)
    for whom in ("os.getppid()", "1"):
        yield attack(
            f"""
            class Part(ctypes.Structure):
                _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
            memory = ctypes.create_string_buffer(64)
            here = Part(ctypes.addressof(memory), 64)
            there = Part(ctypes.addressof(ctypes.c_char.in_dll(library, "environ")), 64)
            return library.process_vm_readv({whom}, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0""",
            library,
        )
        yield attack(f"return open(f'/proc/{{{whom}}}/mem', 'r+b')", library)
        yield attack(f"return os.listdir(f'/proc/{{{whom}}}/fd')", library)
        yield attack(f"return library.pidfd_getfd(os.pidfd_open({whom}), 1, 0) >= 0", library)


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


def shells(target: Target) -> Iterator[Program]:
    for line in (
        f"cat {target.file}",
        "cat /etc/shadow",
        "sleep 100",
        ":(){ :|:& };:",
        "yes",
        "kill -9 -1",
        f"touch /{MARK}",
    ):
        yield attack(f"import os\nreturn os.system({line!r}) == 0")
        yield attack(f"import subprocess\nreturn subprocess.check_output(['/bin/bash', '-c', {line!r}])")
        yield attack(f"import os\nos.execv('/bin/sh', ['sh', '-c', {line!r}])")


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


def limits() -> Iterator[Program]:
    for name in ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "CORE"):
        yield attack(f"""
            import resource
            resource.setrlimit(resource.RLIMIT_{name}, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return True""")
        # what a user may do to the limits of its other processes must not make a wrong answer right
        yield deceive(f"""
import os, resource
resource.prlimit(os.getppid(), resource.RLIMIT_{name}, (1, 1))
{WRONG}""")
    yield attack("import os\nos.nice(-10)\nreturn True")
    yield attack("import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))\nreturn True")


def reads_input() -> Iterator[Program]:
    for read in (
        "input()",
        "sys.stdin.read()",
        "open(0).read()",
        "os.read(0, 10)",
        "open('/dev/tty').read()",
        "open('/dev/stdin').read()",
    ):
        yield attack(f"import os, sys\nreturn {read}")
    yield attack("import fcntl\nfcntl.ioctl(0, 0x5412, b'x')\nreturn True")


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


def privileges() -> Iterator[Program]:
    library = "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)"
    for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000):
        yield attack(f"return library.unshare({flag}) == 0", library)
    for call in (
        "library.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
        "library.mount(b'none', b'/', None, 32, None)",
        "library.umount2(b'/proc', 2)",
        "library.umount2(b'/tmp', 2)",
        "library.chroot(b'/tmp')",
        "library.pivot_root(b'/tmp', b'/tmp')",
        "library.sethostname(b'x', 1)",
        "library.swapoff(b'/swap')",
        "library.settimeofday((ctypes.c_long * 2)(1, 1), None)",
        "library.mknod(b'/tmp/disk', 0o60666, 0xfe00)",
        "library.setns(os.open('/proc/1/ns/mnt', 0), 0)",
        "library.syscall(321, 5, None, 0)",
    ):
        yield attack(f"return {call} == 0", library)
    for setting in ("kernel/randomize_va_space", "vm/overcommit_memory", "kernel/hostname", "net/ipv4/ip_forward"):
        yield attack(f"path = '/proc/sys/{setting}'\nopen(path, 'r+').write(open(path).read())\nreturn True")


def hostile_programs(target: Target) -> list[Hostile]:
    """All of them, kind by kind."""
    kinds: list[tuple[Callable[..., Iterator[Program]], bool]] = [
        (fork_bombs, False),
        (many_threads, False),
        (memory_bombs, False),
        (endless, False),
        (ignored_signals, False),
        (floods, False),
        (full_disks, False),
        (read_files, True),
        (environments, True),
        (kills, False),
        (connections, True),
        (listeners, False),
        (writes_outside, True),
        (links, True),
        (tracing, False),
        (early_ends, False),
        (patches, False),
        (equal_to_all, False),
        (claims, False),
        (searches, False),
        (daemons, False),
        (shells, True),
        (deep, False),
        (slow_patterns, False),
        (crashes, False),
        (exit_hooks, False),
        (limits, False),
        (reads_input, False),
        (bombs, False),
        (privileges, False),
    ]
    return [Hostile(make.__name__, program) for make, aimed in kinds for program in (make(target) if aimed else make())]
