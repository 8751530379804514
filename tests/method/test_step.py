"""The method is exact: gradients and whole updates against an independent float64 reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.training import checkpoint_files
from tests.helpers.reference import (
    Gradients,
    Key,
    PeerModel,
    Reference,
    ReferenceConnection,
    Settings,
    Spec,
    buffers_of,
    cross_entropy,
    discriminator,
    discriminator_loss,
    divergence,
    values_of,
)

SIZE = 8


class TinyNet(nn.Module):
    """The model that `Spec` describes."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()

        def block(i: int) -> nn.Sequential:
            width = (3, *spec.channels)
            conv = nn.Conv2d(width[i], width[i + 1], 3, spec.strides[i], spec.paddings[i], bias=not spec.norm)
            return nn.Sequential(conv, nn.BatchNorm2d(width[i + 1]) if spec.norm else nn.Identity(), nn.ReLU())

        self.block1 = block(0)
        self.block2 = block(1)
        self.head = nn.Linear(spec.channels[1], spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block2(self.block1(images)).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A wiring: small models, who teaches whom (written out, not asked of the package), and where."""

    specs: Sequence[Spec]
    edges: Sequence[tuple[int, int]] = ((0, 1), (1, 0))
    blocks: Sequence[str] = ("block2",)
    topology: str = "cycle"
    frozen: Sequence[int] = ()


FOUR = Spec()  # 4x4x4 map
SIX = Spec(channels=(5, 6))  # 6x4x4
SMALL_GRID = Spec(strides=(2, 2))  # 4x2x2
ODD_GRID = Spec(channels=(4, 7), paddings=(1, 0))  # 7x3x3: cells of 4 onto 3 overlap
SINGLE = Spec(channels=(4, 6), strides=(2, 4), paddings=(1, 0))  # 6x1x1
PLAIN = Spec(norm=False)
CYCLE = ((0, 1), (1, 2), (2, 0))
ALL = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))

CASES = {
    "pair": Case([FOUR, FOUR]),
    "pair, unequal channels": Case([FOUR, SIX]),
    "pair, unequal grids": Case([FOUR, SMALL_GRID]),
    "pair, unequal channels and overlapping cells": Case([FOUR, ODD_GRID]),
    "pair, 1x1 map": Case([FOUR, SINGLE]),
    "pair, early tap": Case([FOUR, SIX], blocks=("block1",)),
    "pair, two taps": Case([FOUR, SIX], blocks=("block1", "block2")),
    "pair, one frozen": Case([FOUR, SIX], edges=((0, 1),), frozen=(0,)),
    "cycle of 3": Case([FOUR, FOUR, FOUR], edges=CYCLE),
    "cycle of 3, unequal channels and grids": Case([FOUR, SIX, ODD_GRID], edges=CYCLE),
    "cycle of 3, one frozen": Case([FOUR, SIX, SMALL_GRID], edges=((0, 1), (1, 2)), frozen=(0,)),
    "complete of 3": Case([FOUR, SIX, SMALL_GRID], edges=ALL, topology="complete"),
    "complete of 3, one frozen": Case(
        [FOUR, SIX, SMALL_GRID], edges=((0, 1), (0, 2), (1, 2), (2, 1)), topology="complete", frozen=(0,)
    ),
    "star of 3": Case([FOUR, SIX, SMALL_GRID], edges=((0, 1), (1, 0), (0, 2), (2, 0)), topology="star"),
}

# Loss weights per method, from the paper and its ablations.
METHODS = {
    "afd": Settings(logit=1, adversarial=1),
    "logit": Settings(logit=1),
    "dml": Settings(logit=1, temperature=1),
    "vanilla": Settings(),
    "feature": Settings(adversarial=1),
    "l1": Settings(logit=1, l1=1),
    "l1-only": Settings(l1=1),
    "l2": Settings(logit=1, l2=1),
    "l2-only": Settings(l2=1),
    "pooled": Settings(logit=1, l2=1, max_grid=1),
    "aligned": Settings(logit=1, aligned=1),
    "statistics": Settings(logit=1, statistics=1),
    "relation": Settings(logit=1, relation=1),
    "zero-gradient": Settings(logit=1, zero_gradient=True),
}

# Rates large enough for every part of the update to show after one step, no two alike.
RATES: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.8,
    "weight_decay": 0.02,
    "adversarial_lr": 0.01,
    "adversarial_weight_decay": 0.1,
    "discriminator_lr": 0.03,
    "discriminator_weight_decay": 0.05,
}


def with_rates(settings: Settings) -> Settings:
    return replace(
        settings,
        lr=RATES["lr"],
        momentum=RATES["momentum"],
        decay=RATES["weight_decay"],
        adversarial_lr=RATES["adversarial_lr"],
        adversarial_decay=RATES["adversarial_weight_decay"],
        discriminator_lr=RATES["discriminator_lr"],
        discriminator_decay=RATES["discriminator_weight_decay"],
    )


def models_of(specs: Sequence[Spec], dtype: torch.dtype = torch.float64) -> list[TinyNet]:
    """Small models with random weights everywhere, those of the batch norms included."""
    torch.manual_seed(1)
    models = [TinyNet(spec) for spec in specs]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.5)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return [model.to(dtype) for model in models]


def distiller_of(case: Case, dtype: torch.dtype = torch.float64, **settings: Any) -> OnlineAdversarialDistiller:
    distiller = OnlineAdversarialDistiller(
        models_of(case.specs, dtype),
        feature_layers=list(case.blocks),
        topology=case.topology,
        frozen=case.frozen,
        image_size=SIZE,
        **{**RATES, **settings},
    )
    torch.manual_seed(2)
    with torch.no_grad():
        for module in (*distiller.discriminators, *distiller.transfers):
            for parameter in module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64).to(parameter)
    return distiller


def reference_of(case: Case, distiller: OnlineAdversarialDistiller, settings: Settings) -> Reference:
    models = [
        PeerModel(spec, values_of(module), buffers_of(module))
        for spec, module in zip(case.specs, distiller.models, strict=True)
    ]
    direct = settings.l1 + settings.l2 + settings.aligned + settings.statistics + settings.relation
    compares = settings.adversarial or direct
    places = [(edge, block) for edge in case.edges for block in case.blocks] if compares else []
    judges = list(distiller.discriminators) or [nn.Identity() for _ in places]
    connections = [
        ReferenceConnection(*edge, block, values_of(moved), values_of(judge), settings.max_grid)
        for (edge, block), moved, judge in zip(places, distiller.transfers, judges, strict=True)
    ]
    return Reference(models, case.edges, connections, settings, case.frozen)


def batch(number: int = 0, size: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + number)
    images = torch.randn(size, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.randint(5, (size,), generator=generator)


def parameters_of(distiller: OnlineAdversarialDistiller) -> dict[Key, nn.Parameter]:
    places = [
        ("model", distiller.models),
        ("transfer", distiller.transfers),
        ("discriminator", distiller.discriminators),
    ]
    return {
        (what, position, name): parameter
        for what, modules in places
        for position, module in enumerate(modules)
        for name, parameter in module.named_parameters()
    }


def gradients_of(distiller: OnlineAdversarialDistiller, images: Tensor, labels: Tensor) -> Gradients:
    """The package's three kinds of gradient, by parameter."""
    device = distiller.accelerator.device
    distiller.step.gradients(images.to(device), labels.to(device))
    names = {id(parameter): key for key, parameter in parameters_of(distiller).items()}
    out: Gradients = {"logit": {}, "feature": {}, "discriminator": {}}
    for kind, update in distiller.step.optimizer_groups.items():
        out[kind] = {names[id(p)]: g for p, g in zip(update.parameters, update.gradients, strict=True)}
    return out


def assert_equal(actual: Tensor, expected: Tensor, what: object, rtol: float = 1e-6, atol: float = 1e-12) -> None:
    actual = actual.detach().to("cpu", torch.float64)
    expected = expected.detach().to("cpu", torch.float64)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def assert_state(distiller: OnlineAdversarialDistiller, reference: Reference, **tolerance: float) -> None:
    """Every parameter of models, transfers and discriminators, and every running statistic."""
    parameters = parameters_of(distiller)
    expected = [("model", k, name) for k, model in enumerate(reference.models) for name in model.weights]
    expected += [
        ("transfer", i, name) for i, connection in enumerate(reference.connections) for name in connection.transfer
    ]
    expected += [
        ("discriminator", i, n) for i, connection in enumerate(reference.connections) for n in connection.discriminator
    ]
    assert set(parameters) == set(expected)
    for key, parameter in parameters.items():
        assert_equal(parameter, reference.value(key), key, **tolerance)
    for k, model in enumerate(reference.models):
        buffers = dict(distiller.models[k].named_buffers())
        assert set(buffers) == set(model.running)
        for name, value in model.running.items():
            assert_equal(buffers[name], value, ("model", k, name), **tolerance)


def check_gradients(case: Case, settings: Settings, **overrides: Any) -> None:
    distiller = distiller_of(case, **overrides)
    reference = reference_of(case, distiller, with_rates(settings))
    images, labels = batch()
    actual, expected = gradients_of(distiller, images, labels), reference.gradients(images, labels)
    for kind, gradients in expected.items():
        assert set(actual[kind]) == set(gradients), kind
        for key, gradient in gradients.items():
            assert_equal(actual[kind][key], gradient, (kind, *key))
    assert all(gradient.abs().max() > 1e-6 for gradient in expected["logit"].values())


def check_steps(case: Case, settings: Settings, steps: int, **overrides: Any) -> None:
    distiller = distiller_of(case, **overrides)
    reference = reference_of(case, distiller, with_rates(settings))
    before = {key: parameter.detach().clone() for key, parameter in parameters_of(distiller).items()}
    for number in range(steps):
        images, labels = batch(number)
        distiller.training_step(images, labels)
        reference.step(images, labels)
    assert_state(distiller, reference)
    for key, parameter in parameters_of(distiller).items():
        moved = (parameter - before[key]).abs().max()
        still = key[0] == "model" and key[1] in case.frozen
        assert moved == 0 if still else moved > 1e-3, key


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_reference(name: str) -> None:
    check_gradients(CASES[name], METHODS["afd"], method="afd")


@pytest.mark.parametrize("case", ["pair, unequal channels", "complete of 3"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_every_method(method: str, case: str) -> None:
    check_gradients(CASES[case], METHODS[method], method=method)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_whole_updates_equal_the_reference(name: str, steps: int) -> None:
    check_steps(CASES[name], METHODS["afd"], steps, method="afd")


@pytest.mark.parametrize("method", METHODS)
def test_whole_updates_of_every_method(method: str) -> None:
    check_steps(CASES["cycle of 3, unequal channels and grids"], METHODS[method], 3, method=method)


def test_weights_and_temperature_can_be_any() -> None:
    settings = Settings(temperature=1.7, logit=0.4, adversarial=0.3, l1=0.2, l2=2.5)
    own = {"temperature": 1.7, "kl_weight": 0.4, "adversarial_weight": 0.3, "l1_weight": 0.2, "l2_weight": 2.5}
    check_gradients(CASES["pair, unequal channels"], settings, **own)
    check_steps(CASES["pair, unequal channels"], settings, 2, **own)


def test_the_papers_recipe_is_the_default() -> None:
    # The wrapper without a setting: SGD 0.1, 0.9, 1e-4 and Adam 2e-5, 0.1, 0.1, as `Settings` has them.
    case = CASES["pair, unequal channels"]
    distiller = OnlineAdversarialDistiller(models_of(case.specs), feature_layers="block2", image_size=SIZE)
    reference = reference_of(case, distiller, METHODS["afd"])
    for number in range(2):
        distiller.training_step(*batch(number))
        reference.step(*batch(number))
    assert_state(distiller, reference)


def test_decoupled_weight_decay() -> None:
    settings = replace(METHODS["afd"], decoupled=True)
    check_steps(CASES["pair, unequal channels"], settings, 3, adversarial_optimizer="adamw")


@pytest.mark.parametrize("method", ["afd", "l1", "feature", "zero-gradient"])
def test_adversarial_interval(method: str) -> None:
    case = CASES["cycle of 3, unequal channels and grids"]
    check_steps(case, replace(METHODS[method], interval=2), 4, method=method, adversarial_interval=2)


@pytest.mark.parametrize("case", ["pair", "pair, unequal channels", "pair, one frozen", "complete of 3"])
@pytest.mark.parametrize("method", ["afd", "l2-only"])
def test_single_backward(method: str, case: str) -> None:
    check_steps(CASES[case], replace(METHODS[method], single=True), 3, method=method, joint_backward=True)


@pytest.mark.parametrize("loss", ["paper", "least-squares", "hinge", "relativistic", "reversal"])
def test_every_adversarial_loss(loss: str) -> None:
    case = CASES["pair, unequal channels and overlapping cells"]
    check_steps(case, replace(METHODS["afd"], loss=loss), 3, adversarial_loss=loss)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("loss", ["paper", "reversal"])
@pytest.mark.parametrize("case", ["pair, unequal channels", "pair, one frozen", "pair, two taps", "complete of 3"])
def test_discriminators_that_see_classes(case: str, loss: str, together: bool) -> None:
    """No gradient passes through the probabilities; with one optimiser it is that of logits and reversed gradient."""
    own: dict[str, Any] = {"discriminator_classes": True, "adversarial_loss": loss}
    settings = Settings(logit=1, adversarial=1, loss=loss, classes=True)
    if not together:
        check_gradients(CASES[case], settings, **own)
    check_steps(CASES[case], replace(settings, single=together), 3, **own, joint_backward=together)


def test_one_optimiser_gets_the_reversed_gradient_of_the_discriminator_and_no_other() -> None:
    """In a pair of equal channels: what a weight of 1 adds to that of 0 is the reversed gradient of its loss."""
    case = CASES["pair"]
    own: dict[str, Any] = {"discriminator_classes": True, "adversarial_loss": "reversal", "joint_backward": True}
    with_term, almost_without = (distiller_of(case, adversarial_weight=weight, **own) for weight in (1, 1e-30))
    plain = gradients_of(distiller_of(case, method="logit"), *batch())["logit"]
    without = gradients_of(almost_without, *batch())["logit"]
    found = gradients_of(with_term, *batch())["logit"]
    reference = reference_of(case, with_term, Settings(adversarial=1, loss="reversal", classes=True))
    images, _ = batch()
    for k in (0, 1):
        weights = {name: value.clone().requires_grad_() for name, value in reference.models[k].weights.items()}
        connection = reference.connections[1 - k]
        assert connection.learner == k
        own_pass, other = reference.models[k].forward(images, weights), reference.fixed(1 - k, images)
        answers = [
            reference.answers(connection.discriminator, one.maps["block2"], one.logits) for one in (other, own_pass)
        ]
        loss = discriminator_loss(answers[0], answers[1], "reversal")
        reverse = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, reverse, strict=True):
            key = ("model", k, name)
            assert_equal(without[key], plain[key], key)
            expected = torch.zeros_like(weights[name]) if gradient is None else -gradient
            assert_equal(found[key] - plain[key], expected, key, atol=1e-10)


@pytest.mark.parametrize("case", ["pair, unequal channels", "complete of 3, one frozen"])
@pytest.mark.parametrize("loss", ["standardised", "decoupled"])
def test_every_logit_loss(loss: str, case: str) -> None:
    own: dict[str, Any] = {"logit_loss": loss, "kl_weight": 0.4, "temperature": 1.7}
    settings = Settings(logit=0.4, temperature=1.7, adversarial=1, logit_loss=loss)
    check_gradients(CASES[case], settings, **own)
    check_steps(CASES[case], settings, 2, **own)


@pytest.mark.parametrize("loss", ["kl", "decoupled"])
@pytest.mark.parametrize("case", ["pair", "pair, one frozen", "cycle of 3, one frozen", "complete of 3, one frozen"])
def test_the_ensemble_as_the_target_of_the_logits(loss: str, case: str) -> None:
    """Of a learner and all its sources; their maps teach as ever, one by one."""
    own: dict[str, Any] = {"logit_loss": loss, "targets": "ensemble", "kl_weight": 2.0}
    settings = Settings(logit=2, adversarial=1, logit_loss=loss, ensemble=True)
    check_gradients(CASES[case], settings, **own)
    check_steps(CASES[case], settings, 2, **own)


@pytest.mark.parametrize("loss", ["kl", "standardised", "decoupled"])
@pytest.mark.parametrize(("targets", "threshold"), [("live", 0.27), ("ensemble", 0.25)])
def test_only_confident_targets_teach_logits(targets: str, threshold: float, loss: str) -> None:
    case = CASES["complete of 3, one frozen"]
    own: dict[str, Any] = {"logit_loss": loss, "targets": targets, "confidence_threshold": threshold}
    settings = Settings(logit=1, adversarial=1, logit_loss=loss, ensemble=targets == "ensemble", threshold=threshold)
    check_gradients(case, settings, **own)
    check_steps(case, settings, 2, **own)
    distiller = distiller_of(case, **own)
    reference = reference_of(case, distiller, settings)
    images, labels = batch()
    passes = [reference.fixed(k, images).logits for k in range(3)]
    taught = {1: [0, 2], 2: [0, 1]}
    metrics = distiller.training_step(images, labels)
    seen = []
    for k, sources in taught.items():
        members = [[s] for s in sources] if targets == "live" else [[k, *sources]]
        means = [sum(passes[m] for m in one) / len(one) for one in members]
        shares = [(mean.softmax(1).amax(1) >= threshold).double().mean() for mean in means]
        assert_equal(metrics[f"confident/{k}"], 100 * sum(shares) / len(shares), k)
        seen += shares
    assert 0 < sum(seen) < len(seen)


def test_the_ensemble_has_those_alone_who_know_the_classes() -> None:
    """Model 0 knows other ones, so model 1 is taught no logits; model 2 is, by model 1."""
    specs = [replace(FOUR, classes=7), FOUR, FOUR]
    distiller = OnlineAdversarialDistiller(
        models_of(specs),
        topology=[(0, 1), (0, 2), (1, 2)],
        frozen=[0],
        method="l2",
        targets="ensemble",
        image_size=SIZE,
        feature_layers="block2",
    )
    images, labels = batch()
    logits = [model.train(k > 0)(images).detach() for k, model in enumerate(distiller.models)]
    metrics = distiller.training_step(images, labels)
    assert "kl/1" not in metrics
    assert_equal(metrics["kl/2"], divergence(logits[2], (logits[1] + logits[2]) / 2, 3.0), "kl/2")


@pytest.mark.parametrize("interval", [1, 2])
def test_discriminators_may_step_less_often(interval: int) -> None:
    settings = replace(METHODS["afd"], discriminator_interval=2, interval=interval)
    case = CASES["pair, unequal channels"]
    check_steps(case, settings, 5, discriminator_interval=2, adversarial_interval=interval)


def test_both_cheaper_modes_with_clipping_and_parts() -> None:
    settings = replace(METHODS["afd"], single=True, interval=3, clip=0.5)
    case = CASES["pair, unequal channels"]
    own: dict[str, Any] = {"joint_backward": True, "adversarial_interval": 3, "clip_grad": 0.5}
    distiller = distiller_of(case, grad_accum_steps=2, **own)
    reference = reference_of(case, distiller, with_rates(settings))
    for number in range(4):
        distiller.training_step(*batch(number))
        reference.step(*batch(number), parts=2)
    assert_state(distiller, reference)


def test_soft_labels() -> None:
    case = CASES["pair, unequal channels"]
    distiller = distiller_of(case)
    reference = reference_of(case, distiller, with_rates(METHODS["afd"]))
    images, _ = batch()
    labels = torch.softmax(torch.randn(len(images), 5, dtype=torch.float64), dim=1)
    distiller.training_step(images, labels)
    reference.step(images, labels)
    assert_state(distiller, reference)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("without", [[0], [0, 1, 2, 4], range(6)])
def test_images_without_labels_take_part_in_all_but_cross_entropy(without: Sequence[int], parts: int) -> None:
    """The mean is over the labels of the whole batch, whatever its parts hold; without any it is 0."""
    case = CASES["pair, unequal channels"]
    distiller = distiller_of(case, grad_accum_steps=parts)
    reference = reference_of(case, distiller, with_rates(METHODS["afd"]))
    for number in range(2):
        images, labels = batch(number)
        labels[list(without)] = -1
        metrics = distiller.training_step(images, labels)
        assert (metrics["cross_entropy/0"] == 0) == (len(without) == len(images))
        assert metrics["skipped"] == 0
        reference.step(images, labels, parts=parts)
    assert_state(distiller, reference)


def test_figures_of_labels_are_means_over_the_images_that_have_one() -> None:
    images, labels = batch()
    kept = labels.clone().index_fill_(0, torch.tensor([1, 4]), -1)
    settings: dict[str, Any] = {"method": "vanilla", "grad_accum_steps": 4}
    distiller = distiller_of(Case([PLAIN, PLAIN]), **settings)
    with torch.no_grad():
        logits = distiller.models[0](images)
    known = kept >= 0
    metrics = distiller.training_step(images, kept)
    assert_equal(metrics["cross_entropy/0"], nn.functional.cross_entropy(logits[known], kept[known]), "cross-entropy")
    right = (logits.argmax(1) == kept)[known].double().mean()
    assert_equal(metrics["accuracy/0"], 100 * right, "accuracy")


@pytest.mark.parametrize("together", [False, True])
def test_whole_updates_without_labels(together: bool) -> None:
    """With known classes the logits of the source still teach; the labels given are not looked at."""
    case = CASES["pair, one frozen"]
    settings = replace(METHODS["aligned"], labels=False, single=together)
    own: dict[str, Any] = {"labels": False, "num_classes": 5, "recipe": "paper", "method": "aligned"}
    check_steps(case, settings, 3, **own, joint_backward=together)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("method", ["afd", "aligned", "statistics"])
def test_whole_updates_of_models_without_classifiers(method: str, together: bool) -> None:
    """Nothing reaches the layers behind the map, and they stay as they are, weight decay included."""
    case = CASES["pair, one frozen"]
    settings = replace(with_rates(METHODS[method]), labels=False, logit=0, single=together, decay=0)
    own: dict[str, Any] = {"labels": False, "recipe": "paper", "weight_decay": 0.0, "method": method}
    distiller = distiller_of(case, **own, joint_backward=together)
    reference = reference_of(case, distiller, settings)
    for number in range(3):
        images, _ = batch(number)
        metrics = distiller.training_step(images)
        assert not [name for name in metrics if name.startswith(("cross_entropy", "accuracy", "kl"))]
        reference.step(images, torch.zeros(len(images), dtype=torch.int64))
    assert_state(distiller, reference)


@pytest.mark.parametrize("limit", [0.05, 1000.0])
def test_gradient_clipping(limit: float) -> None:
    # One norm per model, of its logit gradient alone.
    case = CASES["cycle of 3, one frozen"]
    check_steps(case, replace(METHODS["afd"], clip=limit), 2, clip_grad=limit)


class SharedGradient(TinyNet):
    """Two parameters that are only ever added, and one that is added up over the batch as it is."""

    def __init__(self) -> None:
        super().__init__(FOUR)
        self.left = nn.Parameter(torch.randn(5, dtype=torch.float64))
        self.right = nn.Parameter(torch.randn(5, dtype=torch.float64))
        self.scale = nn.Parameter(torch.randn(5, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + (self.left + self.right) + self.scale.sum()


def test_clipping_where_parameters_share_a_gradient_in_memory() -> None:
    torch.manual_seed(0)
    models = [SharedGradient().double(), TinyNet(FOUR).double()]
    images, labels = batch()
    plain, clipped = (
        OnlineAdversarialDistiller(
            copy.deepcopy(models), method="logit", image_size=SIZE, weight_decay=0.0, clip_grad=limit
        )
        for limit in (None, 0.1)
    )
    moves = []
    for distiller in (plain, clipped):
        distiller.training_step(images, labels)
        pairs = zip(models[0].parameters(), distiller.models[0].parameters(), strict=True)
        moves.append([after.detach().cpu() - before for before, after in pairs])
    norm = torch.sqrt(sum((move / 0.1).square().sum() for move in moves[0]))
    assert norm > 0.2
    for move, clipped_move in zip(*moves, strict=True):
        assert_equal(clipped_move, move * 0.1 / (norm + 1e-6), "move")


# Who is touched by what.


def test_a_source_gets_nothing_from_its_learner() -> None:
    # In 0 -> 1 -> 2 -> 0, model 0 learns from 2 alone: whatever its learner 1 is, 0's gradients stay bit for bit.
    case = CASES["cycle of 3, unequal channels and grids"]
    distiller = distiller_of(case)
    before = gradients_of(distiller, *batch())
    with torch.no_grad():
        for parameter in distiller.models[1].parameters():
            parameter.mul_(1.5)
    after = gradients_of(distiller, *batch())
    for (what, k, name), gradient in before["logit"].items():
        assert torch.equal(gradient, after["logit"][what, k, name]) == (k == 0), (k, name)
    for (what, k, name), gradient in before["feature"].items():
        # L_G asks about the learner's own map alone, so model 2 does not see that its source changed.
        learner = k if what == "model" else (k + 1) % 3
        assert torch.equal(gradient, after["feature"][what, k, name]) == (learner != 1), (what, k, name)
    for (what, i, name), gradient in before["discriminator"].items():
        # The third discriminator judges models 2 and 0, the others see model 1.
        assert torch.equal(gradient, after["discriminator"][what, i, name]) == (i == 2), (i, name)


def test_each_loss_reaches_its_own_parameters_alone() -> None:
    case = CASES["pair, unequal channels"]
    one, hundred = (
        gradients_of(distiller_of(case, adversarial_weight=weight, kl_weight=0), *batch()) for weight in (1, 100)
    )
    # L_G is what its weight scales: extractors and transfers move by it, discriminators and the logit update do not.
    for key, gradient in one["feature"].items():
        assert_equal(hundred["feature"][key], 100 * gradient, key)
    for kind in ("discriminator", "logit"):
        for key, gradient in one[kind].items():
            assert torch.equal(hundred[kind][key], gradient), key
    assert {key[0] for key in one["discriminator"]} == {"discriminator"}
    assert {key[0] for key in one["feature"]} == {"model", "transfer"}
    assert not any(name.startswith("head") for _, _, name in one["feature"])


def test_gradient_passes_through_each_map_twice_and_to_each_discriminator_once() -> None:
    # Once from the logit loss and once from L_G. L_D would make it three times, a source's loss more.
    distiller = distiller_of(CASES["cycle of 3"])
    passes = dict.fromkeys(range(3), 0)
    asked = dict.fromkeys(range(3), 0)

    def count(counts: dict[int, int], key: int) -> Any:
        def add(gradient: Tensor) -> None:
            counts[key] += 1

        return add

    for k, model in enumerate(distiller.models):
        model.block2.register_forward_hook(lambda _, __, out, k=k: out.register_hook(count(passes, k)) and None)
    for i, judge in enumerate(distiller.discriminators):
        judge.conv2.bias.register_hook(count(asked, i))
    distiller.training_step(*batch())
    assert passes == {0: 2, 1: 2, 2: 2}
    assert asked == {0: 1, 1: 1, 2: 1}


def test_no_gradient_is_left_behind() -> None:
    distiller = distiller_of(CASES["pair, unequal channels"])
    metrics = distiller.training_step(*batch())
    assert all(parameter.grad is None for parameter in parameters_of(distiller).values())
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("method", ["afd", "l1", "vanilla"])
@pytest.mark.parametrize("parts", [1, 2])
def test_one_forward_per_model_and_image(method: str, parts: int) -> None:
    distiller = distiller_of(CASES["cycle of 3, one frozen"], method=method, grad_accum_steps=parts)
    seen: list[list[int]] = [[], [], []]
    for k, model in enumerate(distiller.models):
        model.register_forward_hook(lambda _, args, __, k=k: seen[k].append(len(args[0])))
    distiller.training_step(*batch(size=5))
    assert seen == [[5] if parts == 1 else [3, 2]] * 3


def test_statistics_are_updated_once_per_step_and_not_by_wiring() -> None:
    distiller = distiller_of(CASES["pair"])
    norms = [module for model in distiller.models for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [0] * 4
    distiller.training_step(*batch())
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * 4


# Accumulation.


@pytest.mark.parametrize("size", [5, 2])  # of 2 images only 2 parts can be made
@pytest.mark.parametrize("method", ["vanilla", "logit", "l1", "l2-only"])
def test_parts_of_a_batch_equal_the_whole(method: str, size: int) -> None:
    # Exact where nothing looks at the batch as a whole: models without batch statistics, and no discriminator.
    check_parts(size, method=method)


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_loss": "standardised"},
        {"logit_loss": "decoupled"},
        {"targets": "ensemble", "confidence_threshold": 0.2257},
        {"discriminator_classes": True, "adversarial_loss": "reversal", "adversarial_weight": 1.0},
    ],
    ids=str,
)
def test_parts_of_a_batch_equal_the_whole_under_every_logit_loss(settings: dict[str, Any]) -> None:
    check_parts(5, method="logit", without=[1, 3], **settings)


def check_parts(size: int, without: Sequence[int] = (), **settings: Any) -> None:
    """Two updates in three parts equal two of whole batches; the images at `without` have no label."""
    case = Case([PLAIN, PLAIN])
    whole = distiller_of(case, **settings)
    parts = distiller_of(case, grad_accum_steps=3, **settings)
    for number in range(2):
        images, labels = batch(number, size)
        labels[list(without)] = -1
        expected, metrics = (each.training_step(images, labels) for each in (whole, parts))
        for key, value in metrics.items():
            assert_equal(value, expected[key], key)
    for key, parameter in parameters_of(parts).items():
        assert_equal(parameter, parameters_of(whole)[key], key)


@pytest.mark.parametrize(("size", "parts"), [(6, 2), (5, 2), (7, 3)])
def test_parts_under_the_adversarial_method(size: int, parts: int) -> None:
    # Discriminators, transfers and batch norms see a part at a time: what is equal is the mean, weighted by images,
    # of the parts' gradients at one point; running statistics move once per part.
    case = CASES["pair, unequal channels"]
    distiller = distiller_of(case, grad_accum_steps=parts)
    reference = reference_of(case, distiller, with_rates(METHODS["afd"]))
    for number in range(2):
        images, labels = batch(number, size)
        distiller.training_step(images, labels)
        reference.step(images, labels, parts)
    assert_state(distiller, reference)


def test_accumulation_with_the_control_without_gradient() -> None:
    case = CASES["pair"]
    distiller = distiller_of(case, method="zero-gradient", grad_accum_steps=2)
    reference = reference_of(case, distiller, with_rates(METHODS["zero-gradient"]))
    distiller.training_step(*batch())
    reference.step(*batch(), parts=2)
    assert_state(distiller, reference)


# Memory order: torch's fused optimisers pair the elements of parameter, gradient and state by their place in memory.


@pytest.mark.parametrize("method", ["afd", "l2"])
def test_memory_order_changes_nothing(method: str) -> None:
    case = CASES["pair, unequal channels"]
    contiguous, channels_last = (distiller_of(case, method=method, channels_last=last) for last in (False, True))
    assert not channels_last.models[0].block2[0].weight.is_contiguous()
    for number in range(3):
        for distiller in (contiguous, channels_last):
            distiller.training_step(*batch(number))
    for key, parameter in parameters_of(channels_last).items():
        assert_equal(parameter, parameters_of(contiguous)[key], key)


@pytest.mark.parametrize("channels_last", [False, True])
def test_restored_optimisers_go_on_as_if_never_stopped(channels_last: bool) -> None:
    case = CASES["pair, unequal channels"]
    first, second = (distiller_of(case, channels_last=channels_last) for _ in range(2))
    first.training_step(*batch(0))
    second.group.load_state(first.group.state())
    for kind, update in first.step.optimizer_groups.items():
        # As they come from disk: contiguous.
        tensors, groups = checkpoint_files.optimizer_state(update.optimizer)
        tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        checkpoint_files.load_optimizer_state(second.step.optimizer_groups[kind].optimizer, tensors, groups)
    for number in (1, 2):
        first.training_step(*batch(number))
        second.training_step(*batch(number))
    for key, parameter in parameters_of(second).items():
        assert torch.equal(parameter, parameters_of(first)[key]), key


# Precision.


def test_single_precision_is_close_to_double() -> None:
    case = CASES["cycle of 3, unequal channels and grids"]
    single, double = distiller_of(case, torch.float32), distiller_of(case)
    found = gradients_of(single, *batch(dtype=torch.float32))
    expected = gradients_of(double, *batch())
    for kind, gradients in expected.items():
        for key, gradient in gradients.items():
            assert found[kind][key].dtype is torch.float32
            assert_equal(found[kind][key], gradient, (kind, *key), rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_losses_are_computed_in_single_precision_under_bf16() -> None:
    case = CASES["pair"]
    distiller = distiller_of(case, torch.float32, mixed_precision="bf16", l1_weight=1, l2_weight=1)
    images, labels = batch(dtype=torch.float32)
    maps: list[Tensor] = []
    handles = [m.block2.register_forward_hook(lambda _, __, out: maps.append(out)) for m in distiller.models]
    device = distiller.accelerator.device
    with torch.autocast(device.type, dtype=torch.bfloat16), torch.no_grad():
        logits = [model(images.to(device)) for model in distiller.models]
    for handle in handles:
        handle.remove()
    assert {z.dtype for z in logits} == {z.dtype for z in maps} == {torch.bfloat16}
    z = [each.cpu().double() for each in logits]
    m = [each.cpu().double() for each in maps]
    before = {key: parameter.detach().clone() for key, parameter in parameters_of(distiller).items()}
    metrics = distiller.training_step(images, labels)
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    for learner, source in ((0, 1), (1, 0)):
        expected = {
            "cross_entropy": cross_entropy(z[learner], labels),
            "kl": divergence(z[learner], z[source], 3.0),
            "l1": (m[learner] - m[source]).abs().mean(),
            "l2": ((m[learner] - m[source]) ** 2).mean(),
        }
        for name, value in expected.items():
            # bfloat16 has 3 digits: a loss in it would be off by up to 4e-3.
            assert_equal(metrics[f"{name}/{learner}"], value, (name, learner), rtol=2e-5)
    for key, parameter in parameters_of(distiller).items():
        assert parameter.dtype is torch.float32
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[key])


# Metrics.


def test_metrics_are_the_terms_before_their_weights() -> None:
    case = CASES["complete of 3"]
    distiller = distiller_of(case, kl_weight=0.5, adversarial_weight=2.0, l1_weight=0.1, l2_weight=0.2)
    reference = reference_of(case, distiller, with_rates(METHODS["afd"]))
    images, labels = batch()
    metrics = distiller.training_step(images, labels)
    passes = [reference.fixed(k, images) for k in range(3)]
    expected: dict[str, Tensor] = {}
    for k in range(3):
        sources = [source for source, learner in ALL if learner == k]
        terms: dict[str, list[Tensor]] = {"kl": [], "adversarial": [], "discriminator": [], "l1": [], "l2": []}
        expected[f"cross_entropy/{k}"] = cross_entropy(passes[k].logits, labels)
        expected[f"accuracy/{k}"] = 100 * (passes[k].logits.argmax(1) == labels).double().mean()
        for source in sources:
            connection = next(one for one in reference.connections if (one.source, one.learner) == (source, k))
            fake_map, real_map = connection.maps(
                passes[k].maps["block2"], passes[source].maps["block2"], connection.transfer
            )
            real, fake = (discriminator(connection.discriminator, each) for each in (real_map, fake_map))
            terms["kl"].append(divergence(passes[k].logits, passes[source].logits, 3.0))
            terms["adversarial"].append(((1 - fake) ** 2).mean())
            terms["discriminator"].append(((1 - real) ** 2).mean() + (fake**2).mean())
            terms["l1"].append((fake_map - real_map).abs().mean())
            terms["l2"].append(((fake_map - real_map) ** 2).mean())
            expected[f"real/{source}->{k}"] = real.mean()
            expected[f"fake/{source}->{k}"] = fake.mean()
        expected |= {f"{name}/{k}": torch.stack(values).mean() for name, values in terms.items()}
    assert set(metrics) == set(expected) | {"skipped"}
    for key, value in expected.items():
        assert_equal(metrics[key], value, key, rtol=1e-6 if not key.startswith("accuracy") else 1e-4)


def test_vanilla_has_no_other_metric() -> None:
    metrics = distiller_of(CASES["pair"], method="vanilla").training_step(*batch())
    assert set(metrics) == {"cross_entropy/0", "cross_entropy/1", "accuracy/0", "accuracy/1", "skipped"}


# Modes, and parameters that take no part.


def test_a_step_trains_whatever_mode_the_models_are_in() -> None:
    case = CASES["cycle of 3, one frozen"]
    expected, switched = distiller_of(case), distiller_of(case)
    for number in range(2):
        for k, model in enumerate(switched.models):
            model.train(k in case.frozen)  # the wrong way round, as after an evaluation of the user's own
        for distiller in (expected, switched):
            distiller.training_step(*batch(number))
    for key, parameter in parameters_of(switched).items():
        assert torch.equal(parameter, parameters_of(expected)[key]), key


def test_a_part_that_the_user_set_to_evaluation_stays_so() -> None:
    distiller = distiller_of(CASES["pair"])
    norm = distiller.models[0].block1[1]
    norm.eval()
    mean = norm.running_mean.clone()
    distiller.training_step(*batch())
    assert torch.equal(norm.running_mean, mean)


def test_parameters_without_gradient_stay() -> None:
    case = CASES["pair"]
    models = models_of(case.specs)
    models[0].unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    models[0].block1[0].weight.requires_grad_(False)
    still = [models[0].unused, models[0].block1[0].weight]
    before = [parameter.detach().clone() for parameter in still]
    distiller = OnlineAdversarialDistiller(models, feature_layers="block2", image_size=SIZE, clip_grad=1.0, **RATES)
    for number in range(2):
        distiller.training_step(*batch(number))
    for parameter, value in zip(still, before, strict=True):
        assert torch.equal(parameter.detach().cpu(), value)
    assert all(parameter.isfinite().all() for parameter in distiller.models[0].parameters())


def test_a_model_whose_extractor_is_fixed_still_learns_by_its_transfer() -> None:
    case = CASES["pair, unequal channels"]
    models = models_of(case.specs)
    models[0].block1.requires_grad_(False)
    models[0].block2.requires_grad_(False)
    distiller = OnlineAdversarialDistiller(models, feature_layers="block2", image_size=SIZE, **RATES)
    before = {key: parameter.detach().clone() for key, parameter in parameters_of(distiller).items()}
    distiller.training_step(*batch())
    for key, parameter in parameters_of(distiller).items():
        fixed = key[:2] == ("model", 0) and not key[2].startswith("head")
        assert torch.equal(parameter, before[key]) == fixed, key
