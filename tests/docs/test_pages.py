"""The code in README.md and docs is run, or read by the real parsers where it cannot be; links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import feature_gan_kd
from benchmarks.compare.runs import list_runs
from feature_gan_kd.cli import main
from feature_gan_kd.cli.main import parse
from tests.helpers.launching import launch
from tests.helpers.pages import COMMAND, PAGES, ROOT, Block, blocks, commands

# README.md's blocks need names of the hub: tests/test_readme.py runs them on a cache that it fills.
RUN = {page.name: page for page in PAGES if page.name != "README.md" and any(b.needs is None for b in blocks(page))}
FENCED = ("python", "sh")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_a_page_runs_from_top_to_bottom(name: str, here: Path) -> None:
    for block in blocks(RUN[name]):
        if block.language == "python" and block.needs is None:
            exec(compile(block.code, name, "exec"), {"__name__": "__main__"})
        elif block.language == "sh" and block.needs is None:
            for command in commands(block):
                run(command)


def run(command: str) -> None:
    """Runs a command line of a page in the present folder."""
    environment, words = split(command)
    if words[0] == "feature-gan-kd":
        main(words[1:])
    else:
        assert words[:4] == ["accelerate", "launch", "--multi_gpu", "--num_processes"], command
        launch(int(words[4]), *words[5:], env={**environment, "PYTHONPATH": str(ROOT)}, at=Path())


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """Variables that a command line sets, and its words."""
    words = shlex.split(command)
    variables = [word for word in words if re.match(r"[A-Z_]+=", word)]
    return dict(word.split("=", 1) for word in variables), words[len(variables) :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_read_by_its_parser(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, page.name, "exec")
        elif block.language == "sh" or COMMAND.match(block.code):
            for command in commands(block):
                read(command)


def read(command: str) -> None:
    """Fails for a command line that its program would refuse at once, or that names what is not there."""
    if command.startswith("export "):  # of the shell
        return
    _, (program, *words) = split(re.sub(r"\[[^\]]*\]", "", command))  # without what may be left out
    program = Path(program).name
    if program == "feature-gan-kd":
        # The page makes the run file, which says where the run goes.
        parse(
            [
                "--output-dir=out" if before == "--config" else word
                for before, word in zip(["", *words[:-1]], words, strict=True)
                if word != "--config"
            ]
        )
    elif program == "accelerate":
        read_launch(words[1:])
    elif program == "torchrun":
        read_torchrun(words)
    elif program == "srun":
        read(re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", words[-1]))
    elif program == "pytest":
        assert [word for word in words if "/" in word and not (ROOT / word.split("::")[0]).exists()] == []
    elif program == "python":
        read_benchmark(words)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert [word for word in words if "=" not in word and word not in targets] == []
    else:
        assert (program, words) == ("pip", ["install", "."]), command


def read_launch(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    read_script(launch_command_parser().parse_args(words))


def read_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    read_script(get_args_parser().parse_args(words))


def read_script(launched: object) -> None:
    assert getattr(launched, "module", False)
    assert getattr(launched, "training_script", None) == "feature_gan_kd"
    parse(getattr(launched, "training_script_args", []))


def read_benchmark(words: list[str]) -> None:
    assert words[0] == "-m"
    path = ROOT / words[1].replace(".", "/")
    sources = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else sorted(path.glob("*.py"))
    code = "".join(source.read_text() for source in sources)
    if "arms_parser(" in code:  # its options come from there
        code += (ROOT / "benchmarks" / "arms.py").read_text()
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in code] == []
    if "--only" in words and "--preset" in words:
        named = itertools.takewhile(lambda word: not word.startswith("--"), words[words.index("--only") + 1 :])
        for pattern in named:
            assert list_runs(words[words.index("--preset") + 1], ROOT, [pattern])


def test_the_rule_of_the_blocks_is_kept() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in found} <= {*FENCED, "indented"}
    assert all(block.needs is None or len(block.code.splitlines()) > 1 for block in found)
    assert sum(block.needs is None and block.language in FENCED for block in found) >= 10


@pytest.mark.parametrize(
    "command",
    [
        "feature-gan-kd train --epoch 3 --output-dir runs/x",
        "accelerate launch --num_gpus 4 -m feature_gan_kd train --output-dir runs/x",
        "accelerate launch --num_processes 4 -m feature_gan_kd train --output-dir runs/x --lr fast",
        "pytest tests/test_nothing.py",
        "python -m benchmarks.compare --present cpu",
        "python -m benchmarks.compare --preset cpu --only r14+r14/afd-unheard-of/0",
        "python -m benchmarks.unlabeled --output-folder runs/x",
        "make tea",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        read(command)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> list[str]:
    """The anchors that GitHub and MyST give the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.slow  # and `make check` builds it, too
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` does it."""
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path / "html")]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "html" / "api.html").read_text()
    for name in (name for name in feature_gan_kd.__all__ if name[0].isupper()):
        assert f'id="feature_gan_kd.{name}"' in page, name
    assert 'id="feature_gan_kd.OnlineAdversarialDistiller.training_step"' in page


def test_the_interface_names_only_classes_that_it_documents() -> None:
    """In the docstrings of what the package exports, which are the text of docs/api.md."""
    sources = [ast.parse(path.read_text()) for path in (ROOT / "feature_gan_kd").rglob("*.py")]
    classes = {node.name for source in sources for node in ast.walk(source) if isinstance(node, ast.ClassDef)}
    internal = classes - set(feature_gan_kd.__all__)
    for exported in (getattr(feature_gan_kd, name) for name in feature_gan_kd.__all__ if name[0].isupper()):
        members = [value for name, value in vars(exported).items() if not name.startswith("_")]
        for one in [exported, *members]:
            described = (inspect.getdoc(one) or "") if callable(one) or isinstance(one, property) else ""
            assert set(re.findall(r"\w+", described)) & internal == set(), one


def block(code: str) -> Block:
    return Block("sh", code, None)


def test_lines_that_go_on_are_one_command() -> None:
    assert commands(block("# a comment\na \\\n    b # why\n\nc\n")) == ["a b", "c"]
