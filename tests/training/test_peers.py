"""Models with settings of their own: what each is trained with, through checkpoints and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from feature_gan_kd import Callback, OnlineAdversarialDistiller, Peer, UserError
from feature_gan_kd.cli import main
from feature_gan_kd.cli.main import parse
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.settings import PEER_SETTINGS
from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.models.prepare import prepare
from feature_gan_kd.optim.build import build_schedules
from feature_gan_kd.report import read_run, write_curves, write_page
from feature_gan_kd.report.panels import PANELS, select_series
from feature_gan_kd.report.records import collect_series
from feature_gan_kd.training.describe_recipe import describe_recipe
from feature_gan_kd.training.history import Record
from feature_gan_kd.training.metrics import learning_rates

SIZE = 32


def distiller(*peers: Any, **settings: Any) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller(peers, num_classes=4, image_size=SIZE, **settings)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, SIZE, SIZE, generator=generator), torch.arange(6) % 4


def rates(built: OnlineAdversarialDistiller, k: int) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter of model k, by name."""
    found = {
        p: (group["lr"], group["weight_decay"])
        for own in built.step.logit_groups
        for group in own.optimizer.param_groups
        for p in group["params"]
    }
    return {name: found[p] for name, p in built.models[k].named_parameters() if p in found}


def test_a_pair_with_one_recipe_has_one_update() -> None:
    (group,) = distiller("test_resnet", Peer("test_vit")).step.logit_groups
    assert group.name == "logit"
    assert len(group.optimizer.param_groups) == 1


def test_each_has_its_own_optimiser() -> None:
    built = distiller("test_resnet", Peer("test_vit", optimizer="adamw", lr=5e-4, weight_decay=0.05, betas=(0.8, 0.9)))
    sgd, adamw = built.step.logit_groups
    assert [sgd.name, adamw.name] == ["logit-momentum", "logit-adamw"]
    assert isinstance(sgd.optimizer, torch.optim.SGD)
    assert isinstance(adamw.optimizer, torch.optim.AdamW)
    assert set(rates(built, 0).values()) == {(0.1, 1e-4)}
    assert set(rates(built, 1).values()) == {(5e-4, 0.05)}
    assert [group["betas"] for group in adamw.optimizer.param_groups] == [(0.8, 0.9)]
    assert learning_rates(built.step) == {"logit/0": 0.1, "logit/1": 5e-4, "feature": 2e-5, "discriminator": 2e-5}


def test_two_optimisers_move_the_weights_as_torch_alone_would() -> None:
    """Against plain torch: the same networks, gradients of the same loss, an optimiser each."""
    settings: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05}
    built = distiller("test_resnet", Peer("test_vit", **settings), method="vanilla", lr=0.05, channels_last=False)
    plain = [
        timm.create_model(name, num_classes=4, img_size=SIZE)
        if name == "test_vit"
        else timm.create_model(name, num_classes=4)
        for name in ("test_resnet", "test_vit")
    ]
    for module in (*built.models, *plain):
        module.double()
    for module, other in zip(plain, built.models, strict=True):
        module.load_state_dict(other.state_dict())
    optimizers = [
        torch.optim.SGD(plain[0].parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=False),
        torch.optim.AdamW(plain[1].parameters(), lr=1e-3, weight_decay=0.05),
    ]
    for seed in range(3):
        images, labels = batch(seed)
        built.training_step(images, labels)
        for module, optimizer in zip(plain, optimizers, strict=True):
            module.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images.double()), labels).backward()
            optimizer.step()
    for module, other in zip(plain, built.models, strict=True):
        for (name, expected), value in zip(module.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11, msg=name)


def test_norms_and_biases_may_be_spared() -> None:
    built = distiller("test_resnet", Peer("test_vit", decay_norms=False, weight_decay=0.05))
    assert {decay for _, decay in rates(built, 0).values()} == {1e-4}
    model = built.models[1]
    exempt: Any = model.no_weight_decay
    spared = {name for name, p in model.named_parameters() if p.ndim <= 1 or name.endswith(".bias") or name in exempt()}
    assert "pos_embed" in spared
    assert {name for name, (_, decay) in rates(built, 1).items() if decay == 0} == spared
    assert {decay for _, decay in rates(built, 1).values()} == {0.0, 0.05}


def test_layers_far_from_the_classifier_may_learn_less() -> None:
    built = distiller("test_resnet", Peer("test_vit", lr=0.01, layer_decay=0.5, head_lr_scale=10))
    found = {name: lr for name, (lr, _) in rates(built, 1).items()}
    assert found["head.weight"] == found["head.bias"] == pytest.approx(0.1)
    assert found["norm.weight"] == pytest.approx(0.005)
    blocks = [found[f"blocks.{i}.attn.qkv.weight"] for i in range(6)]
    assert blocks == pytest.approx([0.01 * 0.5 ** (6 - i) for i in range(6)])
    assert found["patch_embed.proj.weight"] == pytest.approx(0.01 * 0.5**7)


def test_the_schedule_keeps_the_ratios() -> None:
    built = distiller("test_resnet", Peer("test_vit", lr=0.01, layer_decay=0.5), scheduler="cosine", lr=0.01)
    groups = {group.name: group.optimizer for group in built.step.optimizer_groups.values()}
    before = [group["lr"] for group in groups["logit"].param_groups]
    schedules = build_schedules(groups, built.config, 100)
    schedules["logit"].step_update(50)
    after = [group["lr"] for group in groups["logit"].param_groups]
    assert after == pytest.approx([rate / 2 for rate in before])
    with pytest.raises(UserError, match=r"^min_lr: 0.001 is above a learning rate of 3.90625e-05: give a smaller one"):
        build_schedules(groups, built.config.replace(min_lr=1e-3), 100)


def test_a_frozen_backbone_does_not_move() -> None:
    built = distiller(Peer("test_resnet", freeze_backbone=True, drop_rate=0.5), "test_vit", method="logit")
    before = {name: value.clone() for name, value in built.models[0].state_dict().items()}
    for seed in range(2):
        built.training_step(*batch(seed))
    moved = {name for name, value in built.models[0].state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"fc.weight", "fc.bias"}  # no running statistics either
    assert built.models[0].training
    assert not any(one.training for one in built.models[0].modules() if isinstance(one, nn.BatchNorm2d))


def test_checkpointed_activations_give_the_same_weights() -> None:
    ends = []
    for checkpointing in (False, True):
        built = distiller(Peer("test_vit", grad_checkpointing=checkpointing), "test_resnet", channels_last=False)
        for module in (*built.models, *built.group.connections):
            module.double()
        for seed in range(3):
            metrics = built.training_step(*batch(seed))
        assert float(metrics["adversarial/0"]) > 0
        ends.append({f"{k}.{n}": v for k, m in enumerate(built.models) for n, v in m.state_dict().items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-9, atol=1e-11, msg=name)


def test_a_new_classifier_may_start_at_zero() -> None:
    own = timm.create_model("test_resnet", num_classes=4)
    built = distiller("test_resnet", own, Peer("test_vit", head_init_scale=0.5), head_init_scale=0)
    assert not built.models[0].get_classifier().weight.any()  # type: ignore[operator]
    assert own.get_classifier().weight.any()  # a module of one's own is left as it is
    twin = distiller("test_resnet", own, "test_vit").models[2].get_classifier().weight  # type: ignore[operator]
    assert torch.equal(built.models[2].get_classifier().weight, twin * 0.5)  # type: ignore[operator]


def test_a_classifier_with_trained_weights_is_kept(tmp_path: Path) -> None:
    first = distiller("test_resnet", "test_vit")
    first.save_pretrained(tmp_path, mean=[0.5] * 3, std=[0.2] * 3)
    name = f"local-dir:{tmp_path}/0-test_resnet"
    kept = distiller(name, "test_vit", head_init_scale=0).models[0]
    assert torch.equal(kept.get_classifier().weight, first.models[0].get_classifier().weight)  # type: ignore[operator]
    new = OnlineAdversarialDistiller([name, "test_vit"], num_classes=7, image_size=SIZE, head_init_scale=0).models[0]
    assert not new.get_classifier().weight.any()  # type: ignore[operator]


def test_rates_of_dropout_reach_timm() -> None:
    built = distiller(Peer("test_vit", drop_path_rate=0.2), "test_vit", Peer("test_vit", model_args={"depth": 2}))
    assert [one.peers[k].model_args.get("drop_path_rate") for one in [built.group] for k in range(3)] == [
        0.2,
        None,
        None,
    ]
    assert len(built.models[2].blocks) == 2  # type: ignore[arg-type]


def test_a_checkpoint_restores_what_each_has(tmp_path: Path) -> None:
    built = distiller(
        "test_resnet",
        Peer("test_vit", optimizer="adamw", lr=5e-4, layer_decay=0.7, drop_path_rate=0.1, betas=[0.8, 0.9]),
    )
    built.training_step(*batch())
    built.save_checkpoint(tmp_path / "step")
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "step")
    assert rates(again, 1) == rates(built, 1)
    for one in (built, again):
        torch.manual_seed(3)
        one.training_step(*batch(1))
    for name, value in built.models[1].state_dict().items():
        assert torch.equal(value, again.models[1].state_dict()[name]), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Peer("test_vit", epochs=3), "Peer: epochs is shared by all models: give it to the distiller"),
        (lambda: Peer("test_vit", learning_rate=3), "Peer: learning_rate is no setting of a peer"),
        (lambda: Peer("test_vit", lr=-1), "lr: -1"),
        (lambda: Peer(nn.Linear(1, 1), model_args={"depth": 2}), "model_args: Linear is a module already"),
        (
            lambda: Peer("test_vit", model_args={"num_classes": 2}),
            "model_args: num_classes is an argument of the distiller",
        ),
        (lambda: distiller(Peer(nn.Linear(1, 1), drop_rate=0.1), "test_vit"), "drop_rate: model 0 is a module"),
        (
            lambda: distiller(Peer("test_vit", model_args={"deep": 2}), "test_vit"),
            "models: test_vit does not take deep",
        ),
        (
            lambda: distiller(Peer("test_vit", betas=[0.9, 0.9]), "test_vit"),
            "betas: (0.9, 0.9) is not allowed, momentum has none",
        ),
        (
            lambda: distiller(Peer("test_vit", optimizer="adamw", betas=[0.9]), "test_vit"),
            "betas: (0.9,) is not allowed, expected 2",
        ),
        (lambda: distiller(Peer("test_vit", eps=1e-3), "test_vit"), "eps: 0.001 is not allowed, momentum has none"),
        (
            lambda: distiller("test_vit", "test_vit", optimizer="AdamW"),
            "optimizer: timm has no optimiser 'AdamW', the closest are adamw",
        ),
        (
            lambda: distiller(Peer("test_vit", feature_layers="blocks.1"), "test_vit", feature_layers={0: "blocks.0"}),
            "feature_layers: those of model 0 are given twice",
        ),
    ],
)
def test_what_a_peer_cannot_have(make: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, 2, 1)
        self.fc = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("setting", [{"freeze_backbone": True}, {"head_lr_scale": 2.0}, {"grad_checkpointing": True}])
def test_what_a_module_of_ones_own_cannot_do(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=f"^{name}: model 0 \\(Own\\) "):
        distiller(Peer(Own(), **setting), "test_vit")


def test_frozen_and_layers_of_a_peer() -> None:
    built = distiller(
        Peer("test_vit", frozen=True, feature_layers="blocks.1"), Peer("test_vit", feature_layers=["blocks.2"])
    )
    assert built.group.frozen == (0,)
    assert [[tap.layer for tap in model.taps] for model in built.group.tapped] == [["blocks.1"], ["blocks.2"]]


class Records(Callback):
    def __init__(self) -> None:
        self.has_kl: list[bool] = []

    def on_metrics(self, record: Record) -> None:
        self.has_kl.append("train/kl/0" in record["metrics"])


def test_logits_join_late_in_every_run() -> None:
    images, labels = torch.randn(32, 3, SIZE, SIZE), torch.arange(32) % 4
    data = TensorDataset(images, labels)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "log_every_steps": 1, "kl_start_fraction": 0.25}
    built = distiller("test_resnet", "test_vit", **settings)
    built.training_step(images[:8], labels[:8])  # a step before the run counts for nothing
    for _ in range(2):
        records = Records()
        built.fit(data, data, callbacks=[records], progress=False)
        assert records.has_kl == [False] * 2 + [True] * 6


class Deep(nn.Module):
    """A classifier of several layers, as those of CAFormer and LeViT."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(images).mean((2, 3)))


def test_a_deep_classifier_that_starts_at_zero_learns() -> None:
    module = Deep()
    hidden = module.head[0].weight.clone()
    prepare(PeerModel(module, "deep", "deep", has_new_classifier=True), DistillConfig(head_init_scale=0), "model 0")
    images, labels = batch()
    assert not module(images).any()
    assert torch.equal(module.head[0].weight, hidden)
    nn.functional.cross_entropy(module(images), labels).backward()
    assert module.head[2].weight.grad.any()


def test_maps_of_frozen_backbones_cannot_be_taught() -> None:
    with pytest.raises(
        UserError, match=r"^freeze_backbone: it freezes every layer before the maps of all models that "
    ):
        distiller("test_resnet", "test_vit", freeze_backbone=True)  # also where a transfer layer could learn
    with pytest.raises(
        UserError, match=r"^freeze_backbone: it freezes every layer before the maps of all models that "
    ):
        distiller(Peer("test_resnet", freeze_backbone=True), Peer("test_vit", freeze_backbone=True))
    built = distiller(Peer("test_resnet", freeze_backbone=True), "test_vit")
    metrics = built.training_step(*batch())
    assert "adversarial/1" in metrics
    said = "backbone frozen, so its map teaches and does not learn"
    assert [said in line for line in describe_recipe(built.group)[1:3]] == [True, False]
    logit = distiller(Peer("test_resnet", freeze_backbone=True), "test_vit", method="logit")
    assert not any(said in line for line in describe_recipe(logit.group))


def test_modules_whose_maps_are_frozen() -> None:
    models = [timm.create_model("test_resnet", num_classes=4) for _ in range(2)]
    for model in models:
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
    with pytest.raises(UserError, match=r"^models: every layer before the tapped maps is frozen: unfreeze one, or"):
        distiller(*models)


def test_rates_of_dropout_are_not_published(tmp_path: Path) -> None:
    built = distiller(Peer("test_vit", drop_path_rate=0.2, drop_rate=0.1), "test_resnet")
    built.save_pretrained(tmp_path, mean=[0.5] * 3, std=[0.2] * 3)
    assert "drop" not in (tmp_path / "0-test_vit" / "config.json").read_text()


def test_the_recipe_is_said() -> None:
    built = distiller(
        Peer("test_resnet", weight_decay=5e-4),
        Peer("test_vit", optimizer="adamw", lr=5e-4, layer_decay=0.75, drop_path_rate=0.1, decay_norms=False),
        "test_resnet",
        scheduler="cosine",
        warmup_fraction=0.05,
        kl_start_fraction=0.2,
        head_init_scale=0,
        epochs=30,
    )
    scaled = "new classifier at 0"
    assert describe_recipe(built.group) == [
        "recipe paper: cosine learning rate over 30 epochs, the first 5% rising, logits of the sources after 20%",
        f"model 0: momentum, lr 0.1, weight decay 0.0005, {scaled}",
        "model 1: adamw, lr 0.0005, weight decay 0.0001 (none on biases and norms), layer decay 0.75, "
        f"{scaled}, drop path 0.1",
        f"model 2: momentum, lr 0.1, weight decay 0.0001, {scaled}",
    ]


@pytest.mark.parametrize("instead", [{"color_jitter": 0.4}, {"augmentation": "none"}], ids=str)
def test_a_preset_that_gives_way_is_said(instead: dict[str, Any]) -> None:
    built = distiller("test_resnet", "test_vit", recipe="scratch", **instead)
    ((name, value),) = instead.items()
    line = f"the recipe's aa rand-m9-mstd0.5 is left out: {name} {value} takes its place"
    assert line in describe_recipe(built.group)
    assert built.config.aa is None
    given = distiller("test_resnet", "test_vit", recipe="scratch", aa=None, **instead)
    assert line not in describe_recipe(given.group)


def test_auto_gives_trained_weights_beside_new_ones_the_rate_for_them(tmp_path: Path) -> None:
    """In a mix the run is of recipe paper; what the user gives still counts more."""
    first = distiller("test_resnet", "test_vit", mean=[0.5] * 3, std=[0.2] * 3)
    trained = [f"local-dir:{folder}" for folder in first.save_pretrained(tmp_path)]
    built = distiller(*trained, "test_resnet")
    assert built.config.recipe == "paper"
    found = [model.own_config(built.config) for model in built.group.peers]
    rates = [(own.optimizer, own.lr, own.weight_decay) for own in found]
    assert rates == [("momentum", 0.01, 1e-4), ("adamw", 1e-4, 0.05), ("momentum", 0.1, 1e-4)]
    said = ["as recipe finetune for trained weights" in line for line in describe_recipe(built.group)[1:4]]
    assert said == [True, True, False]
    given = distiller(*trained, "test_resnet", lr=0.05, recipe="auto")
    assert {model.own_config(given.config).lr for model in given.group.peers} == {0.05}
    named = distiller(*trained, "test_resnet", recipe="paper")
    assert {model.own_config(named.config).lr for model in named.group.peers} == {0.1}


RUN = "train --models test_resnet test_vit --image-size 32 --epochs 1 --batch-size 64 --max-train-samples 128"


def test_what_each_had_is_recorded_and_published(tmp_path: Path) -> None:
    vit = Peer("test_vit", optimizer="adamw", lr=2e-3, decay_norms=False)
    built = distiller(
        "test_resnet", vit, lr=0.05, scheduler="cosine", epochs=2, batch_size=8, mean=[0.5] * 3, std=[0.25] * 3
    )
    data = TensorDataset(torch.randn(32, 3, SIZE, SIZE), torch.arange(32) % 4)
    built.fit(data, data, output_dir=tmp_path / "run", progress=False)
    run = read_run(tmp_path / "run")
    assert {"lr/logit/0", "lr/logit/1"} <= collect_series(run).keys()
    panel = next(panel for panel in PANELS if panel.name == "learning rates")
    drawn = select_series(panel, collect_series(run))
    assert drawn.keys() == {"lr/logit/0", "lr/logit/1", "lr/feature", "lr/discriminator"}
    write_curves(run, tmp_path / "curves.png")
    write_page([run], tmp_path / "report.html")
    cards = [
        (tmp_path / "run" / "networks" / name / "README.md").read_text() for name in ("0-test_resnet", "1-test_vit")
    ]
    assert ["adamw" in card for card in cards] == [False, True]
    assert ["0.002" in card for card in cards] == [False, True]


def test_the_command_line_gives_each_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "--optimizer 0:sgd 1:adamw --lr 0:0.1 1:5e-4 --layer-decay 1:0.75 --betas 1:0.8 1:0.9 --no-decay-norms 1"
    main([*RUN.split(), *own.split(), "--output-dir", "run"])
    models = json.loads(Path("run/config.json").read_text())["models"]
    found = [{name: value for name, value in model.items() if name in PEER_SETTINGS} for model in models]
    assert found[0] == {"optimizer": "sgd", "lr": 0.1}
    expected = {"optimizer": "adamw", "lr": 5e-4, "layer_decay": 0.75, "betas": [0.8, 0.9], "decay_norms": False}
    assert found[1] == expected
    assert "model 1: adamw, lr 0.0005" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*RUN.split(), *own.replace("1:5e-4", "1:6e-4").split(), "--output-dir", "run", "--resume"])
    assert "models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr 0:x", "--lr: 'x' is not allowed for model 0, expected a number"),
        ("--lr 5:True", "--lr: 'True' is not allowed for model 5, expected a number"),
        (
            "--betas 1:0.9 0.95",
            "--betas: 0.95 is for all models, behind 1:0.9 for model 1: write 1: before",
        ),
        ("--optimizer adamw --betas 1:0.9", "--betas: (0.9,) is not allowed, expected 2 numbers: 0.9 0.999, or of"),
        ("--lr 0:0.1 0:0.2", "--lr: 0.1 and 0.2 are given for model 0: give one"),
        ("--lr 0.1 0.2", "--lr: 0.1 and 0.2 are given for all models: give one"),
        ("--lr 0:0.1 --lr 5:0.1", "--lr: 5:0.1 is for model 5, there are 0 to 1"),
        ("--lr", "--lr: its value is missing"),
        ("--pretrained 7", "--pretrained: 7:True is for model 7, there are 0 to 1"),
        ("--freeze-backbone test_vit", "--freeze-backbone: 'test_vit' is not allowed, expected positions of models"),
        ("--drop-path-rate 1:2", "--drop-path-rate: 2.0 is not allowed"),
    ],
)
def test_bad_settings_of_a_peer(words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*RUN.split(), *words.split(), "--output-dir", "run"])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"feature-gan-kd: error: {message}") or message in line
    assert line.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "common", "own"),
    [
        ("--lr 0.1 --lr 0.2", {"lr": 0.2}, {}),
        ("--lr 0:0.1 --lr 1:0.2", {}, {0: {"lr": 0.1}, 1: {"lr": 0.2}}),
        ("--lr 0.3 1:0.2 --lr 1:0.4", {"lr": 0.3}, {1: {"lr": 0.4}}),
        ("--no-decay-norms --decay-norms 1", {"decay_norms": False}, {1: {"decay_norms": True}}),
        ("--decay-norms --no-decay-norms", {"decay_norms": False}, {}),
        ("--betas 0.9 0.95 --betas 1:0.8 1:0.9", {"betas": (0.9, 0.95)}, {1: {"betas": (0.8, 0.9)}}),
    ],
)
def test_an_option_given_twice(words: str, common: dict[str, Any], own: dict[int, Any]) -> None:
    call: Any = parse([*RUN.split(), *words.split(), "--output-dir", "run"])
    models, config = call.keywords["models"], call.keywords["config"]
    assert models.own == own
    assert {name: getattr(config, name) for name in common} == common
    assert {name: getattr(config, name) for name in own.get(1, {}) if name not in common} == {
        name: getattr(DistillConfig(), name) for name in own.get(1, {}) if name not in common
    }


def test_a_peer_shows_and_checks_its_settings() -> None:
    assert Peer("test_vit", lr=1).settings == {"lr": 1.0}
    assert repr(Peer("test_vit", lr=0.5)) == "Peer('test_vit', lr=0.5)"


def test_the_recipe_scratch_chooses_by_kind_and_the_user_overrides_it(tmp_path: Path) -> None:
    """SGD for batch normalisation, AdamW for others; what the user gives to all models or to one counts more."""
    built = distiller("test_resnet", "test_vit", recipe="scratch")
    own = [model.own_config(built.config) for model in built.group.peers]
    assert [(one.optimizer, one.lr, one.weight_decay) for one in own] == [
        ("momentum", 0.1, 5e-4),
        ("adamw", 1e-3, 0.05),
    ]
    assert {one.smoothing for one in own} == {0.1}
    assert [group.name for group in built.step.logit_groups] == ["logit-momentum", "logit-adamw"]
    assert sorted(built.group.averages) == [0, 1]
    changed = distiller("test_resnet", Peer("test_vit", lr=3e-3), recipe="scratch", weight_decay=0.01)
    own = [model.own_config(changed.config) for model in changed.group.peers]
    assert [(one.optimizer, one.lr, one.weight_decay) for one in own] == [
        ("momentum", 0.1, 0.01),
        ("adamw", 3e-3, 0.01),
    ]
    built.save_checkpoint(tmp_path / "checkpoint")
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "checkpoint")
    assert [rates(again, k) for k in (0, 1)] == [rates(built, k) for k in (0, 1)]


def test_a_frozen_model_gets_no_recipe() -> None:
    built = distiller("test_resnet", "test_vit", recipe="scratch", frozen=[1])
    assert built.group.peers[1].settings == {}
    assert list(built.group.averages) == [0]


def test_another_optimiser_brings_its_own_rates() -> None:
    """Under a recipe by kind: AdamW never gets the rate of SGD, nor SGD that of AdamW."""
    built = distiller("test_resnet", Peer("test_vit", optimizer="sgd"), recipe="scratch", optimizer="adamw")
    own = [model.own_config(built.config) for model in built.group.peers]
    assert [(one.optimizer, one.lr, one.weight_decay) for one in own] == [("adamw", 1e-3, 0.05), ("sgd", 0.1, 5e-4)]
    tuned = distiller("test_resnet", "test_vit", recipe="finetune", optimizer="adamw", lr=3e-4)
    assert {model.own_config(tuned.config).lr for model in tuned.group.peers} == {3e-4}


def test_the_file_of_a_run_gives_other_models_the_rates_of_their_kind(tmp_path: Path) -> None:
    digits = OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"],
        num_classes=10,
        image_size=SIZE,
        recipe="scratch",
        method="logit",
        epochs=1,
        batch_size=20,
        max_train_samples=20,
        max_eval_samples=20,
    )
    digits.fit(output_dir=tmp_path / "run", progress=False)
    again = OnlineAdversarialDistiller.from_config(tmp_path / "run" / "config.json", models=["test_vit", "test_resnet"])
    own = [model.own_config(again.config) for model in again.group.peers]
    assert [(one.optimizer, one.lr, one.weight_decay) for one in own] == [
        ("adamw", 1e-3, 0.05),
        ("momentum", 0.1, 5e-4),
    ]
