"""The pages are true: every command is run by a test, or its section says that it is not."""

from __future__ import annotations

import ast
import functools
import json
import os
import pkgutil
import re
import shlex
import stat
import subprocess
import sys
import time
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from helpers import COLOURS, CUT, draw

from dtl import config
from dtl.config import RETIRED
from dtl.features.network.files import declaration
from dtl.pipeline import command_line, commands
from dtl.pipeline.arguments import parse_arguments

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(path for folder in ("dtl", "deploy", "examples") for path in (ROOT / folder).rglob("*.md")),
]
SELF = "tests/test_pages.py"
NOT_RUN = "not run by our tests"

HERE = {
    "dtl run --images photos --out results": CUT,
    "dtl pack --images photos --out photos-tars": [],
    "dtl featurize --images photos --out results": CUT,
    "dtl train --out results --train.learning-rate 0.01": [],
    "dtl evaluate --out results": [],
    "dtl report --out results": [],
    "dtl predict --model results --images new_photos --out predictions.parquet": [],
    "dtl predict --model results --images new_photos --out sure.parquet --coverage 0.95 "
    "--max-error 0.05": ["--coverage", "0.9", "--max-error", "0.3"],  # few images validate
    "dtl tune --out results --tune.learning-rates 0.003,0.01,0.03": [],
    "dtl train --out results --config results/tuned.toml": [],
    "dtl train --out results --train.solver lbfgs": [],
    "dtl train --out results --train.normalize sqrt-l2 --train.l2 0.1": [],
    "dtl run --images photos --out views --features.layers block5_pool --features.pooling avg,max "
    "--features.views 224,320 --train.normalize sqrt-l2 --train.solver lbfgs": CUT,
    "dtl compare --out results": ["--compare.shards", "1,2"],
    "dtl train --out results --train.n-shards 2 --train.batch-size 256 --train.learning-rate 0.07 "
    "--train.epochs 2 --train.averaging-frequency 5": [],
    "dtl summary --features.network ResNet50 --features.layers avg_pool": [],
}
"""Commands that `test_the_commands_of_a_page_run` runs, with options that make them quick."""

HDFS, YARN = "tests/hadoop/test_hdfs.py", "tests/hadoop/test_on_yarn.py"
MINICLUSTER = "tests/hadoop/test_minicluster.py"
ELSEWHERE = {
    "make demo": f"{SELF}::test_make_demo_runs_the_demo",
    "make check": f"{SELF}::test_make_has_what_the_page_names",
    "make test": ".ci/run",
    "make bench": f"{SELF}::test_make_has_what_the_page_names",
    "make chaos": f"{SELF}::test_make_has_what_the_page_names",
    "make fuzz": f"{SELF}::test_make_has_what_the_page_names",
    "python examples/stages.py photos stages": f"{SELF}::test_the_stages_example_runs",
    "dtl fetch caltech256 --to hdfs:///data/caltech256":
        "tests/images/test_fetching.py::test_straight_to_hdfs",
    "dtl check --out results":
        "tests/pipeline/test_checking.py::test_wrong_labels_are_corrected_and_no_feature_is_computed_again",
    "dtl run --images photos --images.labels results/relabel.csv --out results":
        "tests/pipeline/test_checking.py::test_wrong_labels_are_corrected_and_no_feature_is_computed_again",
    "dtl run --images photos --images.labels labels.csv --out results":
        "tests/pipeline/test_run_with_labels.py::test_a_table_gives_the_bytes_of_the_folders",
    "dtl featurize --images photos --out early --features.layers fc1":
        "tests/features/test_derivation.py::test_fc1_becomes_fc2_and_predictions_bit_for_bit",
    "dtl doctor --images photos --out results":
        "tests/pipeline/test_doctor.py::test_nothing_is_found_where_nothing_is_wrong",
    "dtl run --images photos --out results --dry-run":
        "tests/pipeline/test_forecast.py::test_a_dry_run_changes_nothing",
    "dtl probe --out results": "tests/pipeline/test_neighbours.py::test_a_probe_is_done_once",
    "dtl similar new.jpg --model results":
        "tests/pipeline/test_neighbours.py::test_the_nearest_images_as_lines_and_as_a_page",
    "dtl run --images photos --out results --images.labels labels.csv --images.unlabelled keep":
        "tests/pipeline/test_suggest.py"
        "::test_labels_come_back_without_features_computed_again",
    "dtl report results --occlusion":
        "tests/pipeline/test_side_by_side.py::test_where_the_decision_lies",
    "dtl report results unit-length":
        "tests/pipeline/test_side_by_side.py::test_two_runs_on_the_same_images",
    "dtl suggest --out results --n 100":
        "tests/pipeline/test_suggest.py"
        "::test_labels_come_back_without_features_computed_again",
    "dtl compact --model results --out compacted":
        "tests/features/test_growth.py::test_a_compacted_store_has_the_files_of_a_fresh_one",
    "dtl derive --model early --out later --features.layers fc2,predictions":
        "tests/features/test_derivation.py::test_the_command",
    "dtl train --out later --train.layer fc2":
        "tests/features/test_derivation.py::test_the_command",
    "dtl train --out early --train.layer fc1 --train.hidden-units 4096 "
    "--train.hidden-start network --train.dropout 0.5 --train.l2 0.0001 "
    "--train.learning-rate 0.005 --train.averaging-frequency 50":
        "tests/training/test_initialisation.py"
        "::test_learns_from_there_to_the_same_bits_in_worker_processes",
    "dtl run --images caltech256 --out results --features.layers block5_pool --features.weights "
    "vgg16_imagenet_conv.npz --split.train 0.6 --split.validation 0.15 --split.test 0.25":
        "tests/pipeline/test_commands.py::test_real_photographs_to_a_real_classifier",
    "dtl run --images photos --out results --features.engine openvino --features.precision int8":
        "tests/features/test_converted.py"
        "::test_int8_of_several_workers_one_of_which_is_killed",
    "dtl export --model results --out classifier.onnx":
        "tests/pipeline/test_export.py::test_a_classifier_is_used_as_its_card_says",
    # Slurm
    "mkdir -p ~/.config/dask": f"{SELF}::test_what_slurm_runs",
    "openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj /CN=dtl "
    "-keyout ~/.config/dask/dtl.key -out ~/.config/dask/dtl.crt":
        f"{SELF}::test_what_slurm_runs",
    'sbatch --wrap "dask scheduler --no-dashboard --scheduler-file $HOME/dask.json"':
        f"{SELF}::test_what_slurm_runs",
    "sbatch --array 1-8 --cpus-per-task 4 --mem 6G --wrap "
    '"dask worker --scheduler-file $HOME/dask.json --nthreads 4 --memory-limit 6GiB"':
        f"{SELF}::test_what_slurm_runs",
    "dtl run --images photos --out results --cluster "
    """$(python -c "import json; print(json.load(open('$HOME/dask.json'))['address'])")""":
        f"{SELF}::test_what_slurm_runs",
    # HDFS
    "dtl run --images hdfs:///data/photos --out hdfs:///user/me/results":
        f"{HDFS}::test_a_whole_run_from_hdfs_to_hdfs",
    "dtl run --images $HDFS_URL/tmp/photos --out $HDFS_URL/tmp/results":
        f"{HDFS}::test_a_whole_run_from_hdfs_to_hdfs",
    "hdfs dfs -put photos /tmp/photos": f"{MINICLUSTER}::test_the_launcher_puts_and_gets_files",
    "hdfs dfs -ls /tmp/results": f"{MINICLUSTER}::test_the_launcher_puts_and_gets_files",
    "yarn application -list": f"{MINICLUSTER}::test_an_application_runs_java_in_its_containers",
    **dict.fromkeys(
        (
            "python deploy/hadoop/minicluster.py start",
            "python deploy/hadoop/minicluster.py status",
            "python deploy/hadoop/minicluster.py stop",
            "python deploy/hadoop/minicluster.py kill datanode-0",
            "python deploy/hadoop/minicluster.py run --no-yarn -- sh -c 'hdfs dfs -ls $HDFS_URL/'",
        ),
        f"{MINICLUSTER}::test_the_command_line_starts_keeps_and_stops",
    ),
    "python deploy/hadoop/minicluster.py restart namenode":
        f"{MINICLUSTER}::test_the_namenode_comes_back_with_its_files",
    # YARN
    "dtl pack-environment --out hdfs:///user/me/dtl-env.tar":
        f"{YARN}::test_driver_killed_with_a_packed_environment",
    "dtl run --cluster yarn --yarn.environment hdfs:///user/me/dtl-env.tar "
    "--images hdfs:///data/photos --out hdfs:///user/me/results --cluster.n-workers 8":
        f"{YARN}::test_real_photographs_and_a_worker_container_killed",
    "id=$(dtl submit --yarn.environment hdfs:///user/me/dtl-env.tar "
    "--images hdfs:///data/photos --out hdfs:///user/me/results --cluster.n-workers 8)":
        f"{YARN}::test_submit_status_logs",
    "dtl status $id": f"{YARN}::test_submitted_and_killed_or_for_nothing",
    "dtl logs $id": f"{YARN}::test_submit_status_logs",
    "dtl kill $id": f"{YARN}::test_submitted_and_killed_or_for_nothing",
    "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.[yarn]'":
        "Makefile",
}  # fmt: skip
"""Commands that other tests run with folders of their own, and where those tests are."""

SETS_UP = ("export ", "source ", ". ")
"""Beginnings of commands that only change the shell."""

SNIPPETS = {
    "featurization.featurize(": f"{SELF}::test_the_notebook_runs",
    "make_bag(": f"{SELF}::test_the_bag_runs",
    "from dtl import SoftmaxRegression": f"{SELF}::test_the_scikit_learn_example_runs",
    "xarray.open_zarr(": f"{HDFS}::test_a_whole_run_from_hdfs_to_hdfs",
    "with MiniCluster(":
        f"{MINICLUSTER}::test_a_second_start_needs_no_maven_and_stop_leaves_nothing",
}  # fmt: skip
"""Python in the pages, by a text that is in it, and the tests that run it."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    section: str
    """All text between the headings around it."""

    @property
    def is_run(self) -> bool:
        return NOT_RUN not in " ".join(self.section.lower().split())

    def commands(self) -> list[str]:
        """Commands without comments, each on one line with single blanks."""
        lines = self.text.replace("\\\n", " ").splitlines()
        without_comments = (re.sub(r"(^|\s{2,})#.*", "", line) for line in lines)
        return [" ".join(line.split()) for line in without_comments if line.strip()]


@functools.cache
def blocks() -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        text = page.read_text()
        fences = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S))
        # In a block a `#` begins a comment, and no heading.
        prose = re.sub(r"^```.*?^```$", lambda m: "." * len(m[0]), text, flags=re.M | re.S)
        headings = [match.start() for match in re.finditer(r"^#+ ", prose, re.M)]
        for fence in fences:
            start = max((h for h in headings if h < fence.start()), default=0)
            end = min((h for h in headings if h > fence.start()), default=len(text))
            found.append(Block(page, fence[1], fence[2], prose[start:end]))
    return found


def commands_of(page: Path) -> list[str]:
    return [c for b in blocks() if b.page == page and b.language == "sh" for c in b.commands()]


def in_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code(snippet: str) -> str:
    """The Python in the pages that has this text in it."""
    [block] = [b for b in blocks() if b.language == "python" and snippet in b.text]
    return block.text


def exists(test: str) -> bool:
    file, _, name = test.partition("::")
    return (ROOT / file).exists() and (not name or f"def {name}(" in (ROOT / file).read_text())


# --- what the pages show ------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8192


@pytest.mark.parametrize("page", PAGES, ids=in_page)
def test_code_is_fenced_and_says_its_language(page: Path) -> None:
    text = page.read_text()
    assert text.count("\n```") % 2 == 0
    assert {b.language for b in blocks() if b.page == page} <= {"sh", "python", "toml", "text"}
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert not re.search(r"^\n {4}", outside, re.M)


def test_every_command_is_run_by_a_test_or_said_not_to_be() -> None:
    shown = {c: b for b in blocks() if b.language == "sh" for c in b.commands()}
    run = {c for c, b in shown.items() if b.is_run and not c.startswith(SETS_UP)}
    known = HERE.keys() | ELSEWHERE.keys()
    assert run - known == set(), "no test runs these"
    # Those of a section that says so may be run by a test nevertheless.
    assert known - shown.keys() == set(), "no page shows these"
    assert HERE.keys() & ELSEWHERE.keys() == set()
    for test in {*ELSEWHERE.values(), *SNIPPETS.values()}:
        assert exists(test), test


def test_every_python_snippet_is_run_by_a_test() -> None:
    snippets = [b.text for b in blocks() if b.language == "python"]
    for text in snippets:
        assert sum(known in text for known in SNIPPETS) == 1, text
        imports = [
            statement for statement in ast.parse(text).body
            if isinstance(statement, ast.Import | ast.ImportFrom)
        ]  # fmt: skip
        exec(compile(ast.Module(imports, []), "page", "exec"), {})
    assert len(snippets) == len(SNIPPETS)


@pytest.mark.parametrize(
    "command", sorted({c for page in PAGES for c in commands_of(page) if "dtl " in c})
)
def test_the_command_line_takes_every_command(command: str) -> None:
    """Those too that only a cluster can run."""
    if found := re.search(
        r"(?:^|\$\(|-- )dtl (.*?)(?:\)?)$", re.sub(r"\$\(python .*", "x", command)
    ):
        parse_arguments(shlex.split(found[1]))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "OPTIONS.md"], ids=in_page)
def test_every_option_in_the_text_exists(page: Path) -> None:
    known = {option.flag for option in config.list_options()}
    # Of `dtl` and its commands, of minicluster.py, of Slurm, and of `dask scheduler`.
    known |= {"--config", "--debug", "--help", "--help-all", "--model", "--wait"}
    known |= {"--to", "--from", "--md5", "--scratch", "--layout", "--coverage", "--max-error"}
    known |= {"--keep", "--dir", "--port", "--yarn-memory-mb", "--yarn-vcores", "--no-memory-check"}
    known |= {"--wrap", "--dashboard-address", "--no-dashboard", "--page", "--occlusion"}
    known |= {"--layers", "--normalisations", "--format", "--unchecked", "--plot"}
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    used = re.findall(r"(?<![\w-])(--[a-z][\w.-]*\w)", text)
    # `--train.*` stands for a section.
    assert [
        name for name in used if not any(k == name or k.startswith(f"{name}.") for k in known)
    ] == []


def test_every_command_of_dtl_is_in_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name in commands.COMMANDS:
        assert f"dtl {name}" in text or f"`{name}`" in text or f"make {name}" in text, name


def test_names_of_code_in_the_page_about_it_exist() -> None:
    page = ROOT / "dtl" / "README.md"
    folders = "|".join(path.name for path in page.parent.iterdir() if path.is_dir())
    keys = {option.key for option in config.list_options()}
    retired = {f"{section}.{name}" for section, table in RETIRED.items() for name in table}
    text = page.read_text()
    named = set(re.findall(rf"`((?:{folders})(?:\.\w+)+)`", text))
    assert {key for key in retired if f"`{key}`" not in text} == set(), "not in the changelog"
    assert {name for name in named - keys - retired if not resolves(f"dtl.{name}")} == set()


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    kept = ("".join(c for c in h.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
            for h in headings)  # fmt: skip
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=in_page)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "toml"],
                         ids=lambda b: in_page(b.page))  # fmt: skip
def test_toml_in_pages_is_a_configuration(block: Block) -> None:
    if "deviation" in block.text:
        assert block.text == declaration.EXAMPLE
        return
    assert config.build(tomllib.loads(block.text)) != config.build({})


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_example_configurations_are_valid(path: Path) -> None:
    assert config.build(tomllib.loads(path.read_text())) != config.build({})


# --- running it ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, for commands to be typed in."""
    made = tmp_path_factory.mktemp("pages")
    draw(made / "photos", COLOURS, 16)
    draw(made / "new_photos", COLOURS, 1)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if HERE.keys() & set(commands_of(p))], ids=in_page
)
def test_the_commands_of_a_page_run(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the page, after README's first command."""
    monkeypatch.chdir(folder)
    for command in ["dtl run --images photos --out results", *commands_of(page)]:
        if command in HERE:
            options = HERE[command]
            if not command.startswith("dtl summary"):
                options = [*options, "--cluster.processes", "false"]
            words = shlex.split(command)[1:]
            assert command_line.main([*words, *options]) == 0, command
            if words[0] in ("run", "report"):
                assert Path(words[words.index("--out") + 1], "report.html").exists()


def dry_run(target: str) -> subprocess.CompletedProcess[str]:
    """Ask make what it would do, as a user would: a make above (`make test`) sets its own flags."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )


def test_make_demo_runs_the_demo() -> None:
    """Only what make would do; tests/pipeline runs the demo."""
    done = dry_run("demo")
    assert re.search(r"bin/(dtl|python -m dtl\.pipeline) demo$", done.stdout.strip()), done


def test_make_has_what_the_page_names() -> None:
    for target in re.findall(r"^make (\w+)", "\n".join(commands_of(ROOT / "README.md")), re.M):
        assert dry_run(target).returncode == 0, target


@pytest.mark.slow
def test_the_stages_example_runs(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "stages.py", folder / "photos", tmp_path / "out",
         "block1_pool", "random"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "48 images" in done.stdout
    assert "first image: " in done.stdout


@pytest.mark.slow
def test_the_scikit_learn_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code("from dtl import SoftmaxRegression")],
        capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a scheduler with one worker."""
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", memory_limit=0,
        dashboard_address=":0",
    ) as running:  # fmt: skip
        yield running.scheduler_address


def run_snippet(snippet: str, here: dict[str, str]) -> dict[str, Any]:
    """Run Python of a page with other texts in place of some."""
    text = code(snippet)
    for shown, other in here.items():
        assert shown in text
        text = text.replace(shown, other)
    names: dict[str, Any] = {}
    try:
        exec(text, names)
    finally:
        if "client" in names:
            names["client"].close()
    return names


def test_the_notebook_runs(scheduler: str, folder: Path, tmp_path: Path) -> None:
    here = {
        "tls://scheduler:8786": scheduler,
        "hdfs:///data/photos": str(folder / "photos"),
        '"layers": ["fc2"]': '"layers": ["block1_pool"], "weights": "random"',
        '"fc2"': '"block1_pool"',
        "hdfs:///user/me": str(tmp_path),
    }
    names = run_snippet("featurization.featurize(", here)
    assert names["scores"].scores["test"].accuracy > 0.9


def test_the_bag_runs(scheduler: str, folder: Path) -> None:
    here = {"tls://scheduler:8786": scheduler, "hdfs:///data/photos": str(folder / "photos")}
    brightness = run_snippet("make_bag(", here)["brightness"]
    assert len(brightness) == 48
    assert all(path.endswith(".jpg") and 0 < mean < 255 for path, mean in brightness)


@pytest.mark.slow
def test_what_slurm_runs(folder: Path, tmp_path: Path) -> None:
    """A certificate, a scheduler and a worker that have it, and the driver that finds them."""
    [scheduler, worker] = [c for c in ELSEWHERE if c.startswith("sbatch")]
    [driver] = [c for c in ELSEWHERE if "dask.json" in c and c.startswith("dtl")]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"HOME": str(tmp_path), "PATH": programs}
    for certificate in (c for c in ELSEWHERE if c.startswith(("mkdir", "openssl"))):
        made = ["sh", "-c", certificate]
        subprocess.run(made, env=environment, check=True, capture_output=True)
    folder_of_dask = tmp_path / ".config" / "dask"
    assert stat.S_IMODE((folder_of_dask / "dtl.key").stat().st_mode) == 0o600
    [yaml] = [b.text for b in blocks() if b.language == "text" and "require-encryption" in b.text]
    (folder_of_dask / "dtl.yaml").write_text(yaml.replace("/home/me", str(tmp_path)))

    def start(sbatch: str, *options: str) -> subprocess.Popen[bytes]:
        wrapped = shlex.split(sbatch)[-1].replace("$HOME", str(tmp_path))
        return subprocess.Popen(
            [*shlex.split(wrapped), *options], cwd=tmp_path, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    local = ("--port", "0", "--host", "127.0.0.1")
    jobs = [start(scheduler, *local)]
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "dask.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        jobs.append(start(worker, "--no-dashboard"))
        typed = driver.replace("dtl ", f"{sys.executable} -m dtl.pipeline ", 1)
        typed = typed.replace("--out results", f"--out {tmp_path}/results")
        done = subprocess.run(
            ["sh", "-c", f"{typed} {shlex.join(CUT)}"], cwd=folder, env=environment,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "results" / "report.html").exists()
        address = json.loads((tmp_path / "dask.json").read_text())["address"]
        assert address.startswith("tls://")
        assert "not encrypted" not in done.stderr
    finally:
        for job in jobs:
            job.terminate()
            job.wait(30)
