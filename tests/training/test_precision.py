"""`auto` is what the device computes in; under fp16 losses are scaled, and what overflows is skipped until it fits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import DistillConfig, DivergedError, OnlineAdversarialDistiller, Peer, UserError
from feature_gan_kd.cli import main
from feature_gan_kd.training import peer_group, precision
from tests.helpers.small_models import Convolutional, assert_same_state


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator)


@pytest.fixture
def fp16_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU, which multiplies in fp16 only in principle, stand in for a GPU."""
    monkeypatch.setattr(peer_group, "precision_in_force", lambda asked, accelerator: asked)


Fault = Callable[[Tensor], Tensor]


class Overflowing(torch.autograd.Function):
    """Changes nothing forward; backward a gradient above a limit becomes infinite, as one above 65504 does in fp16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        """The same."""
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Infinite where it is too large."""
        return torch.where(gradients[0].abs() > ctx.limit, torch.inf, gradients[0]), None


class Faulty(Convolutional):
    """Applies a fault to its logits."""

    fault: Fault = staticmethod(lambda x: x)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 5)."""
        return self.fault(super().forward(images))


def build(models: Any = None, *, autocast: bool = False, **settings: Any) -> OnlineAdversarialDistiller:
    """Two small models; without `autocast` the losses are scaled, but computed in float32."""
    torch.manual_seed(0)
    models = models or (lambda: [Convolutional(4), Convolutional(6)])
    rates = {"lr": 0.05, "adversarial_lr": 1e-3, "discriminator_lr": 1e-3}
    distiller = OnlineAdversarialDistiller(models(), image_size=8, feature_layers="block2", **{**rates, **settings})
    if not autocast:
        distiller.step.autocast = contextlib.nullcontext
    return distiller


def scales(distiller: OnlineAdversarialDistiller) -> dict[str, float]:
    return {name: group.scaler.get_scale() for name, group in distiller.step.optimizer_groups.items()}


def two_optimisers() -> list[Peer]:
    return [Peer(Convolutional(4)), Peer(Convolutional(6), optimizer="adamw", lr=1e-3)]


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "joint": {"joint_backward": True},
    "two optimisers": {"models": two_optimisers},
    "clipped": {"clip_grad": 0.1},
    "control": {"method": "zero-gradient"},
    "parts, rare discriminators": {"grad_accum_steps": 2, "discriminator_interval": 2},
    "an optimiser that is not fused": {"optimizer": "lion", "lr": 1e-3},
}


@pytest.mark.usefixtures("fp16_on_cpu")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_scaled_loss_trains_the_same_weights(variant: str) -> None:
    plain = build(**VARIANTS[variant], mixed_precision="no")
    scaled = build(**VARIANTS[variant], mixed_precision="fp16")
    seen = []
    handle = next(scaled.models[0].parameters()).register_hook(lambda gradient: seen.append(gradient.abs().max()))
    for number in range(4):
        one, other = plain.training_step(*batch(number)), scaled.training_step(*batch(number))
        assert one.keys() == other.keys()
        assert other["skipped"] == 0
    handle.remove()
    assert max(seen) > 10  # the gradients themselves are well below 1
    assert_same_state(scaled, plain, tolerance=1e-6)
    assert all(scale == 2.0**16 for scale in scales(scaled).values())
    trackers = {group.scaler.state_dict()["_growth_tracker"] for group in scaled.step.optimizer_groups.values()}
    assert trackers == ({4, 2} if "rare" in variant else {4})


@pytest.mark.usefixtures("fp16_on_cpu")
def test_fp16_comes_to_what_float32_comes_to() -> None:
    plain, half = build(autocast=True), build(autocast=True, mixed_precision="fp16")
    start = build()
    for number in range(6):
        expected, found = plain.training_step(*batch(number)), half.training_step(*batch(number))
        assert found["skipped"] == 0
        for name in expected:
            if name.startswith(("cross_entropy", "kl", "adversarial", "discriminator")):
                torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=0.005)
    moved, apart = (
        torch.cat([(p - q).flatten() for p, q in zip(plain.models[0].parameters(), m.parameters(), strict=True)]).norm()
        for m in (start.models[0], half.models[0])
    )
    assert 0 < apart < 0.05 * moved


@pytest.mark.usefixtures("fp16_on_cpu")
def test_an_overflow_changes_nothing_but_halves_its_own_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = build(lambda: [Faulty(4), Convolutional(6)], mixed_precision="fp16", max_nonfinite_steps=2)
    before = [p.detach().clone() for module in distiller.models for p in (*module.parameters(), *module.buffers())]
    # The logits' gradient is at most 1 / 8 images, times the weights of the terms.
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda x: Overflowing.apply(x, 2.0**10)))
    skipped = 0
    while distiller.training_step(*batch())["skipped"]:
        skipped += 1
        after = [p for module in distiller.models for p in (*module.parameters(), *module.buffers())]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert scales(distiller) == {"logit": 2.0 ** (16 - skipped), "feature": 2.0**16, "discriminator": 2.0**16}
        assert skipped < 16
    assert skipped > 2
    assert not torch.equal(next(distiller.models[1].parameters()), before[0])
    report = distiller.group.skipped_steps()
    assert (report.skipped, report.longest) == (skipped, 0)
    assert report.where == ["gradient of the logit loss in model 0 (Faulty)"]


@pytest.mark.usefixtures("fp16_on_cpu")
@pytest.mark.parametrize(
    ("fault", "counted"),
    [(lambda x: Overflowing.apply(x, 0.0), 4), (lambda x: x * torch.nan, 20)],
    ids=["a gradient that overflows without a scale", "a loss"],
)
def test_what_no_scale_mends_counts(fault: Fault, counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "fault", staticmethod(fault))
    distiller = build(lambda: [Faulty(4), Convolutional(6)], mixed_precision="fp16")
    for _ in range(20):
        assert distiller.training_step(*batch())["skipped"] == 1
    report = distiller.group.skipped_steps()
    assert (report.skipped, report.longest) == (20, counted)  # the first 16 updates halve the scale to 1


@pytest.mark.usefixtures("fp16_on_cpu")
@pytest.mark.parametrize(("limit", "diverges"), [(2.0**10, False), (0.0, True)])
def test_a_run_ends_only_where_no_scale_mends_it(limit: float, diverges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(Faulty):
        def __init__(self) -> None:
            super().__init__(4)
            self.head = nn.Linear(4, 10)

    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda x: Overflowing.apply(x, limit)))
    settings = {"max_train_samples": 200, "max_eval_samples": 20, "batch_size": 8, "log_every_steps": 5}
    distiller = build(
        lambda: [Net(), Net()], mixed_precision="fp16", epochs=1, max_nonfinite_steps=3, method="logit", **settings
    )
    with pytest.raises(DivergedError) if diverges else contextlib.nullcontext():
        distiller.fit(progress=False)
    assert distiller.group.skipped_steps().skipped > 3


@pytest.mark.usefixtures("fp16_on_cpu")
def test_the_scales_are_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def models() -> list[nn.Module]:
        return [Faulty(4), Convolutional(6)]

    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda x: Overflowing.apply(x, 2.0**10)))
    distiller = build(models, mixed_precision="fp16", autocast=True)
    for number in range(9):
        distiller.training_step(*batch(number))
    distiller.save_checkpoint(tmp_path / "saved")
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved", models())
    assert scales(again) == scales(distiller)
    assert scales(again)["logit"] < 2.0**16
    for number in range(3):
        distiller.training_step(*batch(number))
        again.training_step(*batch(number))
    assert_same_state(again, distiller)
    for one, other in zip(again.step.optimizer_groups.values(), distiller.step.optimizer_groups.values(), strict=True):
        assert one.scaler.state_dict() == other.scaler.state_dict()


def stand_in(device: str, launched: str = "no") -> Any:
    return SimpleNamespace(device=torch.device(device), mixed_precision=launched)


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [("cpu", True, "bf16"), ("cpu", False, "no"), ("cuda", True, "bf16"), ("cuda", False, "fp16"), ("mps", True, "no")],
)
def test_auto_is_what_the_device_computes_in(
    device: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(precision, "fast_precision", lambda: "bf16" if has_bf16 else "fp32")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation) or has_bf16
    )
    assert precision.fastest(torch.device(device)) == expected
    assert asked == [False] * (device == "cuda")


def test_auto_asks_the_device_and_a_launch_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fast_precision", lambda: "fp32")
    assert precision.precision_in_force("auto", stand_in("cpu")) == "no"
    assert precision.precision_in_force("bf16", stand_in("cpu")) == "bf16"
    assert precision.precision_in_force("no", stand_in("cuda", "fp16")) == "fp16"
    assert precision.precision_in_force("auto", stand_in("cpu", "bf16")) == "bf16"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_run_says_and_records_what_auto_is(
    has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "fast_precision", lambda: "bf16" if has_bf16 else "fp32")
    command = (
        "train --models test_resnet test_resnet --method logit --image-size 32 --epochs 1 --max-train-samples 8 "
        f"--max-eval-samples 4 --batch-size 4 --mixed-precision auto --output-dir {tmp_path / 'run'}"
    )
    main(command.split())
    expected = "bf16" if has_bf16 else "no"
    assert f"mixed_precision auto: {expected} on " in capsys.readouterr().err
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["mixed_precision"] == expected


def test_fp16_on_a_cpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^mixed_precision: fp16 needs a GPU, and the device is cpu: choose auto, bf1"):
        build(mixed_precision="fp16")
    run = tmp_path / "run"
    with pytest.raises(SystemExit, match="2"):
        main(f"train --models test_resnet test_resnet --mixed-precision fp16 --output-dir {run}".split())
    err = capsys.readouterr().err
    assert "--mixed-precision: fp16 needs a GPU" in err
    assert err.count("\n") == 1
    assert not run.exists()


@pytest.mark.usefixtures("fp16_on_cpu")
def test_weights_in_fp16_are_refused() -> None:
    with pytest.raises(UserError, match=r"^model 1 \(Convolutional\): its weights are float16, .* float\(\)$"):
        build(lambda: [Convolutional(4), Convolutional(6).half()], mixed_precision="fp16", method="logit")


def test_fp16_cannot_be_recorded() -> None:
    with pytest.raises(UserError, match=r"^cuda_graphs: cannot be combined with mixed_precision fp16"):
        DistillConfig(cuda_graphs=True, mixed_precision="fp16")
