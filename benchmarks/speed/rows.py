"""What is timed: one update of a pair, in every way to do it. Each row builds models of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from benchmarks.peers.floor import Floor
from benchmarks.peers.mutual import MutualLearning
from benchmarks.peers.plain import PlainTraining
from benchmarks.peers.textbook import TextbookLoop
from feature_gan_kd import OnlineAdversarialDistiller

CLASSES = 100
Step = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Case:
    """A pair and how it is run.

    Attributes:
        models: two timm names.
        image_size: side in pixels.
        batch: images of one update.
        device: `cpu` or `cuda`.
        precision: `bf16` or `fp32`.
        channels_last: the memory order of images and convolutions.
        compile: models go through torch.compile.
        clock: what is measured: `wall` time, or time of the `processor`.
    """

    models: tuple[str, str]
    image_size: int
    batch: int
    device: str
    precision: str = "bf16"
    channels_last: bool = True
    compile: bool = False
    clock: str = "wall"

    def images(self) -> tuple[Tensor, Tensor]:
        """One fixed batch of noise with labels."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.image_size, self.image_size, generator=generator)
        labels = torch.randint(0, CLASSES, (self.batch,), generator=generator)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, memory_format=order), labels.to(self.device)


def distiller(case: Case, **settings: object) -> OnlineAdversarialDistiller:
    """This package's, with the paper's optimisers."""
    return OnlineAdversarialDistiller(
        case.models,
        num_classes=CLASSES,
        image_size=case.image_size,
        mixed_precision="bf16" if case.precision == "bf16" else "no",
        channels_last=case.channels_last,
        compile=case.compile,
        **settings,
    )


class WithMap(nn.Module):
    """Logits and the one map of a tapped model."""

    def __init__(self, tapped: nn.Module) -> None:
        super().__init__()
        self.tapped = tapped

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, classes) and map (batch, channels, height, width)."""
        logits, (feature_map,) = self.tapped(images)
        return logits, feature_map


def plain(case: Case) -> Step:
    """(a) Every model alone."""
    built = distiller(replace(case, compile=False), method="vanilla")
    models = [torch.compile(one) if case.compile else one for one in built.models]
    return PlainTraining(models, case.precision).step


def floor(*, batched: bool) -> Callable[[Case], Step]:
    """(b) One forward, two backward passes or one for both gradients, both optimisers, nothing else."""

    def build(case: Case) -> Step:
        built = distiller(case)
        models = [WithMap(one) for one in built.step.models]
        return Floor(models, extractors_of(built), case.precision, batched=batched).step

    return build


def ours(**settings: object) -> Callable[[Case], Step]:
    """(c), (d), (e) This package with these settings."""
    return lambda case: distiller(case, **settings).training_step


def textbook(case: Case) -> Step:
    """(f) The method as a textbook loop."""
    built = distiller(case)
    connections = sorted(built.connections, key=lambda connection: connection.edge.learner)
    return TextbookLoop(
        [WithMap(one) for one in built.step.models],
        extractors_of(built),
        [connection.transfer for connection in connections],
        [connection.discriminator for connection in connections if connection.discriminator is not None],
        case.precision,
    ).step


def lessons(case: Case) -> Step:
    """(j) What the step does with maps once it has them: both losses, and the gradients of maps and discriminators."""
    built = distiller(case)
    step = built.step
    assert step.discriminator_group is not None
    judging = step.discriminator_group.parameters
    with torch.no_grad(), step.autocast():
        forward = step._forward(case.images()[0])
    maps = [[one.clone().requires_grad_() for one in own] for own in forward.maps]
    forward = replace(forward, maps=[tuple(own) for own in maps])
    leaves = [one for own in maps for one in own]

    def run(images: Tensor, labels: Tensor) -> None:
        with step.autocast():
            feature_loss, discriminator_loss = step._feature_losses(forward, {})
        torch.autograd.grad(discriminator_loss, judging, retain_graph=True)
        torch.autograd.grad(feature_loss, leaves)

    return run


def mutual(*, defaults: bool) -> Callable[[Case], Step]:
    """(g) pytorch-dml's trainer: with its default optimisers, or with SGD as ours."""

    def build(case: Case) -> Step:
        models = distiller(case, method="vanilla").models
        sgd = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for one in models]
        return MutualLearning(models, None if defaults else list(sgd)).step

    return build


def extractors_of(built: OnlineAdversarialDistiller) -> list[list[nn.Parameter]]:
    """Per model the parameters that its map comes from."""
    assert built.step.feature_group is not None
    learnt = {id(parameter) for parameter in built.step.feature_group.parameters}
    return [[p for p in model.parameters() if id(p) in learnt] for model in built.models]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: in words.
        build: makes the step for a case.
        changes: of the case's own settings.
        cycle: updates after which the work repeats itself; so many are timed together.
    """

    title: str
    build: Callable[[Case], Step]
    changes: Mapping[str, object] = field(default_factory=dict)
    cycle: int = 1


FP32 = {"precision": "fp32", "channels_last": False, "compile": False}
FP32_CL = {**FP32, "channels_last": True}
COMPILED = {"compile": True}
ROWS: dict[str, Row] = {
    "plain": Row("plain training of both, each alone", plain),
    "floor": Row("floor: one forward, two backward passes, both optimisers", floor(batched=False)),
    "floor-batched": Row("the same with both gradients in one vectorised pass", floor(batched=True)),
    "exact": Row("ours, exact", ours(method="afd")),
    "interval-4": Row("ours, maps in every 4th update", ours(method="afd", adversarial_interval=4), cycle=4),
    "single": Row("ours, single backward pass", ours(method="afd", joint_backward=True)),
    "logit": Row("ours, logit only", ours(method="logit")),
    "lessons": Row("discriminators and transfers alone, on ready maps", lessons),
    "textbook": Row("textbook loop, same precision and memory order", textbook),
    "textbook-fp32": Row("textbook loop as one would write it (fp32, NCHW)", textbook, FP32),
    "logit-fp32": Row("ours, logit only, fp32, NCHW", ours(method="logit"), FP32),
    "logit-fp32-cl": Row("ours, logit only, fp32, channels-last (the default)", ours(method="logit"), FP32_CL),
    "dml-fp32": Row("pytorch-dml's trainer with SGD, fp32, NCHW", mutual(defaults=False), FP32),
    "dml-defaults": Row("pytorch-dml's trainer with its defaults", mutual(defaults=True), FP32),
    "exact-compiled": Row("ours, exact, compiled", ours(method="afd"), COMPILED),
    "logit-compiled": Row("ours, logit only, compiled", ours(method="logit"), COMPILED),
    "exact-graphs": Row("ours, exact, CUDA graphs", ours(method="afd", cuda_graphs=True)),
    "logit-graphs": Row("ours, logit only, CUDA graphs", ours(method="logit", cuda_graphs=True)),
    "exact-compiled-graphs": Row("ours, exact, compiled, CUDA graphs", ours(method="afd", cuda_graphs=True), COMPILED),
}
