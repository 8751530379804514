"""Compiled models take the steps of those that are not; where no compiler works, training goes on without."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.models.compile import Compiler
from tests.helpers.small_models import Convolutional, assert_same_state

SIZE = 8
MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "interval": {"adversarial_interval": 2},
    "single backward": {"joint_backward": True},
    "parts": {"grad_accum_steps": 2},
    "logit": {"method": "logit"},
    "l1": {"method": "l1"},
    "frozen source": {"frozen": [0]},
    "two taps": {"feature_layers": ["block1", "block2"]},
}


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """Every test compiles by itself: torch stops after eight programs of one function."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(compiles: bool, backend: str = "aot_eager", **settings: Any) -> OnlineAdversarialDistiller:
    torch.manual_seed(0)
    models = [Convolutional(4), Convolutional(6)]
    own = {"feature_layers": "block2", "lr": 0.05, "adversarial_lr": 1e-3, "discriminator_lr": 1e-3, **settings}
    distiller = OnlineAdversarialDistiller(models, image_size=SIZE, **own)
    if compiles:
        compiler = Compiler(backend)
        for model in distiller.step.models:
            model.compile_forward(compiler)
    return distiller


def batch(number: int, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 3, SIZE, SIZE, generator=generator), torch.randint(5, (size,), generator=generator)


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[] if mode == "exact" else pytest.mark.slow) for mode in MODES]
)
def test_compiled_models_take_the_same_steps(mode: str) -> None:
    """Also of an uneven last batch, and after an evaluation; this backend computes as without it."""
    plain, compiled = (pair(compiles, **MODES[mode]) for compiles in (False, True))
    for distiller in (plain, compiled):
        for number, size in enumerate((6, 6, 3, 6)):
            distiller.training_step(*batch(number, size))
            for model in distiller.models:
                model.eval()(batch(0)[0])
    assert_same_state(compiled, plain)


def test_every_size_is_compiled_once_by_itself() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiler = Compiler()
    compiler._compile = counter
    distiller = pair(False)
    for model in distiller.step.models:
        model.compile_forward(compiler)
    for number, size in enumerate((6, 6, 3, 6, 3, 6)):
        distiller.training_step(*batch(number, size))
    assert counter.frame_count == 4  # two models, two sizes


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_same_weights() -> None:
    whole = pair(True)
    for number in range(4):
        whole.training_step(*batch(number, 3 if number == 1 else 6))
    torch._dynamo.reset()
    first = pair(True)
    first.training_step(*batch(0))
    state = copy.deepcopy(first.group.state())
    torch._dynamo.reset()
    second = pair(True)
    second.group.load_state(state)
    for number in range(1, 4):  # the uneven batch is the first that it sees
        second.training_step(*batch(number, 3 if number == 1 else 6))
    assert_same_state(second, whole)


def test_compiled_models_stay_the_users_own() -> None:
    distiller = pair(True)
    distiller.training_step(*batch(0))
    for model in distiller.models:
        assert not any(module._forward_hooks for module in model.modules())
        assert list(model.state_dict()) == list(pickle.loads(pickle.dumps(model)).state_dict())
        assert "forward" not in vars(model)


def test_without_a_compiler_training_goes_on_after_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "no-compiler")))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    plain, compiled = pair(False), pair(True, "inductor")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(2):
            compiled.training_step(*batch(number))
    ours = [str(one.message) for one in said if str(one.message).startswith("compile: ")]
    assert len(ours) == 1
    assert "InvalidCxxCompiler: No working C++ compiler found" in ours[0]
    assert "\n" not in ours[0]
    assert ours[0].endswith("going on without it")
    for number in range(2):
        plain.training_step(*batch(number))
    assert_same_state(compiled, plain)


@pytest.mark.slow  # a C++ compiler is needed, and a minute
def test_programs_of_the_default_compiler_agree_to_rounding() -> None:
    plain, compiled = pair(False), pair(False, compile=True)
    for distiller in (plain, compiled):
        for number, size in enumerate((6, 6, 3, 6)):
            distiller.training_step(*batch(number, size))
    assert_same_state(compiled, plain, 1e-4)
