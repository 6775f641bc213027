"""Programs that reach for what is outside: files, environments, processes, the network, privileges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from hostile_forms import MARK, PORTS, WRONG, Target, attack, deceive

from lit_llm.evaluation.sandbox import Program


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
