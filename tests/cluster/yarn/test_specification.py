"""The specification that YARN is handed, from the options of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dtl import config
from dtl.cluster.yarn import specification

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_choice_of_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in specification._ARITHMETIC:
        monkeypatch.delenv(name, raising=False)


def test_containers_compute_with_the_instructions_of_the_driver(
    conf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bits follow from them; a container does not inherit what this process was given."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    wanted = config.build({})
    made = specification.make_specification(wanted.cluster, wanted.yarn, str(conf_dir))
    assert made.services["dask.worker"].env["OPENBLAS_CORETYPE"] == "Haswell"


def test_the_specification_shown_is_what_the_code_makes(conf_dir: Path) -> None:
    wanted = config.build(
        {
            "cluster": {"n_workers": 4},
            "yarn": {"environment": "hdfs:///user/me/dtl-env.tar", "env": ["A=1"]},
        }
    )
    made = specification.make_specification(
        wanted.cluster,
        wanted.yarn,
        str(conf_dir),
        driver=["run", "--config", "dtl.toml"],
        driver_files=["/tmp/dtl.toml"],
    )
    text = made.to_yaml().replace(str(conf_dir), "/etc/hadoop/conf")
    shown = (ROOT / "deploy" / "yarn" / "specification.yaml").read_text()
    comment = "".join(line for line in shown.splitlines(True) if line.startswith("#"))
    assert shown == comment + text, f"write {comment + text!r}"


def test_options_reach_the_specification(conf_dir: Path) -> None:
    wanted = config.build(
        {
            "cluster": {"n_workers": 2, "threads_per_worker": 3, "memory_limit": "5GiB"},
            "yarn": {
                "name": "n", "queue": "q", "node_label": "l", "environment": "/opt/my env/",
                "worker_memory": "6 GiB", "worker_vcores": 4, "worker_gpus": 1,
                "adaptive_max": 5, "env": ["B=x=y", "TF_NUM_INTRAOP_THREADS=7"],
                "files": ["hdfs:///a/weights.h5"],
            },
        }
    )  # fmt: skip
    made = specification.make_specification(
        wanted.cluster, wanted.yarn, str(conf_dir), file_systems=["hdfs://b"]
    )
    assert (made.name, made.queue, made.node_label) == ("n", "q", "l")
    assert made.file_systems == ["hdfs://b"]
    assert set(made.services) == {"dask.scheduler", "dask.worker"}
    worker, scheduler = made.services["dask.worker"], made.services["dask.scheduler"]
    assert (worker.resources.memory, worker.resources.vcores, worker.resources.gpus) == (6144, 4, 1)
    assert worker.instances == 2
    assert worker.max_restarts == -1
    assert worker.depends == {"dask.scheduler"}
    assert worker.env["TF_NUM_INTRAOP_THREADS"] == "7"  # the user's own wins
    assert worker.env["B"] == "x=y"
    assert worker.env["OMP_NUM_THREADS"] == "1"  # as Dask's nanny has it
    assert set(worker.files) == {"core-site.xml", "hdfs-site.xml", "weights.h5"}
    assert "--nthreads 3" in worker.script
    assert f"--memory-limit {5 << 30}" in worker.script
    assert "'/opt/my env/bin/python'" in worker.script
    assert "--min-workers 2 --max-workers 5" in scheduler.script


def test_the_running_environment_is_the_default(conf_dir: Path) -> None:
    wanted = config.build({})
    made = specification.make_specification(wanted.cluster, wanted.yarn, str(conf_dir))
    assert f"exec {sys.prefix}/bin/python -m" in made.services["dask.worker"].script
    assert made.services["dask.worker"].env["TF_NUM_INTRAOP_THREADS"] == "2"  # its vcores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker_memory": "4"}, r"yarn\.worker_memory must be .*such as 4GiB. Received: '4'"),
        (
            {"env": ["A"]},
            r"yarn\.env must be texts of the form NAME=VALUE. Received: \('\*\*\*',\)",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build({"yarn": options})


def test_values_that_no_file_keeps_are_asked_for_again(conf_dir: Path) -> None:
    stored = config.build(config.hide_options({"yarn": {"env": ["A=secret", "B=x"]}}))
    message = r"`yarn\.env` lacks the values of A, B, which no file of a run keeps\. Give all of it"
    with pytest.raises(ValueError, match=message):
        specification.make_specification(stored.cluster, stored.yarn, str(conf_dir))
