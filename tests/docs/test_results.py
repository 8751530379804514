"""The tables of docs/results.md are those of the committed records."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import few_labels, unlabeled
from benchmarks.arms import read_results
from benchmarks.compare.differences import paired_difference
from benchmarks.compare.results import collect
from benchmarks.compare.runs import list_runs
from benchmarks.compare.tables import markdown
from feature_gan_kd.config.distill_config import DistillConfig

ROOT = Path(__file__).parents[2]


def test_cifar100_table() -> None:
    folder = ROOT / "benchmarks" / "results" / "cifar100-r20-r32-15-epochs"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if record["event"] == "epoch"]
    page = (ROOT / "docs" / "results.md").read_text()
    last = epochs[-1]
    rows = [[epoch["metrics"][f"eval/accuracy/{of}"] for epoch in epochs] for of in ("0", "1", "ensemble")]
    titles = ["ResNet-20 (278,324 parameters)", "ResNet-32 (472,756 parameters)", "ensemble (mean of the logits)"]
    for title, values in zip(titles, rows, strict=True):
        best = max(values)
        assert f"| {title} | {values[-1]:.2f} | {best:.2f} ({values.index(best) + 1}) |" in page
    assert len(epochs) == 15
    assert last["step"] == 5865
    assert last["metrics"]["eval/images"] == 10_000
    assert f"{sum(epoch['seconds'] for epoch in epochs):,.0f} s with evaluation" in page
    about = json.loads((folder / "config.json").read_text())
    assert DistillConfig.from_dict(about["config"]).scale_adversarial_lr is True
    assert " % and ".join(f"{row[2]:.2f}" for row in rows[:2]) + " % after three" in page


@pytest.mark.parametrize("folder", ["compare", "decay", "demo", "finetune", "recipe", "scratch"])
def test_tables_of_the_comparison(folder: str) -> None:
    """They are those that the command makes of the committed result files."""
    page = (ROOT / "docs" / "results.md").read_text()
    command = f"python -m benchmarks.compare --tabulate benchmarks/results/{folder} --markdown"
    _, _, rest = page.partition(f"<!-- tables: {command} -->\n\n")
    shown, _, _ = rest.partition("\n<!-- end of tables -->")
    comparisons, left_out = collect(ROOT / "benchmarks" / "results" / folder)
    assert left_out == []
    assert shown == markdown(comparisons, [])


def test_the_command_of_the_weight_decay_names_its_runs() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    command = re.search(r"--only((?: 'r14\S+'){4})\n", page)
    assert command is not None
    patterns = re.findall(r"'(\S+)'", command[1])
    named = {f"{run.pair}-{run.method}" for run in list_runs("cpu", ROOT, patterns)}
    shown = {path.stem.rpartition("-")[0] for path in (ROOT / "benchmarks" / "results" / "decay" / "cpu").iterdir()}
    assert named == shown


ANSWERS = (
    *("afd", "afd-least-squares", "afd-group-norm", "afd-narrow-discriminator", "afd-rare-discriminator"),
    *("afd-no-decay", "afd-adamw", "afd-slow-discriminator", "afd-joint-backward"),
)


@pytest.mark.parametrize("method", ANSWERS)
def test_answers_of_the_discriminators(method: str) -> None:
    """The mean answers of the last epoch, and the accuracy of the same runs."""
    folder = ROOT / "benchmarks" / "results" / "compare" / "cpu"
    runs = sorted(folder.glob(f"r14+r14-{method}-[0-9].json"))
    epochs = [json.loads(run.read_text())["epochs"][-1] for run in runs]
    real, fake = (
        statistics.mean(value for epoch in epochs for key, value in epoch["metrics"].items() if key.startswith(kind))
        for kind in ("train/real/", "train/fake/")
    )
    accuracy = statistics.mean(epoch["metrics"][f"eval/accuracy/{k}"] for epoch in epochs for k in (0, 1))
    row = f"| {method} | {len(epochs)} | {real:.2f} | {fake:.2f} | {accuracy:.2f} |"
    assert row in (ROOT / "docs" / "results.md").read_text()


Whose = int | str | None
"""A model's position, `ensemble`, or None for the mean of both models."""


def accuracies(pair: str, method: str, whose: Whose = None, results: str = "compare/cpu") -> dict[int, float]:
    """The accuracies after the last epoch, by seed."""
    found = {}
    for path in (ROOT / "benchmarks" / "results" / results).glob(f"{pair}-{method}-[0-9].json"):
        run = json.loads(path.read_text())
        last = {key.rpartition("/")[2]: v for key, v in run["epochs"][-1]["metrics"].items() if "eval/accuracy/" in key}
        found[run["seed"]] = statistics.fmean((last["0"], last["1"])) if whose is None else last[str(whose)]
    return found


def difference(pair: str, ours: str, theirs: str, whose: Whose = None, results: str = "compare/cpu") -> str:
    """The difference of two methods after the last epoch, paired by seed."""
    one = paired_difference(*(accuracies(pair, method, whose, results) for method in (ours, theirs)))
    assert one is not None
    mean, half = one.mean, one.half_width
    values = [mean] if half is None else [mean, mean - half, mean + half]
    first, *interval = [f"{round(value, 1) + 0.0:+.1f}" for value in values]
    return f"{first} [{', '.join(interval)}]" if interval else first


@pytest.mark.parametrize("method", ["logit", "afd", "zero-gradient", "l1"])
def test_what_to_use(method: str) -> None:
    """The first table says what each method gains over training each model alone."""
    page = (ROOT / "docs" / "results.md").read_text()
    cells = [difference(pair, method, "vanilla") for pair in ("r14+r14", "r8+r20")]
    if method in ("logit", "afd"):
        cells.append(difference("lite0+lite2", method, "vanilla", results="finetune/finetune"))
    row = next(line for line in page.splitlines() if line.startswith(f"| `--method {method}`"))
    assert f" | {' | '.join(cells)} | " in row


def test_fine_tuning() -> None:
    """The short table and the sentences below it."""
    page = (ROOT / "docs" / "results.md").read_text()
    text, results = " ".join(page.split()), "finetune/finetune"
    rows = [
        ("`vanilla`: each model alone", "vanilla"),
        ("`logit`", "logit"),
        ("`afd`", "afd"),
    ]
    for title, method in rows:
        own = accuracies("lite0+lite2", method, results=results)
        gain = "" if method == "vanilla" else difference("lite0+lite2", method, "vanilla", results=results) + " "
        assert f"| {title} | {len(own)} | {statistics.fmean(own.values()):.1f} | {gain}|" in page

    def above(whose: Whose = None) -> str:
        return difference("lite0+lite2", "afd", "logit", whose, results)

    assert f"`afd` is {above()} against `logit` over eight seeds" in text
    assert (
        f"`afd` is {above()} for both models, {above(1)} for Lite 2, and {above('ensemble')} for the ensemble" in text
    )
    control, logit = (accuracies("lite0+lite2", method, results=results) for method in ("zero-gradient", "logit"))
    assert control == {seed: logit[seed] for seed in control}
    assert len(control) == 4
    ours, theirs = (accuracies("lite0+lite2", method, results=results) for method in ("afd", "logit"))
    deviation = statistics.stdev(ours[seed] - theirs[seed] for seed in ours)
    assert f"{deviation:.0f} points" == "2 points"
    assert 60 < (2 * deviation / 0.5) ** 2 < 70
    half = paired_difference(*({seed: one[seed] for seed in range(4)} for one in (ours, theirs)))
    assert half is not None
    assert f"After four seeds it was {half.mean:+.1f}" in text


def test_differences_in_the_text() -> None:
    """Each sentence states the differences of two methods, in both pairs or in the equal one."""
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    equal, unequal = "r14+r14", "r8+r20"

    def both(ours: str, theirs: str) -> str:
        return f"{difference(equal, ours, theirs)} and {difference(unequal, ours, theirs)}"

    for said in (
        f"**`afd` gains a little more**: {both('afd', 'logit')} above `logit`",
        f"`afd` is {both('afd', 'zero-gradient')} against it",
        f"is {both('l1', 'logit')} against logits alone",
        f"**DML** (temperature 1) is {difference(equal, 'dml', 'logit')} against",
        f"`--adversarial-interval 4` is {difference(equal, 'afd-interval-4', 'afd')} against `afd` and "
        f"{difference(equal, 'afd-interval-4', 'logit')} against logits alone",
        f"`--joint-backward` is {difference(equal, 'afd-joint-backward', 'afd')} and "
        f"{difference(equal, 'afd-joint-backward', 'logit')}.",
        f"(`feature`) are {difference(equal, 'feature', 'vanilla')} against training alone and "
        f"{difference(equal, 'feature', 'logit')} against logits alone",
    ):
        assert said in text


CLAIMS = {
    "peers that exchange logits are better than each alone": ("logit", "vanilla", None),
    "adversarial maps beside logits are better than logits alone": ("afd", "logit", None),
    "and better than aligning the maps by L1": ("afd", "l1", None),
    "most of all for a small model beside a large one": ("afd", "logit", 0),
    "what helps are the discriminators": ("afd", "zero-gradient", None),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_the_paper(claim: str) -> None:
    ours, theirs, model = CLAIMS[claim]
    page = (ROOT / "docs" / "results.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {claim}"))
    _, _, _, equal, unequal, _, _ = (cell.strip() for cell in row.split("|"))
    assert equal == difference("r14+r14", ours, theirs)
    assert unequal.removesuffix(" (the ResNet-8)") == difference("r8+r20", ours, theirs, model)


@pytest.mark.parametrize(
    "variant",
    ["afd-group-norm", "afd-rare-discriminator", "afd-narrow-discriminator", "afd-least-squares", "afd-relativistic"],
)
def test_variants_against_logits_and_control(variant: str) -> None:
    cells = [difference("r14+r14", variant, other) for other in ("logit", "zero-gradient")]
    seeds = len(list((ROOT / "benchmarks" / "results" / "compare" / "cpu").glob(f"r14+r14-{variant}-[0-9].json")))
    assert f"| {variant} | {seeds} | {' | '.join(cells)} |\n" in (ROOT / "docs" / "results.md").read_text()


DIAGNOSED = ("vanilla", "logit", "l1", "zero-gradient", "afd", "afd-joint-backward")


@pytest.mark.parametrize("method", DIAGNOSED)
def test_what_moves_the_weights(method: str) -> None:
    """Similarity in the last epoch, and the mean over both models and four evaluations of what describes gradients."""
    lines = (ROOT / "benchmarks" / "results" / "diagnosis" / f"{method}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [15, 30, 45, 60]

    def mean(kind: str, chosen: list[Any]) -> str:
        found = [value for one in chosen for key, value in one["metrics"].items() if key.startswith(f"{kind}/")]
        return f"{statistics.mean(found):.2f}" if found else ""

    cells = [mean(kind, records[-1:]) for kind in ("eval/similarity", "eval/cosine")]
    cells += [mean(kind, records) for kind in ("train/gradient_feature", "train/decay_feature")]
    cells += [mean(kind, records) for kind in ("train/descent_feature", "train/shrinkage_feature")]
    accuracy = statistics.mean(records[-1]["metrics"][f"eval/accuracy/{k}"] for k in (0, 1))
    row = f"| {method} | {' | '.join(cells)} | {accuracy:.2f} |"
    assert row in (ROOT / "docs" / "results.md").read_text()


RECIPE = {
    "`vanilla`: each model alone": "vanilla",
    "`logit`": "logit-averaged",
    "`afd`": "afd-averaged",
    "`vanilla`, old start": "vanilla-random-head",
    "`logit`, old start": "logit-random-head",
}


@pytest.mark.parametrize("title", RECIPE)
def test_the_recipe_against_the_old_start(title: str) -> None:
    """Also averaged weights against the last ones of the same runs."""
    method, results = RECIPE[title], "recipe/finetune"
    own = accuracies("lite0+lite2", method, results=results)
    gain = "" if method == "vanilla" else difference("lite0+lite2", method, "vanilla", results=results)
    averaged: dict[int, float] = {}
    for path in (ROOT / "benchmarks" / "results" / results).glob(f"lite0+lite2-{method}-[0-9].json"):
        run = json.loads(path.read_text())
        metrics = run["epochs"][-1]["metrics"]
        averaged[run["seed"]] = statistics.fmean(metrics[f"eval/ema_accuracy/{k}"] for k in (0, 1))
    assert len(own) == len(averaged) == 5
    one = paired_difference(averaged, own)
    assert one is not None
    assert one.half_width is not None
    low, high = one.mean - one.half_width, one.mean + one.half_width
    means = f"{one.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    row = f"| {title} | {statistics.fmean(own.values()):.1f} | {gain} | {means} |"
    assert row in (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize(("model", "name"), [(0, "test_convnext2"), (1, "test_resnet"), ("ensemble", "ensemble")])
def test_the_demo(model: Whose, name: str) -> None:
    """Over eight seeds, in the results; of seed 0, in the README."""
    own = {method: accuracies("demo", method, model, "demo/demo") for method in ("vanilla", "logit", "afd")}
    assert {len(one) for one in own.values()} == {8}
    gains = [difference("demo", method, "vanilla", model, "demo/demo") for method in ("logit", "afd")]
    page, readme = (ROOT / "docs" / "results.md").read_text(), (ROOT / "README.md").read_text()
    means = " | ".join(f"{statistics.fmean(one.values()):.1f}" for one in own.values())
    assert f"| {name} | {means} | {' | '.join(gains)} |" in page
    assert f"(+{difference('demo', 'afd', 'logit', None, 'demo/demo')[1:]} for the mean of both)" in page
    title = name if model == "ensemble" else f"{model} {name}"
    assert f"    {title:<16}  {own['vanilla'][0]:.2f}     {own['afd'][0]:.2f}\n" in readme
    if model != "ensemble":
        assert f" {gains[1]}" in " ".join(readme.split())


@pytest.mark.parametrize("recipe", ["", "-own-optimizers"])
@pytest.mark.parametrize(("model", "name"), [(0, "ResNet-20"), (1, "test_vit")])
def test_a_cnn_beside_a_transformer(model: int, name: str, recipe: str) -> None:
    page, results = (ROOT / "docs" / "results.md").read_text(), "scratch/scratch"
    alone, together = (accuracies("r20+vit", f"{method}{recipe}", model, results) for method in ("vanilla", "logit"))
    assert len(alone) == len(together) == 3
    gain = difference("r20+vit", f"logit{recipe}", f"vanilla{recipe}", model, results)
    means = f"{statistics.fmean(alone.values()):.1f} | {statistics.fmean(together.values()):.1f}"
    assert f"| {name} | {'own' if recipe else 'shared'} | {means} | {gain} |" in page


def test_differences_of_a_cnn_beside_a_transformer() -> None:
    text, results = " ".join((ROOT / "docs" / "results.md").read_text().split()), "scratch/scratch"
    shared = difference("r20+vit", "logit", "vanilla", "ensemble", results)
    own = difference("r20+vit", "logit-own-optimizers", "vanilla-own-optimizers", "ensemble", results)
    assert f"Their ensemble is {shared} with shared optimisers, and {own} with own ones" in text
    one, other = (difference("r20+vit", "vanilla-own-optimizers", "vanilla", k, results) for k in (0, 1))
    assert f"own against shared is {one} for the ResNet alone and {other} for the transformer alone" in text


@pytest.mark.parametrize("data", ["clothing", "cifar100"])
def test_learning_without_labels(data: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    _, _, rest = page.partition(f"<!-- table: benchmarks.unlabeled {data} -->\n\n")
    shown, _, _ = rest.partition("\n\n<!-- end of table -->")
    found = read_results(ROOT / "benchmarks" / "results" / "unlabeled" / data, unlabeled.SHARED)
    assert shown == unlabeled.table(found)
    assert len({one["seed"] for one in found}) == 3


def test_the_price_of_learning_without_labels() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    about = json.loads((ROOT / "benchmarks" / "results" / "unlabeled-price.json").read_text())
    rows = [f"| {name} | {value:.0f} |" for name, value in about["milliseconds"].items()]
    assert "| what | ms |\n|---|---|\n" + "\n".join(rows) in page


def test_few_labels() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    _, _, rest = page.partition("<!-- table: benchmarks.few_labels -->\n\n")
    shown, _, _ = rest.partition("\n\n<!-- end of table -->")
    assert shown == few_labels.table(read_results(ROOT / "benchmarks" / "results" / "few-labels" / "scratch", ()))
