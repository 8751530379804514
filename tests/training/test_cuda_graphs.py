"""Recorded updates do what the step does: on a GPU where there is one, elsewhere by a recorder of operators.

That recorder keeps to the rules of CUDA graphs. What it has recorded is run on the very tensors of the recording, with
the numbers that Python put in then; nothing is done while it records; what reads from the device or copies to it fails.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.training import cuda_graphs
from feature_gan_kd.training.cuda_graphs import WARM_UPS, CudaGraphs
from feature_gan_kd.training.divided_update import DividedUpdate
from tests.helpers.small_models import Convolutional, assert_same_state

SIZE = 8
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.lift_fresh.default,  # torch.tensor: a copy from the host
}
MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "interval": {"adversarial_interval": 2},
    "rare discriminators": {"discriminator_interval": 3},
    "single backward": {"joint_backward": True},
    "parts": {"grad_accum_steps": 2},
    "clipped": {"clip_grad": 0.5},
    "logit": {"method": "logit"},
    "l1": {"method": "l1"},
    "vanilla": {"method": "vanilla"},
    "frozen source": {"frozen": [0]},
    "two taps": {"feature_layers": ["block1", "block2"]},
    "three models": {"widths": (4, 6, 4)},
    "bf16": {"mixed_precision": "bf16"},
    "another logit term": {"logit_loss": "decoupled", "targets": "ensemble", "confidence_threshold": 0.3},
    "classes": {"discriminator_classes": True, "adversarial_loss": "reversal", "joint_backward": True},
    "no momentum": {"momentum": 0.0},
    "measured": {"log_gradients": True, "log_every_steps": 3},
}
STATISTICS = ("gradient_", "decay_", "update_", "descent_", "shrinkage_")


# One program, two that take turns, the parts of an update, what the update measures; the others go into the slow tier.
FAST = ("exact", "interval", "parts", "measured")


class Operators(TorchDispatchMode):
    """Every operator that runs, with what it was given and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITING:
            raise RuntimeError(f"{function} is not permitted when stream is capturing")
        answer = function(*args, **(kwargs or {}))
        self.calls.append((function, *pytree.tree_map(lambda x: x, (args, kwargs or {}, answer))))
        return answer

    @torch.no_grad()
    def again(self) -> None:
        """Runs them once more, on the same memory."""
        for function, args, kwargs, old in self.calls:
            for before, now in zip(_new(function, old), _new(function, function(*args, **kwargs)), strict=True):
                before.copy_(now)

    @torch.no_grad()
    def spoil(self) -> None:
        """Nothing has run yet: what they gave is worth nothing."""
        for function, _, _, old in self.calls:
            for value in _new(function, old):
                value.fill_(torch.nan if value.is_floating_point() else 1)


def _new(function: Any, answer: Any) -> list[Tensor]:
    """Of an operator's answers those that are no other tensor, nor a view of one."""
    returned = function._schema.returns
    answers = pytree.tree_leaves(answer) if returned else []
    kinds = returned * len(answers) if len(returned) == 1 else returned  # a list is one of these
    return [
        one for one, kind in zip(answers, kinds, strict=True) if isinstance(one, Tensor) and kind.alias_info is None
    ]


class OperatorRecorder:
    """A recorder for any device.

    Args:
        state: all tensors that an update changes.
    """

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self.state = state
        self.made = 0
        self.replayed = 0
        self.forgotten = 0

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        yield

    def forget(self) -> None:
        self.forgotten += 1

    def record(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        before = [(tensor, tensor.detach().clone()) for tensor in self.state()]
        operators = Operators()
        try:
            with torch.random.fork_rng(), operators:
                answer = function()
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        operators.spoil()
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        self.made += 1

        def replay() -> None:
            self.replayed += 1
            operators.again()

        return answer, replay


def trained(distiller: OnlineAdversarialDistiller) -> list[Tensor]:
    step = distiller.step
    modules = [*distiller.models, *distiller.group.connections]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    for update in step.optimizer_groups.values():
        tensors += [v for state in update.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return [*tensors, *step.guard.tensors()]


def recorded(distiller: OnlineAdversarialDistiller) -> OperatorRecorder:
    recorder = OperatorRecorder(lambda: trained(distiller))
    cuda_graphs.check_optimizers(distiller.step)
    distiller.group.update = CudaGraphs(distiller.step, recorder)
    return recorder


def build(widths: tuple[int, ...] = (4, 6), **settings: Any) -> OnlineAdversarialDistiller:
    torch.manual_seed(0)
    own = {"feature_layers": "block2", "lr": 0.05, "adversarial_lr": 1e-3, "discriminator_lr": 1e-3, **settings}
    return OnlineAdversarialDistiller([Convolutional(width, drop=0.2) for width in widths], image_size=SIZE, **own)


def batch(number: int, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 3, SIZE, SIZE, generator=generator), torch.randint(5, (size,), generator=generator)


def evaluate(distiller: OnlineAdversarialDistiller) -> None:
    images = batch(0)[0].to(distiller.accelerator.device)
    for model in distiller.models:
        model.eval()(images)


def update(distiller: OnlineAdversarialDistiller, numbers: Iterable[int]) -> None:
    """Updates by the batches of these numbers."""
    for number in numbers:
        torch.manual_seed(number)
        distiller.training_step(*batch(number))


def train(distiller: OnlineAdversarialDistiller, sizes: list[int], start: int = 0) -> list[dict[str, float]]:
    """Updates with a rate that falls, and an evaluation in between."""
    found = []
    for number, size in enumerate(sizes, start):
        torch.manual_seed(number)
        for update in distiller.step.optimizer_groups.values():
            for group in update.optimizer.param_groups:
                group["lr"] *= 0.9
        found.append(distiller.training_step(*batch(number, size)))
        evaluate(distiller)
    return [{key: float(value) for key, value in metrics.items()} for metrics in found]


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=[] if mode in FAST else pytest.mark.slow) for mode in MODES])
def test_recorded_updates_are_those_of_the_step(mode: str) -> None:
    """Also those of an uneven last batch, and after evaluations: weights, states and all metrics, read at the end."""
    plain, graphs = build(**MODES[mode]), build(**MODES[mode])
    recorder = recorded(graphs)
    sizes = [6, 6, 6, 6, 5] * 4
    expected, found = train(plain, sizes), train(graphs, sizes)
    assert_same_state(graphs, plain, 1e-6)
    assert recorder.made >= 2
    assert recorder.replayed >= 4
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            # Gradient statistics come from differences of weights, in which a rounding of a weight weighs more.
            tolerance = 1e-5 if name.startswith(STATISTICS) else 1e-6
            assert one[name] == pytest.approx(value, rel=1e-5, abs=tolerance), name


def test_every_kind_and_size_is_recorded_once() -> None:
    distiller = build(adversarial_interval=2)
    recorder = recorded(distiller)
    train(distiller, [6] * 20)
    assert recorder.made == 2
    assert recorder.replayed == 20 - 2 * WARM_UPS
    train(distiller, [5] * 20)
    assert recorder.made == 4


def test_a_skipped_update_changes_nothing_and_is_counted() -> None:
    plain, graphs = build(), build()
    recorder = recorded(graphs)
    for distiller in (plain, graphs):
        train(distiller, [6] * 5)
        images, labels = batch(5)
        metrics = distiller.training_step(images * torch.inf, labels)
        assert metrics["skipped"] == 1
        train(distiller, [6] * 2, start=6)
    assert recorder.replayed == 8 - WARM_UPS
    assert_same_state(graphs, plain, 1e-6)
    assert graphs.group.skipped_steps() == plain.group.skipped_steps()
    assert graphs.group.skipped_steps().skipped == 1


def test_a_first_update_that_is_skipped_does_no_harm() -> None:
    plain, graphs = build(), build()
    recorded(graphs)
    for distiller in (plain, graphs):
        for number in range(WARM_UPS + 1):
            images, labels = batch(number)
            distiller.training_step(images * torch.inf, labels)
        train(distiller, [6] * 4)
    assert_same_state(graphs, plain, 1e-6)
    assert graphs.group.skipped_steps().skipped == WARM_UPS + 1


def _other_state(distiller: OnlineAdversarialDistiller) -> None:
    distiller.group.load_state(copy.deepcopy(distiller.group.state()))


def _frozen_statistics(distiller: OnlineAdversarialDistiller) -> None:
    for model in distiller.models:
        model.train()
        model.get_submodule("block1.1").eval()


def _no_decay(distiller: OnlineAdversarialDistiller) -> None:
    distiller.step.logit_groups[0].optimizer.param_groups[0]["weight_decay"] = 0.0


def _less_dropout(distiller: OnlineAdversarialDistiller) -> None:
    distiller.models[0].get_submodule("drop").p = 0.0


def _moved_parameter(distiller: OnlineAdversarialDistiller) -> None:
    parameter = distiller.models[0].get_submodule("head").weight
    parameter.data = parameter.data.clone()


def _moved_discriminator(distiller: OnlineAdversarialDistiller) -> None:
    for parameter in distiller.discriminators.parameters():
        parameter.data = parameter.data.clone()


def _new_buffer(distiller: OnlineAdversarialDistiller) -> None:
    norm = distiller.models[1].get_submodule("block2.1")
    norm.running_mean = torch.ones_like(norm.running_mean)


@pytest.mark.parametrize(
    "change",
    [_other_state, _frozen_statistics, _no_decay, _less_dropout, _moved_parameter, _moved_discriminator, _new_buffer],
)
def test_what_an_update_depends_on_may_change(change: Callable[[OnlineAdversarialDistiller], None]) -> None:
    plain, graphs = build(), build()
    recorder = recorded(graphs)
    for distiller in (plain, graphs):
        update(distiller, range(5))
        change(distiller)
        update(distiller, range(5, 9))
    assert recorder.made == 2
    assert recorder.replayed == 9 - 2 * WARM_UPS  # libraries prepare themselves anew
    assert recorder.forgotten >= 2
    assert_same_state(graphs, plain, 1e-6)


def test_an_evaluation_in_ones_own_loop_changes_nothing() -> None:
    plain, graphs = build(), build()
    recorder = recorded(graphs)
    for distiller in (plain, graphs):
        for epoch in range(3):
            update(distiller, range(4 * epoch, 4 * epoch + 4))
            evaluate(distiller)
    assert recorder.made == 1
    assert recorder.replayed == 12 - WARM_UPS
    assert_same_state(graphs, plain, 1e-6)


def test_further_sizes_run_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    plain, graphs = build(), build()
    recorder = recorded(graphs)
    sizes = [4, 5, 6, 7] * 6
    train(plain, sizes)
    train(graphs, sizes)
    assert recorder.made == 2
    assert_same_state(graphs, plain, 1e-6)


class _Counting(Convolutional):
    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


def test_a_model_that_counts_its_calls_is_recorded_once() -> None:
    distiller = OnlineAdversarialDistiller([_Counting(4), Convolutional(4)], image_size=SIZE, feature_layers="block2")
    recorder = recorded(distiller)
    update(distiller, range(9))
    assert recorder.made == 1


def test_fit_takes_its_updates_from_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that were trained with another normalisation each, too: its constants are new in every fit."""
    recorders = []

    def record(step: Any, device: torch.device) -> CudaGraphs:
        recorders.append(OperatorRecorder(lambda: trained(holder[-1])))
        return CudaGraphs(step, recorders[-1])

    monkeypatch.setattr(cuda_graphs, "graphs_on_gpu", record)
    holder: list[OnlineAdversarialDistiller] = []
    for switch in (False, True):
        torch.manual_seed(0)
        first, second = OnlineAdversarialDistiller(["cifar_resnet8"] * 2, num_classes=10, image_size=32).group.peers
        trained_before = dataclasses.replace(second, normalisation=Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.1)))
        holder.append(
            OnlineAdversarialDistiller(
                [first, trained_before],
                image_size=32,
                lr=2**-6,  # recordings read rates in float32
                adversarial_lr=2**-15,
                discriminator_lr=2**-15,
                milestones=(),
                adversarial_milestones=(),
                recipe="paper",
                max_train_samples=48,
                max_eval_samples=16,
                cuda_graphs=switch,
            )
        )
        for _ in range(2):
            holder[-1].fit(epochs=2, batch_size=8, progress=False)
    plain, graphs = holder
    assert_same_state(graphs, plain)
    assert recorders[0].made >= 2
    assert recorders[0].replayed >= 12


class _Reading(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * float(images.mean() > -1)


class _Copying(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])


class _Large(Convolutional):
    fits = 100

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(images)


@pytest.mark.parametrize("fits", [3, 0])
def test_where_memory_runs_out_in_a_recording_the_batch_is_divided(fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = OnlineAdversarialDistiller([_Large(4), Convolutional(4)], image_size=SIZE, feature_layers="block2")
    recorded(distiller)
    graphs = distiller.group.update
    distiller.group.update = DividedUpdate(distiller.step, graphs, full_precision=True)
    update(distiller, range(WARM_UPS))
    monkeypatch.setattr(_Large, "fits", fits)
    if not fits:
        with pytest.raises(UserError, match=r"^memory: a batch of 6 images of 3x8x8 in 3 parts does not fit"):
            distiller.training_step(*batch(WARM_UPS))
        return
    update(distiller, range(WARM_UPS, 2 * WARM_UPS + 3))
    assert distiller.step.grad_accum_steps == 2
    assert isinstance(graphs, CudaGraphs)
    assert len(graphs.recordings) == 1
    assert distiller.group.skipped_steps().skipped == 0


@pytest.mark.parametrize("model", [_Reading, _Copying])
def test_what_cannot_be_recorded_ends_in_one_line(model: type[Convolutional]) -> None:
    distiller = OnlineAdversarialDistiller([model(4), Convolutional(4)], image_size=SIZE, feature_layers="block2")
    recorded(distiller)
    update(distiller, range(WARM_UPS))
    with pytest.raises(
        UserError, match=r"^cuda_graphs: an update cannot be recorded \(.*capturing\): most often a model"
    ):
        distiller.training_step(*batch(WARM_UPS))
    rates = [
        group["lr"] for update in distiller.step.optimizer_groups.values() for group in update.optimizer.param_groups
    ]
    assert all(isinstance(rate, float) for rate in rates)
    assert distiller.step.number == WARM_UPS


def test_no_gpu_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^cuda_graphs: the device is cpu, expected a CUDA GPU"):
        build(cuda_graphs=True)


def test_optimisers_that_are_not_fused_are_refused() -> None:
    with pytest.raises(UserError, match=r"^cuda_graphs: torch has no fused Lamb \(logit loss\)"):
        recorded(build(optimizer="lamb"))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"^cuda_graphs: 2 processes, expected one"):
        cuda_graphs.graphs_on_gpu(build().step, torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_takes_the_same_updates_from_graphs(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # sums in another order are no fault of graphs
    plain, graphs = build(**MODES[mode]), build(**MODES[mode], cuda_graphs=True)
    sizes = [6, 6, 6, 6, 5] * 4
    expected, found = train(plain, sizes), train(graphs, sizes)
    assert_same_state(graphs, plain, 1e-6)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
