"""A recipe on datatrove's executors: the same documents, the same bytes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_llm.config import ClusterConfig, RecipeConfig, SourceConfig, UserError
from lit_llm.stages.clean_data import clean_data

pytest.importorskip("datatrove")

WORDS = ["the", "naïve", "cat", "sat", "on", "the", "mat", "and", "then", "it", "went", "home", "to", "sleep"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred rows in five files, of which a third are repeated."""
    folder = tmp_path_factory.mktemp("raw")
    for file in range(5):
        texts = [" ".join(WORDS[: 3 + number % 10]) + f" {file % 3} " * 9 for number in range(30)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def recipe(raw: Path, output: Path, **options: Any) -> RecipeConfig:
    return RecipeConfig([SourceConfig(str(raw))], ["exact_documents"], str(output), part_mib=0.005, **options)


def documents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "documents").iterdir())}


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that one process makes."""
    output = tmp_path_factory.mktemp("whole") / "corpus"
    clean_data(recipe(raw, output, num_workers=1))
    return output


@pytest.mark.slow
def test_the_local_executor_with_two_workers_writes_the_same_bytes(
    raw: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = clean_data(recipe(raw, tmp_path / "corpus", num_workers=2, executor="datatrove"))
    assert documents(tmp_path / "corpus") == documents(whole)
    assert corpus.report["corpus"] == json.loads((whole / "report.json").read_text())["corpus"]
    assert 0 < corpus.report["corpus"]["documents"] < corpus.report["sources"][0]["documents"]
    assert not (tmp_path / "corpus" / "work" / "datatrove").exists()
    assert "PIPELINE" not in capfd.readouterr().err  # datatrove's log stays away


FAKES = {
    # An array runs in the background, one task after the other; jobs that wait for another one are never begun.
    "sbatch": """#!/bin/bash
script=$(mktemp) && cp "${@: -1}" "$script"
grep -q "^#SBATCH --dependency" "$script" && echo "Submitted batch job 8" && exit
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
grep -q "^#SBATCH --account=nlp$" "$script" && grep -q "^#SBATCH --partition=cpu$" "$script" || exit 1
(
  for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script"; done >{log} 2>&1
) & echo $! >{pid}
echo "Submitted batch job 7"
""",
    "srun": '#!/bin/bash\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done; exec "$@"\n',
    "launch_pickled_pipeline": '#!/bin/bash\nexec {python} -m datatrove.tools.launch_pickled_pipeline "$@"\n',
    "scontrol": "#!/bin/bash\necho here\n",
    "squeue": "#!/bin/bash\nkill -0 $(cat {pid}) 2>/dev/null && echo 7\nexit 0\n",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of the names of SLURM's, which run the tasks of an array on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKES.items():
        for key, value in (("log", tmp_path / "log"), ("pid", tmp_path / "pid"), ("python", sys.executable)):
            text = text.replace(f"{{{key}}}", str(value))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("lit_llm.data.corpus.recipes.cluster._SECONDS_BETWEEN_LOOKS", 0.1)
    return folder


CLUSTER = ClusterConfig("cpu", tasks=2, sbatch_args={"account": "nlp"})


@pytest.mark.slow
def test_jobs_of_slurm_write_the_same_bytes(raw: Path, whole: Path, tmp_path: Path, slurm: Path) -> None:
    clean_data(recipe(raw, tmp_path / "corpus", executor="datatrove", cluster=CLUSTER))
    assert documents(tmp_path / "corpus") == documents(whole), (tmp_path / "log").read_text()


def test_a_job_that_ends_early_is_a_line(raw: Path, tmp_path: Path, slurm: Path) -> None:
    (slurm / "srun").write_text("#!/bin/bash\nexit 1\n")
    config = recipe(raw, tmp_path / "corpus", executor="datatrove", cluster=CLUSTER)
    with pytest.raises(UserError, match=r"SLURM job 7 has ended, and 2 of its 2 tasks are not done; see .*slurm_logs"):
        clean_data(config)
    config.cluster.sbatch_args = {}
    with pytest.raises(UserError, match=r"sbatch has refused the work of a step \(status 1\)"):
        clean_data(config)
