"""The files for deployment: the commands in them exist and take these options, and nothing in them has gone stale."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from lit_llm.cli.parsing import parse
from lit_llm.config import ServeConfig

FOLDER = ROOT / "experiments" / "deploy"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, with their continuation lines."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def setup() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def served(words: list[str]) -> ServeConfig:
    """What the command lit-llm serve makes of these words."""
    assert words[:2] == ["lit-llm", "serve"]
    return parse(ServeConfig, words[2:])


def test_the_image(instructions: list[tuple[str, str]]) -> None:
    of = {name: [rest for each, rest in instructions if each == name] for name, _ in instructions}
    torch = next(line for line in setup()["options"]["install_requires"].split("\n") if line.startswith("torch>"))
    assert of["RUN"][1].count(f'pip install "{torch}"') == 2
    extras = re.search(r"\.\[([\w,]+)\]", of["RUN"][2])
    assert extras is not None
    assert set(extras[1].split(",")) <= set(setup()["options.extras_require"])
    for copied in of["COPY"][:2]:
        *sources, _ = copied.split()
        assert all((ROOT / source).exists() for source in sources), copied
        ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
        assert all(f"!{source}" in ignored for source in sources), copied
    python = tuple(map(int, of["ARG"][0].removeprefix("PYTHON=").split(".")))
    assert (3, 11) <= python < (3, 14)
    names = [name for name, _ in instructions]
    assert names.index("USER") > names.index("FROM", 2) and of["USER"] == ["10001"]  # and nothing is root after that
    assert "/health" in of["HEALTHCHECK"][0]
    config = served(json.loads(of["ENTRYPOINT"][0]))
    assert (config.host, str(config.port), config.model) == ("0.0.0.0", of["EXPOSE"][0], "/model")


def test_the_health_check_is_python(instructions: list[tuple[str, str]]) -> None:
    text = next(rest for name, rest in instructions if name == "HEALTHCHECK")
    program = json.loads(text[text.index("[") :])
    assert program[:2] == ["python", "-c"]
    compile(program[2], "the health check", "exec")


def test_the_services(instructions: list[tuple[str, str]], compose: dict[str, Any]) -> None:
    serve, prometheus = compose["services"]["serve"], compose["services"]["prometheus"]
    assert (FOLDER / serve["build"]["context"]).resolve() == ROOT
    assert (ROOT / serve["build"]["dockerfile"]).is_file()
    entry = json.loads(next(rest for name, rest in instructions if name == "ENTRYPOINT"))
    config = served([*entry, *(word.replace("${NAME:-model}", "model") for word in serve["command"])])
    assert config.api_key_file == f"/run/secrets/{serve['secrets'][0]}"
    assert serve["volumes"][0]["target"] == config.model and serve["volumes"][0]["read_only"]
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"][0]
    host, _, port = scraped["static_configs"][0]["targets"][0].partition(":")
    assert host in compose["services"] and host in config.allowed_hosts and int(port) == config.port
    assert (FOLDER / prometheus["volumes"][0].partition(":")[0]).is_file()
    for service in (serve, prometheus):
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_unit() -> None:
    unit = (FOLDER / "lit-llm.service").read_text()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    words = shlex.split(command.removeprefix("ExecStart=/opt/lit_llm/bin/").removesuffix(" $OPTIONS"))
    assert served(words).host == "127.0.0.1"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        pytest.skip("there is no systemd here")
    unit = tmp_path / "lit-llm.service"
    text = (FOLDER / "lit-llm.service").read_text()
    unit.write_text(text.replace("/opt/lit_llm/bin/lit-llm", "/bin/true"))  # which has to be there
    done = subprocess.run([systemd, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "lit-llm.service" not in done.stderr, done.stderr
    unit.write_text(text.replace("/opt/lit_llm/bin/lit-llm", "/bin/true").replace("ProtectHome=yes", "ProtectHome=x"))
    done = subprocess.run([systemd, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "Failed to parse protect home" in done.stderr  # it does look
    score = subprocess.run(
        [systemd, "security", "--offline=true", "--no-pager", FOLDER / "lit-llm.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for lit-llm.service: ([\d.]+)", score.stdout)
    assert found is not None and float(found[1]) < 3.0, score.stdout[-500:] + score.stderr
