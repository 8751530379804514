"""Code in README.md and docs that takes long, or needs GPUs, hosts, the hub or images of yours, is run in the small.

`small` has all that is changed: other models, images and machines, and few of them. Every other option stays.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from feature_gan_kd.cli import main
from feature_gan_kd.training.checkpoint_files import list_checkpoints
from tests.export.hub_stand_in import running, typed
from tests.helpers.pages import COMMAND, PAGES, ROOT, Block, blocks, commands
from tests.helpers.stand_ins import CIFAR, cifar100

# So short a run with random weights leaves its discriminators undecided, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:discriminator .* teaches nothing:UserWarning")

RUN = "runs/small"
PUBLISHED = "local-dir:published/0-test_resnet local-dir:published/1-test_vit"
# What a page names, and what stands in for it; of a training all is short, of a launch there are two processes.
STAND_INS = {
    r"\.\./shared/data/(?:cifar100|clothing)|\bDATA\b|\bFOLDER\b": CIFAR,
    r"\S+ \S+ --pretrained": f"{PUBLISHED} --pretrained",
    r"local-dir:weights/\S+ local-dir:weights/\S+": PUBLISHED,
    r"resnet18 resnet34": "test_resnet test_vit",
    r"vit_small_patch16_dinov3\.lvd1689m resnet18": "local-dir:published/0-test_resnet test_vit",
    r"vit_small_patch16_dinov3\.lvd1689m": "local-dir:published/0-test_resnet",
    r'fit\("photos", ': 'fit("photos", epochs=1, batch_size=4, ',
    r"runs/small/networks/1-cifar_resnet8": f"{RUN}/networks/1-test_vit",
    r"predict (hf-hub:\S+|resnet18) ": "predict published/0-test_resnet ",
    r"published/1-test_resnet": "published/0-test_resnet",
    r"--num-classes 1000": "--num-classes 100",
    r"/shared/runs": "runs",
    r"\bRUN\b": RUN,
    r"runs/r18-r34/checkpoints/step-\d+": f"{RUN}/checkpoints/STEP",
    r"(feature.gan.kd train .*)(--output-dir)": r"\1--epochs 1 --batch-size 4 --max-train-samples 8 \2",
    r"(--num_processes|--nproc-per-node) (4|16)": r"\1 2",
    r"8 \* SLURM_NNODES": "SLURM_NNODES",
    r"\bHOST\b": "127.0.0.1",
    # The benchmarks.
    r"(benchmarks\.sweep_.*)": r"\1 --only test_resnet resnet18 --image-size 64",
    r"(benchmarks\.speed)": r"\1 --quick --rounds 1 --rows plain exact",
    r"(benchmarks\.scale)": r"\1 --only models --rounds 1",
    r"--source weights/\S+": "--source published/0-test_resnet",
    r"(?m)(benchmarks\.unlabeled --data .*?)( --arms .*)?$": r"\1 --images 8 --seeds 0 --arms source aligned",
    r"(?m)(benchmarks\.few_labels --data .*?)( --arms .*)$": r"\1 --seeds 0 --arms 'logit, labelled images alone'",
    r"\S+python (-m benchmarks\.mutation) --areas \S+ --count 20": (
        r"python \1 --areas feature_gan_kd/method/topology.py --tests tests/method/test_topology.py --count 1"
    ),
    r" --only( '\S+')+": "",  # which runs these are, tests/docs/test_pages.py and test_results.py look at
    r"--preset (cpu|demo|finetune|scratch)": "--preset smoke --only tiny/logit/0",
    r"--jobs 2": "--jobs 1",
}
LARGE = [
    (page.name, block)
    for page in PAGES
    for block in blocks(page)
    if block.needs or (block.language == "indented" and COMMAND.match(block.code))
]


def small(code: str) -> str:
    """A block as the tests run it, its commands on one line each."""
    code = re.sub(r"\\\n\s*", "", code)
    for named, given in STAND_INS.items():
        code = re.sub(named, given, code)
    return re.sub(r"[\[\]]", "", code) if "[--" in code else code  # with what may be left out


def of(program: str) -> list[object]:
    """The blocks whose first command is of that program."""
    found = [
        pytest.param(block, id=name)
        for name, block in LARGE
        if block.language != "python" and re.match(rf"(\.venv/bin/)?({program})\b", commands(block)[0])
    ]
    assert found
    return list(found)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a run on them, its models and photographs."""
    folder = tmp_path_factory.mktemp("workshop")
    cifar100(folder, train=8, test=4)
    for name in ("photo-1", "photo-2", "holiday/1", *(f"photos/{number}" for number in range(8))):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(folder / f"{name}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / ".cache")
        words = f"train --models test_resnet test_vit --data {CIFAR} --image-size 32 --output-dir {RUN} --license mit"
        main(shlex.split(small(words)))
        main(["export", RUN, "published"])
    return folder


@pytest.fixture
def here(workshop: Path, here: Path) -> Path:
    """A copy of that folder, which is the present one."""
    shutil.copytree(workshop, here, dirs_exist_ok=True)
    return here


@pytest.mark.slow
@pytest.mark.parametrize("block", of("feature-gan-kd"))
def test_a_command(block: Block, here: Path) -> None:
    for command in commands(Block("sh", small(block.code), None)):
        main(shlex.split(command)[1:])
        for folder in re.findall(r"--output-dir (\S+)", command):
            published = [one.name for one in (here / folder / "networks").iterdir()]
            kinds = 1 if "--data photos" in block.code else 2  # photos without labels have no best epoch
            assert sum(not name.endswith("-ema") for name in published) == 2 * kinds


@pytest.mark.slow
@pytest.mark.parametrize("code", [block.code for _, block in LARGE if block.language == "python"])
def test_python_with_a_hub(code: str, here: Path) -> None:
    step = list_checkpoints(here / RUN / "checkpoints")[0].name
    with running() as hub:
        typed(small(code).replace("STEP", step), here, hub.endpoint)
        assert [one.private for one in hub.repositories.values()] == [True] * code.count("push_to_hub")


def shell(script: str, here: Path, **environment: str) -> None:
    """Runs a script with the programs of this environment, on CPUs, in `here`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=here,
        env={**os.environ, **settings, "ACCELERATE_USE_CPU": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr


# Two hosts on this one: each runs the job's command, with a number of its own.
SRUN = """#!/bin/bash
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@" && wait $other
"""


@pytest.mark.slow
@pytest.mark.parametrize("block", of("accelerate|torchrun|export"))
def test_a_launch(block: Block, here: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = small(block.code).replace("29500", str(free.getsockname()[1]))
    if "--machine_rank 0" in script:
        script = f"other() {{ {script.replace('--machine_rank 0', '--machine_rank 1')}\n}}\nother & {script}\nwait $!"
    programs = here / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "here"}
    shell(f'PATH="{programs}:$PATH"\n{script}', here, **slurm)
    folder, *_ = re.findall(r"--output-dir ([\w/.-]+)", script)
    assert len(list((here / folder / "networks").iterdir())) == 4
    assert '"processes": 2' in (here / folder / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("block", of("python"))
def test_a_benchmark(block: Block, here: Path) -> None:
    (here / "benchmarks" / "results").mkdir(parents=True)
    shell(small(block.code), here)


@pytest.mark.parametrize("block", of("make"))
def test_make_knows_the_target(block: Block) -> None:
    """The tests run inside of one: here `make` says what it would do. tests/test_packaging.py installs."""
    for command in commands(block):
        shell(command.replace("make", "make -n", 1), ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("block", of("pytest"))
def test_pytest_finds_the_tests(block: Block) -> None:
    """They are run as what they are: here they are only looked for."""
    for command in commands(block):
        found = shlex.split(command)[1:]
        assert pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *found]) == 0


def test_every_block_is_one_of_these() -> None:
    kinds = r"(\.venv/bin/)?(feature-gan-kd|accelerate|torchrun|export|python|make|pytest)\b|pip install \.$"
    strange = [
        (name, block.code)
        for name, block in LARGE
        if block.language != "python" and not re.match(kinds, commands(block)[0])
    ]
    assert strange == []
