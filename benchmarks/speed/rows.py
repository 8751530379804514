"""The ways to do one update of a pair that are timed; each row of the table builds its own models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from benchmarks.peers.floor import Floor
from benchmarks.peers.mutual import MutualLearning
from benchmarks.peers.plain import PlainTraining
from benchmarks.peers.textbook import TextbookLoop
from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.method import losses
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.utils.processor import Precision, mixed_precision

CLASSES = 100
Step = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Case:
    """A pair and how it runs.

    Attributes:
        models: two timm names.
        image_size: side in pixels.
        batch: number of images in one update.
        device: `cpu` or `cuda`.
        precision: `bf16` or `fp32`.
        channels_last: whether images and convolutions are in channels-last memory order.
        compile: whether torch.compile compiles the models.
        clock: the time that is measured: `wall` time, or the time that the `processor` worked.
    """

    models: tuple[str, str]
    image_size: int
    batch: int
    device: str
    precision: Precision = "fp32"
    channels_last: bool = True
    compile: bool = False
    clock: str = "wall"

    def images(self) -> tuple[Tensor, Tensor]:
        """Returns one fixed batch of noise with labels."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.image_size, self.image_size, generator=generator)
        labels = torch.randint(0, CLASSES, (self.batch,), generator=generator)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, memory_format=order), labels.to(self.device)


def distiller(case: Case, **settings: object) -> OnlineAdversarialDistiller:
    """Returns a distiller of this package with the paper's optimisers."""
    return OnlineAdversarialDistiller(
        case.models,
        num_classes=CLASSES,
        image_size=case.image_size,
        mixed_precision=mixed_precision(case.precision),
        channels_last=case.channels_last,
        compile=case.compile,
        **settings,
    )


class WithMap(nn.Module):
    """A tapped model that gives its logits and its one feature map."""

    def __init__(self, tapped: nn.Module) -> None:
        super().__init__()
        self.tapped = tapped

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (batch, classes) and map (batch, channels, height, width)."""
        logits, (feature_map,) = self.tapped(images)
        return logits, feature_map


def plain(case: Case) -> Step:
    """Every model by itself."""
    built = distiller(replace(case, compile=False), method="vanilla")
    models = [torch.compile(one) if case.compile else one for one in built.models]
    return PlainTraining(models, case.precision).step


def floor(*, batched: bool) -> Callable[[Case], Step]:
    """One forward pass, two backward passes (or one for both gradients), both optimisers, and nothing else."""

    def build(case: Case) -> Step:
        built = distiller(case)
        models = [WithMap(one) for one in built.step.models]
        return Floor(models, extractors_of(built), case.precision, batched=batched).step

    return build


def ours(**settings: object) -> Callable[[Case], Step]:
    """This package with these settings."""
    return lambda case: distiller(case, **settings).training_step


def textbook(case: Case) -> Step:
    """The method as a textbook loop."""
    built = distiller(case)
    connections = sorted(built.step.connections, key=lambda connection: connection.edge.learner)
    return TextbookLoop(
        [WithMap(one) for one in built.step.models],
        extractors_of(built),
        [connection.transfer for connection in connections],
        [connection.discriminator for connection in connections if connection.discriminator is not None],
        case.precision,
    ).step


def connections(case: Case) -> Step:
    """Transfer layers and discriminators on ready maps: both losses, and the gradients of maps and discriminators."""
    step = distiller(case).step
    assert step.discriminator_group is not None
    discriminators = step.discriminator_group.parameters
    with torch.no_grad(), step.autocast():
        outputs = [model(case.images()[0]) for model in step.models]
    maps = [tuple(one.clone().requires_grad_() for one in own) for _, own in outputs]
    leaves = [one for own in maps for one in own]

    def run(images: Tensor, labels: Tensor) -> None:
        with step.autocast():
            feature_loss, discriminator_loss = feature_losses(step, maps)
        torch.autograd.grad(discriminator_loss, discriminators, retain_graph=True)
        torch.autograd.grad(feature_loss, leaves)

    return run


def feature_losses(step: AdversarialStep, maps: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """Returns the adversarial loss of all learners and the loss of all discriminators of a pair.

    Args:
        step: its connections and loss weights are used.
        maps: of each model one per tap, (batch, channels, height, width).
    """
    adversarial, discriminator = [], []
    for connection in step.connections:
        learner, source = maps[connection.edge.learner], maps[connection.edge.source]
        fake, real = connection.maps(learner[connection.tap], source[connection.tap])
        assert connection.discriminator is not None
        d_real, d_fake = connection.discriminator(real), connection.discriminator(fake)
        adversarial.append(losses.adversarial(d_real, d_fake, step.loss_weights.adversarial_loss))
        discriminator.append(losses.discriminator(d_real, d_fake, step.loss_weights.adversarial_loss))
    return step.loss_weights.adversarial_weight * torch.stack(adversarial).sum(), torch.stack(discriminator).sum()


def mutual(*, defaults: bool) -> Callable[[Case], Step]:
    """pytorch-dml's trainer: with its default optimisers, or with SGD as ours."""

    def build(case: Case) -> Step:
        models = distiller(case, method="vanilla").models
        sgd = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for one in models]
        return MutualLearning(models, None if defaults else list(sgd)).step

    return build


def extractors_of(built: OnlineAdversarialDistiller) -> list[list[nn.Parameter]]:
    """Returns for each model the parameters that its map depends on."""
    assert built.step.feature_group is not None
    updated = {id(parameter) for parameter in built.step.feature_group.parameters}
    return [[p for p in model.parameters() if id(p) in updated] for model in built.models]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: the row in words.
        build: makes the step for a case.
        changes: settings of the case that the row replaces.
        cycle: number of updates after which the work repeats; they are timed together.
    """

    title: str
    build: Callable[[Case], Step]
    changes: Mapping[str, object] = field(default_factory=dict)
    cycle: int = 1


FP32 = {"precision": "fp32", "channels_last": False, "compile": False}
FP32_CL = {**FP32, "channels_last": True}
WITH_COMPILER = {"compile": True}
ROWS: dict[str, Row] = {
    "plain": Row("plain training of both, each alone", plain),
    "floor": Row("floor: one forward, two backward passes, both optimisers", floor(batched=False)),
    "floor-batched": Row("the same with both gradients in one vectorised pass", floor(batched=True)),
    "exact": Row("ours, exact", ours(method="afd")),
    "interval-4": Row("ours, maps in every 4th update", ours(method="afd", adversarial_interval=4), cycle=4),
    "joint-backward": Row("ours, single backward pass", ours(method="afd", joint_backward=True)),
    "logit": Row("ours, logit only", ours(method="logit")),
    "logit-averaged": Row(
        "ours, logit only, averaged weights that teach", ours(method="logit", model_ema=0.9998, targets="ema")
    ),
    "connections": Row("discriminators and transfers alone, on ready maps", connections),
    "textbook": Row("textbook loop, same precision and memory order", textbook),
    "textbook-fp32": Row("textbook loop as one would write it (fp32, NCHW)", textbook, FP32),
    "logit-fp32": Row("ours, logit only, fp32, NCHW", ours(method="logit"), FP32),
    "logit-fp32-cl": Row("ours, logit only, fp32, channels-last (the default)", ours(method="logit"), FP32_CL),
    "dml-fp32": Row("pytorch-dml's trainer with SGD, fp32, NCHW", mutual(defaults=False), FP32),
    "dml-defaults": Row("pytorch-dml's trainer with its defaults", mutual(defaults=True), FP32),
    "exact-compiled": Row("ours, exact, compiled", ours(method="afd"), WITH_COMPILER),
    "logit-compiled": Row("ours, logit only, compiled", ours(method="logit"), WITH_COMPILER),
    "exact-graphs": Row("ours, exact, CUDA graphs", ours(method="afd", cuda_graphs=True)),
    "logit-graphs": Row("ours, logit only, CUDA graphs", ours(method="logit", cuda_graphs=True)),
    "exact-compiled-graphs": Row(
        "ours, exact, compiled, CUDA graphs", ours(method="afd", cuda_graphs=True), WITH_COMPILER
    ),
}
COMPILED = ("exact-compiled", "logit-compiled", "exact-compiled-graphs")
GRAPHS = ("exact-graphs", "logit-graphs", "exact-compiled-graphs")


def warm_ups(row: str) -> int:
    """Returns the number of updates before the clock starts; with CUDA graphs the fourth is recorded."""
    return (4 if row in GRAPHS else 2) * ROWS[row].cycle
