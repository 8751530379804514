"""A connection: the transfer layer and the discriminator between the feature maps of a learner and its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd.method.discriminator import BatchStatisticsNorm, ClassDiscriminator, Discriminator
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.tapped_model import MapShape
from feature_gan_kd.utils.errors import UserError, reason


def build_connections(
    edges: Sequence[Edge],
    shapes: Sequence[Sequence[MapShape]],
    seed: int,
    discriminator: Callable[[MapShape], nn.Module] | None,
    *,
    bounded: bool = True,
    projects: bool = True,
    max_grid: int | None = None,
) -> list[Connection]:
    """Builds a connection for each edge and tap.

    Args:
        edges: who teaches whom.
        shapes: for each model the shapes of its maps, tap by tap.
        seed: of the initial weights.
        discriminator: makes a discriminator for maps of a shape; None makes none.
        bounded: whether the loss takes answers in (0, 1) only.
        projects: whether a term compares the maps in one space, which needs transfer layers.
        max_grid: most positions a side at which they are compared; None: as many as the smaller map has.

    Raises:
        UserError: if source and learner have different numbers of taps, or a discriminator is not a module, gives
            neither one answer for each map nor one for each patch, or gives answers that the loss does not take; for
            discriminators that share parameters.
    """
    check_taps(edges, shapes)
    connections = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edge in edges:
            for tap, (own, other) in enumerate(zip(shapes[edge.learner], shapes[edge.source], strict=True)):
                connection = Connection(
                    edge, tap, own, other, discriminator, bounded=bounded, projects=projects, max_grid=max_grid
                )
                connections.append(connection)
    parameters = [id(p) for one in connections if one.discriminator for p in one.discriminator.parameters()]
    if len(set(parameters)) < len(parameters):
        raise UserError(
            "discriminator: the function gives the same module, or parts of it, for several connections, and each is "
            "stepped by itself: let it build a new one at every call"
        )
    return connections


def check_taps(edges: Sequence[Edge], shapes: Sequence[Sequence[MapShape]]) -> None:
    """Refuses a source and a learner that cannot be matched tap by tap.

    Args:
        edges: who teaches whom.
        shapes: for each model the shapes of its maps.

    Raises:
        UserError: if source and learner have different numbers of taps.
    """
    for edge in edges:
        learner, source = shapes[edge.learner], shapes[edge.source]
        if len(learner) != len(source):
            raise UserError(
                f"feature_layers: model {edge.learner} has {len(learner)} tapped layers and its source "
                f"{edge.source} has {len(source)}: name the same number of layers for both"
            )


def _checked_discriminator(make: Callable[[MapShape], nn.Module], shape: MapShape, bounded: bool) -> nn.Module:
    """Makes a discriminator, and checks its answers: one for each map or each patch, and in (0, 1) if `bounded`.

    Raises:
        UserError: for anything else, one that fails, and one that changes the maps in place.
    """
    discriminator = make(shape)
    if not isinstance(discriminator, nn.Module):
        raise UserError(f"discriminator: made a {type(discriminator).__name__} for maps {shape}, expected a module")
    maps = torch.zeros(2, *shape)
    with torch.no_grad():
        try:
            answers = discriminator(maps)
        except Exception as error:  # the user's module can raise anything
            raise UserError(f"discriminator: fails on 2 maps {shape} ({reason(error)}): build it for them") from error
    if maps._version:
        raise UserError(
            "discriminator: changes the maps that it is given in place, and other losses need them: let its first "
            "layers work on a copy, as nn.ReLU(inplace=False)"
        )
    if not isinstance(answers, Tensor) or answers.ndim not in (1, 2) or len(answers) != 2:
        given = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
        raise UserError(
            f"discriminator: gives {given} for 2 maps {shape}, expected one answer each: shape (2,), or (2, patches)"
        )
    if bounded:
        _check_bounds(discriminator, shape)
    return discriminator


def _check_bounds(discriminator: nn.Module, shape: MapShape) -> None:
    """Raises UserError where answers to large random maps leave [0, 1]; changes neither buffers nor generators."""
    maps = 100 * torch.randn(8, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    dtype = next((parameter.dtype for parameter in discriminator.parameters()), torch.get_default_dtype())
    was_training = discriminator.training
    discriminator.eval()
    with torch.no_grad():
        answers = discriminator(maps.to(dtype))
    discriminator.train(was_training)
    if answers.is_meta:  # `inspect` computes shapes alone
        return
    low, high = float(answers.min()), float(answers.max())
    if low < 0 or high > 1:
        raise UserError(
            f"discriminator: gives answers from {low:.3g} to {high:.3g}, the adversarial_loss 'paper' takes answers in "
            "(0, 1): end it with a sigmoid, or choose another"
        )


def build_transfer(learner: MapShape, source: MapShape) -> nn.Module:
    """Builds the learner's transfer layer T_k: 1x1 convolution and norm, or identity where the channels match.

    The paper has it only where the maps differ in channels (section 3.2). It projects the learner's map into the
    source's space. No learnable layer ever changes the source's map, which training could turn into a give-away (ours).
    """
    if learner[0] == source[0]:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(learner[0], source[0], kernel_size=1, bias=False), BatchStatisticsNorm(source[0]))


class Connection(nn.Module):
    """What compares a learner's feature map with its source's: the transfer layer and the discriminator.

    Args:
        edge: who teaches whom.
        tap: position of the tap in both models.
        learner: shape of the learner's map.
        source: shape of the source's map.
        discriminator: makes the discriminator for maps of a shape; None makes none (direct alignment).
        bounded: whether the loss takes answers in (0, 1) only.
        projects: whether a term compares the maps in one space.
        max_grid: see `build_connections`.

    Raises:
        UserError: if the discriminator is not a module, gives neither one answer for each map nor one for each patch,
            or gives answers that the loss does not take.
    """

    def __init__(
        self,
        edge: Edge,
        tap: int,
        learner: MapShape,
        source: MapShape,
        discriminator: Callable[[MapShape], nn.Module] | None = Discriminator,
        *,
        bounded: bool = True,
        projects: bool = True,
        max_grid: int | None = None,
    ) -> None:
        super().__init__()
        self.edge = edge
        self.tap = tap
        self.learner_shape = learner
        self.source_shape = source
        # Maps on different grids are compared on the smaller one (ours): pooling loses detail, upsampling invents it.
        most = max_grid or max(learner[1:])
        self.grid = (min(learner[1], source[1], most), min(learner[2], source[2], most))
        self.transfer = build_transfer(learner, source) if projects else nn.Identity()
        shape = source[0], *self.grid
        self.discriminator = None if discriminator is None else _checked_discriminator(discriminator, shape, bounded)

    def maps(self, learner_map: Tensor, source_map: Tensor) -> tuple[Tensor, Tensor]:
        """Projects the learner's map into the source's space, and brings both maps to one grid.

        Args:
            learner_map: (batch, channels, height, width) of the learner; gradient flows.
            source_map: the same of the source; detached.

        Returns:
            Fake and real map, both (batch, source's channels, *grid).

        Raises:
            UserError: if a map has other channels or a smaller grid than the connection was built for.
        """
        _check_shape(learner_map, self.learner_shape, self.edge.learner)
        _check_shape(source_map, self.source_shape, self.edge.source)
        return self.transfer(pool_to(learner_map, self.grid)), pool_to(source_map.detach(), self.grid)

    def answer(self, feature_map: Tensor, logits: Tensor) -> Tensor:
        """The discriminator's answers to maps, and to the classes of their images if it sees them.

        Args:
            feature_map: (batch, source's channels, *grid), of `maps`.
            logits: (batch, classes) of the model that made the maps; no gradient reaches them.

        Returns:
            (batch,) or (batch, patches).
        """
        assert self.discriminator is not None
        seen = (logits.detach().softmax(1),) if isinstance(self.discriminator, ClassDiscriminator) else ()
        answers: Tensor = self.discriminator(feature_map, *seen)
        return answers


def pool_to(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average-pools a map (batch, channels, height, width) to `grid`; returns it unchanged if it has that grid."""
    if tuple(feature_map.shape[-2:]) == grid:
        return feature_map
    return F.adaptive_avg_pool2d(feature_map, grid)


def _check_shape(feature_map: Tensor, expected: MapShape, model: int) -> None:
    channels, height, width = feature_map.shape[1:]
    if channels != expected[0] or height < expected[1] or width < expected[2]:
        raise UserError(
            f"model {model}: its feature map is {channels}x{height}x{width}, the connection was built for "
            f"{'x'.join(map(str, expected))}: give the size of the images as image_size"
        )
