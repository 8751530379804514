"""What moves the weights: against the optimisers' formulas, written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.optim.gradient_stats import GradientStats
from tests.helpers.runs import build as build_run
from tests.helpers.runs import final_state, records
from tests.helpers.worker import build, images, plain

IMAGES, LABELS = images(12).tensors
EXTRACTOR = [name for name, _ in plain(4)[0].named_parameters() if name.startswith("features")]
KINDS = ("gradient", "decay", "update", "descent", "shrinkage")
SETTINGS: dict[str, Any] = {
    "lr": 0.05,
    "weight_decay": 0.01,
    "adversarial_lr": 1e-3,
    "adversarial_weight_decay": 0.1,
    "discriminator_lr": 2e-3,
    "discriminator_weight_decay": 0.2,
}


def made(**settings: Any) -> OnlineAdversarialDistiller:
    torch.manual_seed(0)
    return build(plain(4, 6), **{"log_gradients": True, **SETTINGS, **settings})


def vector(tensors: list[Tensor]) -> Tensor:
    return torch.cat([one.detach().reshape(-1) for one in tensors]).double()


def expected(gradient: Tensor, weights: Tensor, change: Tensor, decay: float) -> dict[str, float]:
    def cosine(first: Tensor, second: Tensor) -> float:
        return float(first @ second / first.norm() / second.norm()) if first.norm() and second.norm() else 0.0

    return {
        "gradient": float(gradient.norm()),
        "decay": decay * float(weights.norm()),
        "update": float(change.norm()),
        "descent": cosine(change, -gradient),
        "shrinkage": cosine(change, -weights),
    }


def adam(gradient: Tensor, weights: Tensor, lr: float, decay: float) -> Tensor:
    """The first step of Adam with coupled decay: its averages, corrected, are those of this one gradient."""
    total = gradient + decay * weights
    return -lr * total / (total.abs() + 1e-8)


def gradients_of(
    distiller: OnlineAdversarialDistiller, kind: str, modules: list[nn.Module]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per module its gradient of one kind for the batch, taken by another distiller of the same weights."""
    other = made().step
    other.gradients(IMAGES, LABELS)
    taken = other.optimizer_groups[kind].gradients
    by_parameter = dict(zip(distiller.step.optimizer_groups[kind].parameters, taken, strict=True))
    found, weights = [], []
    for module in modules:
        own = [parameter for parameter in module.parameters() if parameter in by_parameter]
        values = [by_parameter[parameter] for parameter in own]
        found.append(vector([torch.zeros_like(p) if g is None else g for p, g in zip(own, values, strict=True)]))
        weights.append(vector(list(own)))
    return found, weights


def test_one_update_against_the_formulas() -> None:
    """SGD and both kinds of Adam, from gradients taken elsewhere; the extractors' Adam starts where SGD left off."""
    distiller = made()
    judges = list(distiller.discriminators)
    logit, weights = gradients_of(distiller, "logit", distiller.models)
    feature, extractors = gradients_of(distiller, "feature", distiller.models)
    judging, judge_weights = gradients_of(distiller, "discriminator", judges)
    sizes = [len(one) for one in extractors]
    metrics = distiller.training_step(IMAGES, LABELS)
    for k in (0, 1):
        change = -0.05 * (logit[k] + 0.01 * weights[k])
        moved = (weights[k] + change)[: sizes[k]]  # the extractor's parameters come before the classifier's
        found = {
            f"logit/{k}": expected(logit[k], weights[k], change, 0.01),
            f"feature/{k}": expected(feature[k], moved, adam(feature[k], moved, 1e-3, 0.1), 0.1),
            f"discriminator/{distiller.edges[k]}": expected(
                judging[k], judge_weights[k], adam(judging[k], judge_weights[k], 2e-3, 0.2), 0.2
            ),
        }
        for whose, values in found.items():
            for name, value in values.items():
                kind, _, part = whose.partition("/")
                assert float(metrics[f"{name}_{kind}/{part}"]) == pytest.approx(value, rel=1e-5), (name, whose)


def test_the_angles_tell_gradient_and_decay_apart() -> None:
    by_decay = made(adversarial_weight_decay=10.0).training_step(IMAGES, LABELS)
    by_gradient = made(adversarial_weight_decay=0.0).training_step(IMAGES, LABELS)
    for k in (0, 1):
        assert by_decay[f"shrinkage_feature/{k}"] > 0.5 > by_decay[f"descent_feature/{k}"]
        assert by_gradient[f"descent_feature/{k}"] > 0.5 > by_gradient[f"shrinkage_feature/{k}"]
        assert by_gradient[f"decay_feature/{k}"] == 0


def test_the_control_has_no_gradient() -> None:
    """Adam's first step is then as long for every weight that is not zero, towards zero."""
    distiller = made(method="zero-gradient", lr=1e-9)
    own = [distiller.models[0].get_parameter(name) for name in EXTRACTOR]
    weights = vector(own)
    metrics = distiller.training_step(IMAGES, LABELS)
    assert metrics["gradient_feature/0"] == metrics["descent_feature/0"] == 0
    assert float(metrics["update_feature/0"]) == pytest.approx(1e-3 * float((weights != 0).sum().sqrt()), rel=1e-4)
    cosine = weights.abs().sum() / weights.norm() / (weights != 0).sum().sqrt()
    assert float(metrics["shrinkage_feature/0"]) == pytest.approx(float(cosine), rel=1e-4)
    assert not [key for key in metrics if "discriminator" in key or key.startswith("right")]


def test_the_gradient_is_the_one_that_the_optimiser_is_given() -> None:
    """Of the whole batch, whatever its parts, and clipped."""
    whole, parts = made().training_step(IMAGES, LABELS), made(grad_accum_steps=3).training_step(IMAGES, LABELS)
    assert float(whole["gradient_logit/0"]) == pytest.approx(float(parts["gradient_logit/0"]), rel=1e-9)
    clipped = made(clip_grad=0.01).training_step(IMAGES, LABELS)
    assert float(clipped["gradient_logit/0"]) == pytest.approx(0.01, rel=1e-3)


def test_what_is_recorded() -> None:
    """Learners under both losses, discriminators under theirs; neither transfer layers nor a frozen model."""
    keys = made(frozen=[0]).training_step(IMAGES, LABELS).keys()
    found = sorted(key for key in keys if key.split("_")[0] in KINDS)
    assert found == sorted(
        f"{name}_{whose}" for name in KINDS for whose in ("logit/1", "feature/1", "discriminator/0->1")
    )
    assert "right/0->1" in keys


def test_right_answers() -> None:
    """A discriminator that takes everything for the source's is right in half of its answers."""
    distiller = made()
    with torch.no_grad():
        for judge in distiller.discriminators:
            for parameter in judge.parameters():
                parameter.zero_()
            judge.conv2.bias.fill_(3.0)  # "real" to everything
    metrics = distiller.training_step(IMAGES, LABELS)
    assert metrics["real/0->1"] == metrics["fake/0->1"] > 0.9
    assert metrics["right/0->1"] == 50


@pytest.mark.parametrize(
    ("every", "interval", "due"),
    [
        (None, 1, []),
        (1, 1, list(range(12))),
        (5, 1, [0, 5, 10]),
        (5, 2, [0, 6, 10]),
        (5, 3, [0, 6]),  # 12 would be next
        (2, 4, [0, 4, 8]),
    ],
)
def test_one_update_in_so_many_is_measured_and_it_compares_maps(
    every: int | None, interval: int, due: list[int]
) -> None:
    gradient_stats = GradientStats(every=every, interval=interval)
    assert [number for number in range(12) if gradient_stats.due(number)] == due


def test_an_update_that_is_not_measured_has_no_such_metric() -> None:
    distiller = made(log_every_steps=3)
    measured = ["update_feature/0" in distiller.training_step(IMAGES, LABELS) for _ in range(7)]
    assert measured == [True, False, False, True, False, False, True]


def test_a_skipped_update_moves_nothing() -> None:
    distiller = made()
    distiller.training_step(IMAGES, LABELS)
    metrics = distiller.training_step(IMAGES * torch.inf, LABELS)
    assert metrics["skipped"] == 1
    assert metrics["update_logit/0"] == metrics["update_feature/0"] == 0


def test_records_of_a_run(tmp_path: Path) -> None:
    """A record in which an update was measured has the figures, and the run is otherwise the same."""
    build_run(log_gradients=True).fit(output_dir=tmp_path / "run")
    build_run().fit(output_dir=tmp_path / "plain")
    mine, plain_state = final_state(tmp_path / "run"), final_state(tmp_path / "plain")
    assert all(torch.equal(value, mine[key]) for key, value in plain_state.items())
    lines, others = records(tmp_path / "run"), records(tmp_path / "plain")
    for line, other in zip(lines, others, strict=True):
        own = {key: value for key, value in line["metrics"].items() if key in other["metrics"]}
        assert own == other["metrics"]
        added = line["metrics"].keys() - other["metrics"].keys()
        assert len(added) in (0, len(KINDS) * 6 + 2)
        assert all(math.isfinite(line["metrics"][key]) for key in added)
    ends = [0, *(line["step"] for line in lines if line["event"] == "step")]
    assert ends == [0, 2, 4, 5, 6, 8, 10, 12, 14, 15]
    measured = [line["metrics"].get("train/update_logit/0") for line in lines if line["event"] == "step"]
    # Updates 0, 2, 4, ... are measured; the record of update 5 alone has none.
    assert [value is not None for value in measured] == [True] * 3 + [False] + [True] * 5
    assert len(set(measured)) == 9
