"""Discriminators, transfer layers and what stands between two maps, against the formulas in `reference`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.method import losses
from feature_gan_kd.method.connection import Connection, build_connections, build_transfer, pool_to
from feature_gan_kd.method.discriminator import BatchStatisticsNorm, ClassDiscriminator, Discriminator, MapShape
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.utils.errors import UserError
from tests.helpers import reference
from tests.helpers.small_models import GroupNormModel

EDGE = Edge(source=0, learner=1)
SHAPES: list[MapShape] = [(3, 1, 1), (4, 1, 5), (4, 2, 2), (5, 3, 3), (4, 7, 7), (6, 4, 6), (3, 8, 5)]


def maps(shape: MapShape, batch: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


def scrambled(module: nn.Module) -> nn.Module:
    """The module in float64, with random values in every parameter."""
    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def gradients(loss: Tensor, weights: reference.Weights) -> reference.Weights:
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.mark.parametrize("kind", ["paper", "least-squares", "hinge", "relativistic", "reversal"])
@pytest.mark.parametrize("width", [2, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_discriminator_and_its_gradients(shape: MapShape, width: int, kind: losses.AdversarialLoss) -> None:
    form = {"bounded": kind == "paper"}
    discriminator = scrambled(Discriminator(shape, width, **form))
    weights = {name: value.requires_grad_() for name, value in reference.values_of(discriminator).items()}
    real, fake = maps(shape), maps(shape, seed=1).requires_grad_()
    answers = discriminator(real), discriminator(fake)
    expected = reference.discriminator(weights, real, **form), reference.discriminator(weights, fake, **form)
    for answer, other in zip(answers, expected, strict=True):
        assert answer.ndim == 1
        torch.testing.assert_close(answer, other, rtol=1e-9, atol=1e-12)
    own = dict(discriminator.named_parameters())
    found = gradients(losses.discriminator(*answers, kind), own)
    for name, value in gradients(reference.discriminator_loss(*expected, kind), weights).items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-12)
    # L_G, through the same answer: the gradient for the learner's map.
    (to_map,) = torch.autograd.grad(losses.adversarial(discriminator(real), discriminator(fake), kind), fake)
    other = reference.adversarial_loss(
        reference.discriminator(weights, real, **form), reference.discriminator(weights, fake, **form), kind
    )
    torch.testing.assert_close(to_map, torch.autograd.grad(other, fake)[0], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize(("channels", "classes"), [(6, 5), (64, 64), (64, 65)])
def test_discriminator_that_sees_classes(channels: int, classes: int, bounded: bool) -> None:
    """As it is up to 4,096 numbers, and beyond that in a random projection."""
    torch.manual_seed(1)
    discriminator = ClassDiscriminator((channels, 3, 2), classes, width=4, bounded=bounded)
    projected = channels * classes > 4096
    inputs = 1024 if projected else channels * classes
    weights = reference.values_of(discriminator)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        **{"hidden.weight": (4, inputs), "hidden.bias": (4,), "answer.weight": (1, 4), "answer.bias": (1,)}
    }
    fixed = reference.buffers_of(discriminator)
    assert set(fixed) == ({"map_projection", "class_projection"} if projected else set())
    feature_map = maps((channels, 3, 2)).requires_grad_()
    logits = 3 * torch.randn(4, classes, dtype=torch.float64)
    found = discriminator.double()(feature_map, logits.softmax(1))
    expected = reference.class_discriminator({**weights, **fixed}, feature_map, logits, bounded=bounded)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(one.sum(), feature_map)[0] for one in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_projections_keep_the_inner_products_of_the_whole_product() -> None:
    torch.manual_seed(0)
    discriminator = ClassDiscriminator((50, 1, 1), 100).double()
    averaged, shares = torch.randn(2, 50).double(), torch.randn(2, 100).softmax(1).double()
    whole = (averaged[:, :, None] * shares[:, None]).flatten(1)
    seen: list[Tensor] = []
    discriminator.hidden.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    discriminator(averaged[:, :, None, None], shares)
    torch.testing.assert_close(seen[0] @ seen[0].T, whole @ whole.T, rtol=0, atol=0.15 * float((whole @ whole.T).max()))


def test_an_image_of_another_class_gets_another_answer() -> None:
    connection = Connection(EDGE, 0, (3, 2, 2), (3, 2, 2), lambda shape: ClassDiscriminator(shape, 2))
    scrambled(connection)
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]], dtype=torch.float64, requires_grad=True)
    one, other = connection.answer(maps((3, 2, 2), 1).repeat(2, 1, 1, 1), logits)
    assert one != other
    assert torch.autograd.grad(one + other, logits, allow_unused=True) == (None,)


def test_discriminator_is_conv_norm_leaky_conv_sigmoid() -> None:
    discriminator = Discriminator((8, 7, 7), width=4)
    shapes = {name: tuple(value.shape) for name, value in discriminator.named_parameters()}
    assert shapes == {
        "conv1.weight": (4, 8, 3, 3),
        "norm.weight": (4,),
        "norm.bias": (4,),
        "conv2.weight": (1, 4, 4, 4),
        "conv2.bias": (1,),
    }
    assert not list(discriminator.buffers())


@pytest.mark.parametrize(
    ("shape", "first", "second"),
    [
        ((3, 1, 1), (3, 3, 1, 1), (1, 3, 1, 1)),
        ((4, 1, 5), (4, 4, 1, 1), (1, 4, 1, 5)),
        ((4, 2, 2), (4, 4, 3, 3), (1, 4, 1, 1)),
        ((4, 8, 5), (4, 4, 3, 3), (1, 4, 4, 3)),
    ],
)
def test_the_second_convolution_covers_what_the_first_leaves(
    shape: MapShape, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    discriminator = Discriminator(shape)
    assert (discriminator.conv1.weight.shape, discriminator.conv2.weight.shape) == (first, second)


def test_a_wide_map_meets_a_bottleneck() -> None:
    discriminator = Discriminator((2048, 7, 7))
    assert discriminator.conv1.weight.shape == (128, 2048, 3, 3)
    assert Discriminator((64, 7, 7)).conv1.weight.shape == (64, 64, 3, 3)


def test_asking_a_discriminator_changes_nothing_and_mode_does_not_matter() -> None:
    discriminator = scrambled(Discriminator((5, 4, 4)))
    before = copy.deepcopy(discriminator.state_dict())
    answer = discriminator(maps((5, 4, 4)))
    assert torch.equal(discriminator.eval()(maps((5, 4, 4))), answer)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())


def test_answers_are_at_least_single_precision() -> None:
    discriminator = Discriminator((5, 4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = discriminator(maps((5, 4, 4)).float())
    assert answer.dtype is torch.float32
    assert discriminator.double()(maps((5, 4, 4))).dtype is torch.float64


def test_norm_equals_torchs() -> None:
    norm, torchs = BatchStatisticsNorm(5).double(), nn.BatchNorm2d(5).double()
    with torch.no_grad():
        for parameter, other in zip(norm.parameters(), torchs.parameters(), strict=True):
            other.copy_(parameter.normal_())
    x = maps((5, 3, 3))
    torch.testing.assert_close(norm(x), torchs(x))


def test_transfer_is_absent_where_channels_match() -> None:
    assert not list(build_transfer((4, 7, 7), (4, 2, 2)).parameters())


def test_transfer_brings_the_learners_channels_to_the_sources() -> None:
    transfer = scrambled(build_transfer((4, 3, 3), (6, 3, 3)))
    x = maps((4, 3, 3))
    torch.testing.assert_close(transfer(x), reference.transfer(reference.values_of(transfer), x))
    assert transfer(x).shape == (4, 6, 3, 3)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 2), (4, 3), (7, 5)])
def test_pooling(grid: tuple[int, int]) -> None:
    x = maps((2, 7, 5))
    torch.testing.assert_close(pool_to(x, grid), reference.pool(x, grid))


def test_pooling_to_its_own_grid_is_the_map_itself() -> None:
    x = maps((2, 7, 5))
    assert pool_to(x, (7, 5)) is x


@pytest.mark.parametrize(
    ("learner", "source"),
    [((4, 3, 3), (4, 3, 3)), ((4, 6, 6), (5, 3, 3)), ((5, 3, 3), (4, 6, 6)), ((4, 2, 6), (6, 5, 3))],
)
def test_link_brings_two_maps_together(learner: MapShape, source: MapShape) -> None:
    connection = scrambled(Connection(EDGE, 0, learner, source))
    assert isinstance(connection, Connection)
    own, other = maps(learner).requires_grad_(), maps(source, seed=1).requires_grad_()
    fake, real = connection.maps(own, other)
    expected = reference.ReferenceConnection(0, 1, "", reference.values_of(connection.transfer), {})
    expected_fake, expected_real = expected.maps(own, other, expected.transfer)
    torch.testing.assert_close(fake, expected_fake)
    torch.testing.assert_close(real, expected_real)
    # The source's map reaches the discriminator as it is: no weight of ours, and no gradient back.
    assert not real.requires_grad
    assert fake.requires_grad
    assert connection.discriminator is not None
    assert connection.discriminator(fake).shape == connection.discriminator(real).shape == (4,)
    loss = losses.discriminator(connection.discriminator(real), connection.discriminator(fake))
    assert torch.autograd.grad(loss, other, allow_unused=True) == (None,)


def test_link_takes_a_larger_grid_than_it_was_built_for() -> None:
    connection = Connection(EDGE, 0, (4, 3, 3), (4, 3, 3)).double()
    fake, real = connection.maps(maps((4, 5, 5)), maps((4, 6, 6)))
    assert fake.shape == real.shape == (4, 4, 3, 3)


@pytest.mark.parametrize(
    ("learner", "source", "model"),
    [((5, 3, 3), (4, 3, 3), 1), ((4, 2, 3), (4, 3, 3), 1), ((4, 3, 3), (4, 3, 2), 0), ((4, 3, 3), (3, 3, 3), 0)],
)
def test_link_refuses_other_maps(learner: MapShape, source: MapShape, model: int) -> None:
    connection = Connection(EDGE, 0, (4, 3, 3), (4, 3, 3)).double()
    with pytest.raises(UserError, match=rf"^model {model}: its feature map is .* built for 4x3x3: .*image_size$"):
        connection.maps(maps(learner), maps(source))


def test_links_one_per_edge_and_tap() -> None:
    shapes: list[list[MapShape]] = [[(4, 8, 8), (6, 4, 4)], [(4, 8, 8), (7, 2, 2)]]
    connections = build_connections([Edge(0, 1), Edge(1, 0)], shapes, seed=0, discriminator=Discriminator)
    assert [
        (str(connection.edge), connection.tap, connection.learner_shape, connection.source_shape, connection.grid)
        for connection in connections
    ] == [
        ("0->1", 0, (4, 8, 8), (4, 8, 8), (8, 8)),
        ("0->1", 1, (7, 2, 2), (6, 4, 4), (2, 2)),
        ("1->0", 0, (4, 8, 8), (4, 8, 8), (8, 8)),
        ("1->0", 1, (6, 4, 4), (7, 2, 2), (2, 2)),
    ]
    assert all(isinstance(connection.discriminator, Discriminator) for connection in connections)
    bare = build_connections([Edge(0, 1)], shapes, seed=0, discriminator=None)
    assert [connection.discriminator for connection in bare] == [None, None]


def test_links_are_a_function_of_the_seed_alone() -> None:
    shapes: list[list[MapShape]] = [[(4, 4, 4)], [(6, 4, 4)]]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (
        nn.ModuleList(build_connections([EDGE], shapes, seed=seed, discriminator=Discriminator)).state_dict()
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.discriminator.conv1.weight"], other["0.discriminator.conv1.weight"])


def test_links_need_as_many_taps_on_both_sides() -> None:
    shapes: list[list[MapShape]] = [[(4, 4, 4)], [(4, 4, 4), (4, 2, 2)]]
    with pytest.raises(UserError, match=r"^feature_layers: model 1 has 2 tapped layers and its source 0 has 1: "):
        build_connections([EDGE], shapes, seed=0, discriminator=Discriminator)


@pytest.mark.parametrize("loss", ["paper", "least-squares", "hinge", "relativistic", "reversal"])
def test_unbounded_answers_are_refused_by_the_loss_that_needs_bounds(loss: str) -> None:
    """An own linear discriminator under the paper's loss would be pushed to 0 and 1 without a gradient that ends."""

    def unbounded(shape: MapShape) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 1), nn.Flatten(0))

    def build() -> OnlineAdversarialDistiller:
        models = [GroupNormModel(4), GroupNormModel(6)]
        return OnlineAdversarialDistiller(models, image_size=8, discriminator=unbounded, adversarial_loss=loss)

    if loss != "paper":
        assert len(build().discriminators) == 2
        return
    with pytest.raises(UserError, match=r"^discriminator: gives answers from -\d.*the adversarial_loss 'paper' takes"):
        build()
