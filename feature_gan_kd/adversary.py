"""Discriminators and transfer layers, built from the shapes of two feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normalised

from feature_gan_kd.batch_statistics import normalise
from feature_gan_kd.errors import UserError
from feature_gan_kd.features import MapShape
from feature_gan_kd.processes import process_count
from feature_gan_kd.topology import Edge


class Discriminator(nn.Module):
    """Conv - BatchNorm - LeakyReLU - Conv - Sigmoid: one answer in (0, 1) per image (paper, section 3).

    Kernel, stride and width are ours, the paper does not state them: the first convolution looks at 3x3
    patches with stride 2 (1x1 where the map is that small) and narrows to at most `width` channels, so that the
    cost stays small beside the networks; the second covers what is left of the grid.

    Args:
        shape: (channels, height, width) of the maps it judges.
        width: channels between the two convolutions, at most.
        norm: between them: `batch` (the paper's), `group` or `none`.
        bounded: answers go through the sigmoid, as the paper's; without it they are any numbers (ours).
        patches: one answer for each place that is left of the grid, in place of one for the map (ours, after the
            patch discriminator of Isola et al. 2017).
        spectral_norm: divides both convolutions' weights by their largest singular values (ours, after Miyato et
            al. 2018).
        noise: standard deviation of Gaussian noise on what it sees, in those of the map (ours).
    """

    def __init__(
        self,
        shape: MapShape,
        width: int = 128,
        norm: Literal["batch", "group", "none"] = "batch",
        *,
        bounded: bool = True,
        patches: bool = False,
        spectral_norm: bool = False,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, grid_width = shape
        hidden = min(channels, width)
        small = min(height, grid_width) < 2
        self.shape = shape
        self.bounded = bounded
        self.patches = patches
        self.noise = noise
        self.conv1 = (
            nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
            if small
            else nn.Conv2d(channels, hidden, kernel_size=3, stride=2, padding=1, bias=False)
        )
        norms: dict[str, Callable[[], nn.Module]] = {
            "batch": lambda: BatchStatisticsNorm(hidden),
            "group": lambda: nn.GroupNorm(math.gcd(hidden, 8), hidden),
            "none": nn.Identity,
        }
        self.norm = norms[norm]()
        rest = (height, grid_width) if small else ((height + 1) // 2, (grid_width + 1) // 2)
        self.conv2 = nn.Conv2d(hidden, 1, kernel_size=(1, 1) if patches else rest)
        if spectral_norm:
            spectrally_normalised(self.conv1)
            spectrally_normalised(self.conv2)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Answers (batch,), or (batch, patches), for maps (batch, channels, height, width).

        They are float32 or wider, and in (0, 1) if `bounded`.
        """
        if self.noise:
            feature_map = feature_map + self.noise * feature_map.detach().std() * torch.randn_like(feature_map)
        hidden = F.leaky_relu(self.norm(self.conv1(feature_map)), 0.2)
        answer = self.conv2(hidden).flatten(1)
        answer = answer if self.patches else answer.mean(1)
        answer = answer.to(torch.promote_types(answer.dtype, torch.float32))
        return torch.sigmoid(answer) if self.bounded else answer


class BatchStatisticsNorm(nn.Module):
    """Batch normalisation by the statistics of the whole batch, those of all processes together.

    A discriminator is only ever asked in training, so there are no running averages: asking it changes nothing
    in it. `nn.BatchNorm2d` would see each process's share alone and `nn.SyncBatchNorm` does not run on CPU.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (batch, channels, height, width), of the same shape."""
        if process_count() == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return normalise(x, self.weight, self.bias, self.eps)


def build_links(
    edges: Sequence[Edge],
    shapes: Sequence[Sequence[MapShape]],
    seed: int,
    discriminator: Callable[[MapShape], nn.Module] | None,
) -> list[Link]:
    """One link per edge and tap.

    Args:
        edges: who teaches whom.
        shapes: per network the shapes of its maps; peers are matched tap by tap.
        seed: of their first weights.
        discriminator: makes a discriminator for maps of a shape; None makes none.

    Raises:
        UserError: where source and learner have different numbers of taps, or a discriminator is no module or gives
            neither one answer per map nor one per patch.
    """
    check_taps(edges, shapes)
    links = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edge in edges:
            for tap, (own, other) in enumerate(zip(shapes[edge.learner], shapes[edge.source], strict=True)):
                links.append(Link(edge, tap, own, other, discriminator))
    return links


def check_taps(edges: Sequence[Edge], shapes: Sequence[Sequence[MapShape]]) -> None:
    """Refuses peers that cannot be matched tap by tap.

    Args:
        edges: who teaches whom.
        shapes: per network the shapes of its maps.

    Raises:
        UserError: where source and learner have different numbers of taps.
    """
    for edge in edges:
        learner, source = shapes[edge.learner], shapes[edge.source]
        if len(learner) != len(source):
            raise UserError(
                f"feature_layers: network {edge.learner} has {len(learner)} tapped layers and its source "
                f"{edge.source} has {len(source)}: name as many for both"
            )


def _answering(make: Callable[[MapShape], nn.Module], shape: MapShape) -> nn.Module:
    """A discriminator that was seen to give one answer per map, or one per patch of each."""
    discriminator = make(shape)
    if not isinstance(discriminator, nn.Module):
        raise UserError(f"discriminator: made a {type(discriminator).__name__} for maps {shape}, expected a module")
    with torch.no_grad():
        answers = discriminator(torch.zeros(2, *shape))
    if not isinstance(answers, Tensor) or answers.ndim not in (1, 2) or len(answers) != 2:
        given = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
        raise UserError(
            f"discriminator: gives {given} for 2 maps {shape}, expected one answer each: shape (2,), or (2, patches)"
        )
    return discriminator


def build_transfer(learner: MapShape, source: MapShape) -> nn.Module:
    """The learner's transfer layer T_k: identity where the channels match, else 1x1 convolution and norm.

    The paper has it only where the maps differ in channels (section 3.2). It belongs to the learner and brings
    its map into the source's space; the source's map is never changed by a learnable layer (ours).
    """
    if learner[0] == source[0]:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(learner[0], source[0], kernel_size=1, bias=False), BatchStatisticsNorm(source[0]))


class Link(nn.Module):
    """One source's map as a lesson for one learner: the transfer layer and the discriminator of an edge.

    Args:
        edge: who teaches whom.
        tap: position of the tap in both networks.
        learner: shape of the learner's map.
        source: shape of the source's map.
        discriminator: makes the discriminator for maps of a shape; None makes none (direct alignment).

    Raises:
        UserError: where the discriminator is no module or gives neither one answer per map nor one per patch.
    """

    def __init__(
        self,
        edge: Edge,
        tap: int,
        learner: MapShape,
        source: MapShape,
        discriminator: Callable[[MapShape], nn.Module] | None = Discriminator,
    ) -> None:
        super().__init__()
        self.edge = edge
        self.tap = tap
        self.learner_shape = learner
        self.source_shape = source
        # Different grids meet at the smaller one (ours).
        self.grid = (min(learner[1], source[1]), min(learner[2], source[2]))
        self.transfer = build_transfer(learner, source)
        self.discriminator = None if discriminator is None else _answering(discriminator, (source[0], *self.grid))

    def maps(self, learner_map: Tensor, source_map: Tensor) -> tuple[Tensor, Tensor]:
        """The learner's map brought into the source's space, and the source's, on one grid.

        Args:
            learner_map: (batch, channels, height, width) of the learner; gradient flows.
            source_map: the same of the source; detached.

        Returns:
            Fake and real map, both (batch, source's channels, *grid).

        Raises:
            UserError: where a map has other channels or a smaller grid than the wiring was built for.
        """
        _check_shape(learner_map, self.learner_shape, self.edge.learner)
        _check_shape(source_map, self.source_shape, self.edge.source)
        return self.transfer(pool_to(learner_map, self.grid)), pool_to(source_map.detach(), self.grid)


def pool_to(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map (batch, channels, height, width) average-pooled to `grid`; unchanged where it has that grid already."""
    if tuple(feature_map.shape[-2:]) == grid:
        return feature_map
    return F.adaptive_avg_pool2d(feature_map, grid)


def _check_shape(feature_map: Tensor, expected: MapShape, network: int) -> None:
    channels, height, width = feature_map.shape[1:]
    if channels != expected[0] or height < expected[1] or width < expected[2]:
        raise UserError(
            f"network {network}: its feature map is {channels}x{height}x{width}, the wiring was built for "
            f"{'x'.join(map(str, expected))}: give the size of the images as image_size"
        )
