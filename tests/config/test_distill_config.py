"""Every setting: what it may be, what it overrides, how it is kept in a file."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.config.methods import METHODS
from feature_gan_kd.config.recipes import RECIPES
from feature_gan_kd.config.settings import SECTIONS
from feature_gan_kd.utils.errors import UserError

FIELDS = {spec.name: spec for spec in dataclasses.fields(DistillConfig)}


# Methods and recipes.


def test_other_names_of_the_learning_rate_lead_to_ours() -> None:
    for name, own in (("learning_rate", "lr"), ("discriminator_learning_rate", "discriminator_lr")):
        with pytest.raises(UserError, match=rf"there is no setting '{name}', the closest are {own}\b"):
            DistillConfig().replace(**{name: 0.1})


def test_every_setting_has_the_value_that_method_and_recipe_chose() -> None:
    config = DistillConfig(method="dml", recipe="finetune", weight_decay=0.5)
    assert (config.temperature, config.lr, config.scheduler, config.weight_decay) == (1, 0.01, "cosine", 0.5)
    assert (config.clip_grad, config.milestones) == (None, (0.5, 0.75))


def test_the_default_is_the_paper() -> None:
    config = DistillConfig()
    assert (config.temperature, config.kl_weight, config.adversarial_weight) == (3, 1, 1)
    assert (config.l1_weight, config.l2_weight, config.decay_only_update) == (0, 0, False)
    assert config == DistillConfig(method="afd", recipe="paper").replace(recipe="auto")
    assert (config.epochs, config.batch_size) == (300, 128)


PRESETS = [("method", *one) for one in METHODS.items()] + [("recipe", *one) for one in RECIPES.items()]
OF_PRESETS = sorted({(kind, name) for kind, _, values in PRESETS for name in values})


@pytest.mark.parametrize(("kind", "preset", "values"), PRESETS, ids=[preset for _, preset, _ in PRESETS])
def test_a_preset_replaces_defaults_and_nothing_that_was_given(kind: str, preset: Any, values: dict[str, Any]) -> None:
    config = DistillConfig(**{kind: preset})
    assert {name: getattr(config, name) for name in values} == values
    assert all(getattr(config, name) == getattr(DistillConfig(), name) for name in FIELDS.keys() - {*values, kind})
    for name in (name for own, name in OF_PRESETS if own == kind):
        others = {"scheduler": "tanh", "decay_only_update": False, "decay_norms": True, "epochs": 7, "aa": "v0"}
        others |= {"joint_backward": False, "optimizer": "lamb", "adversarial_milestones": (0.9,), "max_grid": 3}
        own = others.get(name, 0.25)
        given = DistillConfig(**{name: own})
        assert getattr(given.replace(**{kind: preset}), name) == own
        assert getattr(given, name) == own


def test_methods_and_recipes_preset_different_settings() -> None:
    """A preset of a setting that does not exist would be without effect."""
    methods, recipes = ({name for own in presets.values() for name in own} for presets in (METHODS, RECIPES))
    assert methods <= {spec.name for spec in dataclasses.fields(LossSettings)}
    assert recipes <= FIELDS.keys() - methods


def test_another_method_brings_its_presets_and_takes_the_others_away() -> None:
    config = DistillConfig(method="dml", lr=0.3).replace(method="l1")
    assert (config.temperature, config.l1_weight, config.adversarial_weight, config.lr) == (3, 1, 0, 0.3)


def test_a_setting_is_declared_once() -> None:
    names = [spec.name for section in SECTIONS for spec in dataclasses.fields(section)]
    assert len(names) == len(set(names))
    assert set(names) == FIELDS.keys()


# What is refused.


def refused(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        DistillConfig(**values)
    message = str(caught.value)
    assert "\n" not in message
    return message


BOUNDS = {  # name: (allowed at the edges, refused, how the bound reads)
    "temperature": ([1e-6, 1000], [0, -1], "above 0"),
    "confidence_threshold": ([0, 0.99], [-0.1, 1], "at least 0 and below 1"),
    "kl_weight": ([0, 5], [-0.1], "at least 0"),
    "adversarial_weight": ([0, 5], [-0.1], "at least 0"),
    "l1_weight": ([0], [-0.1], "at least 0"),
    "l2_weight": ([0], [-0.1], "at least 0"),
    "aligned_weight": ([0], [-0.1], "at least 0"),
    "statistics_weight": ([0], [-0.1], "at least 0"),
    "relation_weight": ([0], [-0.1], "at least 0"),
    "epochs": ([1], [0, -3], "at least 1"),
    "batch_size": ([2], [1, 0], "at least 2"),
    "grad_accum_steps": ([1, 128], [0], "at least 1"),
    "seed": ([0, 2**31 - 1], [-1, 2**31], "at least 0 and at most 2147483647"),
    "lr": ([1e-9], [0, -0.1], "above 0"),
    "momentum": ([0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
    "weight_decay": ([0], [-1e-4], "at least 0"),
    "betas": ([(0.0, 1.0)], [(-0.1, 0.9), (0.9, 1.1)], "at least 0 and at most 1"),
    "eps": ([1e-12], [0, -1], "above 0"),
    "model_ema": ([0.5, 1], [0, 1.1], "above 0 and at most 1"),
    "layer_decay": ([0.1, 1], [0, 1.1], "above 0 and at most 1"),
    "head_lr_scale": ([0.1, 10], [0, -1], "above 0"),
    "min_lr": ([0], [-1e-4], "at least 0"),
    "kl_start_fraction": ([0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
    "head_init_scale": ([0, 2], [-0.1], "at least 0"),
    "drop_rate": ([0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
    "drop_path_rate": ([0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
    "milestones": ([(0.5,), (0.1, 1.0), ()], [(0.0, 0.5), (0.5, 1.1)], "above 0 and at most 1"),
    "warmup_fraction": ([0, 0.9], [-0.1, 1.0], "at least 0 and at most 0.9"),
    "warmup_epochs": ([None], [-1], "at least 0"),
    "smoothing": ([0, 0.99], [-0.1, 1.0], "at least 0 and below 1"),
    "crop_pct": ([None, 0.5, 1], [0, 1.1], "above 0 and at most 1"),
    "scale": ([None, (0.08, 1.0), (0.5, 0.5)], [(0.0, 1.0), (0.5, 1.5)], "above 0 and at most 1"),
    "ratio": ([None, (0.75, 1.5)], [(0.0, 1.0)], "above 0"),
    "vflip": ([0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
    "color_jitter": ([0, 2], [-0.1], "at least 0"),
    "reprob": ([0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
    "recount": ([1], [0], "at least 1"),
    "adversarial_lr": ([1e-9], [0], "above 0"),
    "adversarial_weight_decay": ([0], [-1], "at least 0"),
    "adversarial_milestones": ([(0.5,), (1.0,)], [(-0.5,), (2.0,)], "above 0 and at most 1"),
    "discriminator_lr": ([1e-9], [0], "above 0"),
    "discriminator_weight_decay": ([0], [-1], "at least 0"),
    "clip_grad": ([1e-3], [0, -1], "above 0"),
    "discriminator_width": ([1, 512], [0], "at least 1"),
    "image_size": ([8, 224], [7, 0], "at least 8"),
    "labeled_fraction": ([None, 0.01, 0.99], [0, 1], "above 0 and below 1"),
    "max_train_samples": ([2], [1], "at least 2"),
    "max_eval_samples": ([1], [0], "at least 1"),
    "num_workers": ([0, 4], [-1], "at least 0"),
    "log_every_steps": ([1], [0], "at least 1"),
    "similarity_images": ([4, 500], [3, 0], "at least 4"),
    "checkpoint_every_steps": ([1], [0], "at least 1"),
    "keep_checkpoints": ([1], [0], "at least 1"),
    "mixup": ([0, 0.2], [-1], "at least 0"),
    "cutmix": ([0, 1.0], [-1], "at least 0"),
    "max_nonfinite_steps": ([1], [0], "at least 1"),
    "evaluate_every_epochs": ([1, 5], [0], "at least 1"),
    "early_stopping_patience": ([1, 5], [0], "at least 1"),
    "adversarial_interval": ([1, 4], [0], "at least 1"),
    "adversarial_warmup_fraction": ([0, 0.9], [-0.1, 1.0], "at least 0 and at most 0.9"),
    "max_grid": ([None, 1, 4], [0], "at least 1"),
    "discriminator_interval": ([1, 4], [0], "at least 1"),
    "mean": ([None, (0.5, 0.4, 0.0)], [(123.7, 116.3, 103.5)], "at least 0 and at most 1"),
    "std": ([None, (0.2, 0.3, 1.0)], [(0.2, 0.0, 0.2), (58.4,)], "above 0 and at most 1"),
}


def test_every_bound_is_tested() -> None:
    assert BOUNDS.keys() == {name for name, spec in FIELDS.items() if spec.metadata.keys() - {"per_peer"}}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str) -> None:
    allowed, outside, words = BOUNDS[name]
    for value in allowed:
        kept = getattr(DistillConfig(**{name: value}), name)
        assert kept == value
    for value in outside:
        message = refused(**{name: value})
        assert message.startswith(f"{name}: ")
        assert words in message
        numbers = value if isinstance(value, tuple) else (value,)
        assert all(str(number) in message for number in numbers)


@pytest.mark.parametrize("name", [name for name, spec in FIELDS.items() if "float" in spec.type])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "-inf", "huge"])
def test_numbers_are_finite(name: str, value: float) -> None:
    given = (value,) if "tuple" in FIELDS[name].type else value
    message = refused(**{name: given})
    assert message.startswith(f"{name}: ")
    assert "finite" in message


CHOICES = {
    "method": list(METHODS),
    "recipe": ["auto", "paper", "finetune", "scratch"],
    "scheduler": ["multistep", "cosine", "poly", "tanh"],
    "adversarial_optimizer": ["adam", "adamw"],
    "discriminator_norm": ["batch", "group", "none"],
    "augmentation": ["auto", "none", "crop", "crop-flip", "resized-crop"],
    "mixed_precision": ["auto", "no", "bf16", "fp16"],
    "interpolation": ["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"],
    "remode": ["pixel", "rand", "const"],
    "adversarial_loss": ["paper", "least-squares", "hinge", "relativistic", "reversal"],
    "logit_loss": ["kl", "standardised", "decoupled"],
    "targets": ["live", "ema", "ensemble"],
    "source_view": ["same", "plain"],
    "best_metric": ["accuracy", "top5", "macro_f1", "cross_entropy"],
}


def test_every_choice_is_tested() -> None:
    words = ("Literal", "Name", "Augmentation", "Interpolation", "Mode", "View", "BestMetric", "Precision", "Loss")
    assert CHOICES.keys() == {name for name, spec in FIELDS.items() if any(word in spec.type for word in words)}


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name: str) -> None:
    needed = {"remode": {"reprob": 0.5}, "source_view": {"aa": "rand-m9"}}.get(name, {})
    for choice in CHOICES[name]:
        assert getattr(DistillConfig(**{name: choice}, **needed), name) == choice
    message = refused(**{name: "fp8"})
    assert message.startswith(f"{name}: 'fp8' is not allowed")
    assert all(choice in message for choice in CHOICES[name])


WRONG_TYPES = [None, True, 1, 1.5, "1", "0.5", (), (1,), ("a",), [0.5], {"a": 1}, b"a", object()]


@pytest.mark.parametrize("name", FIELDS)
def test_values_of_the_wrong_type(name: str) -> None:
    hint = FIELDS[name].type
    for value in WRONG_TYPES:
        fits = (
            (value is None and "None" in hint)
            or (value is True and "bool" in hint)
            or (type(value) is int and ("int" in hint or "float" in hint) and "tuple" not in hint)
            or (type(value) is float and "float" in hint and "tuple" not in hint)
            or (type(value) is str and "str" in hint)
            or (isinstance(value, (tuple, list)) and "tuple" in hint and "a" not in value)
        )
        if not fits:
            message = refused(**{name: value})
            assert message.startswith(f"{name}: "), message
            assert "expected" in message


@pytest.mark.parametrize("name", ["milestones", "adversarial_milestones"])
@pytest.mark.parametrize("value", [(0.75, 0.5), (0.5, 0.5)])
def test_milestones_rise(name: str, value: tuple[float, ...]) -> None:
    message = refused(**{name: value})
    assert message.startswith(f"{name}: {value!r} is not allowed, expected rising")


def test_no_more_parts_than_images() -> None:
    message = refused(batch_size=4, grad_accum_steps=5)
    assert message.startswith("grad_accum_steps: 5 parts of a batch of 4 images")


def test_batch_norm_over_processes_is_not_compiled() -> None:
    assert refused(sync_batchnorm=True, compile=True).startswith("sync_batchnorm: cannot be combined with compile")


COMBINATIONS = [
    ({"augmentation": "none", "aa": "rand-m9"}, "aa: has no effect with augmentation none"),
    ({"augmentation": "none", "reprob": 0.5}, "reprob: has no effect with augmentation none"),
    ({"augmentation": "none", "vflip": 0.5}, "vflip: has no effect with augmentation none"),
    ({"augmentation": "crop-flip", "ratio": (0.5, 2)}, "ratio: acts with augmentation resized-crop alone, and this is"),
    ({"scale": (0.9, 0.1)}, "scale: (0.9, 0.1) is not allowed, expected 2 numbers, the smaller first"),
    ({"scale": (0.9,)}, "scale: (0.9,) is not allowed, expected 2 numbers"),
    ({"ratio": (2.0, 1.0)}, "ratio: (2.0, 1.0) is not allowed, expected 2 numbers, the smaller first"),
    ({"aa": "rand-m9", "color_jitter": 0.4}, "color_jitter: aa replaces it, as in timm"),
    ({"source_view": "plain", "reprob": 0.5}, "source_view: plain leaves out aa and color_jitter, and neither is on"),
    ({"remode": "const"}, "remode: has no effect without random erasing: give its probability, reprob"),
    ({"recount": 2}, "recount: has no effect without random erasing: give its probability, reprob"),
    ({"class_weights": True, "balanced_sampling": True}, "class_weights: balanced_sampling already balances"),
    (
        {"logit_loss": "decoupled", "labels": False},
        "logit_loss: decoupled asks for the class of each image: set labels",
    ),
    ({"logit_loss": "decoupled", "mixup": 0.2}, "logit_loss: decoupled asks for one class of each image, and mixup"),
    ({"logit_loss": "decoupled", "cutmix": 1}, "logit_loss: decoupled asks for one class of each image, and cutmix"),
    ({"discriminator_classes": True, "discriminator_norm": "none"}, "discriminator_norm: discriminators that see"),
    ({"warmup_epochs": 1, "warmup_fraction": 0.1}, "warmup_epochs: warmup_fraction is given too"),
    ({"warmup_epochs": 10, "epochs": 10}, "warmup_epochs: 10 of 10 epochs is not allowed, expected at most 9"),
]


@pytest.mark.parametrize(("values", "line"), COMBINATIONS, ids=[line.partition(":")[0] for _, line in COMBINATIONS])
def test_what_cannot_be_combined(values: dict[str, Any], line: str) -> None:
    assert refused(**values).startswith(line)


def test_a_preset_gives_way_to_what_it_cannot_be_combined_with() -> None:
    assert DistillConfig(recipe="scratch").aa == "rand-m9-mstd0.5"
    assert DistillConfig(recipe="scratch", augmentation="none").aa is None
    assert DistillConfig(recipe="scratch", color_jitter=0.4).aa is None
    assert DistillConfig(recipe="scratch", labels=False).smoothing == 0
    assert DistillConfig(recipe="unlabeled").joint_backward
    for own in ({"method": "zero-gradient"}, {"decay_only_update": True}):
        assert not DistillConfig(recipe="unlabeled", **own).joint_backward
    assert DistillConfig(recipe="unlabeled", method="zero-gradient", decay_only_update=False).joint_backward


def test_a_warm_up_in_epochs_is_kept_as_a_fraction_of_the_run() -> None:
    config = DistillConfig(recipe="finetune", warmup_epochs=5)
    assert (config.epochs, config.warmup_fraction, config.warmup_epochs) == (30, 5 / 30, None)
    assert config.replace(epochs=10).warmup_fraction == 0.5  # still 5 epochs
    assert DistillConfig(recipe="finetune", warmup_epochs=0).warmup_fraction == 0
    assert DistillConfig.from_dict(config.to_dict()) == config


def test_a_long_or_broken_value_is_still_one_short_line() -> None:
    class Lines:
        def __repr__(self) -> str:
            return "first\nsecond"

    assert "first second" in refused(method=Lines())
    assert len(refused(method="x" * 10_000)) < 400


def test_whole_numbers_and_lists_are_taken_where_floats_and_tuples_are_meant() -> None:
    config = DistillConfig(lr=1, temperature=4, milestones=[0.5, 1])  # type: ignore[arg-type]
    assert (config.lr, config.temperature, config.milestones) == (1.0, 4.0, (0.5, 1.0))
    assert [type(value) for value in (config.lr, config.temperature, *(config.milestones or ()))] == [float] * 4


# Changes, and the form in a file.


def test_replace_checks_what_it_changes() -> None:
    config = DistillConfig(lr=0.05)
    assert config.replace(epochs=3) == DistillConfig(lr=0.05, epochs=3)
    assert config.replace() == config
    with pytest.raises(UserError, match=r"^epochs: 0 is not allowed"):
        config.replace(epochs=0)


@pytest.mark.parametrize(
    ("name", "near"),
    [("learning_rate", ""), ("batchsize", "batch_size"), ("tempratur", "temperature"), ("self", ""), ("", "")],
)
def test_unknown_settings(name: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        DistillConfig().replace(**{name: 1})
    message = str(caught.value)
    assert message.startswith(f"config: there is no setting {name!r}")
    assert near in message
    assert "\n" not in message


@pytest.mark.parametrize("values", [None, [], ["lr"], "lr", 7, {7: 1}, {None: 1}])
def test_a_file_that_holds_no_settings(values: Any) -> None:
    with pytest.raises(UserError, match=r"^config: [^\n]*$"):
        DistillConfig.from_dict(values)


FULL = DistillConfig(
    method="l2", temperature=2.0, milestones=(0.3, 0.6), clip_grad=5.0, optimizer="adamw", image_size=64, compile=True
)


@pytest.mark.parametrize("config", [DistillConfig(), FULL])
def test_round_trip(config: DistillConfig) -> None:
    text = json.dumps(config.to_dict())
    assert DistillConfig.from_dict(json.loads(text)) == config
    assert json.loads(text) == config.to_dict()
    assert config.to_dict().keys() == FIELDS.keys()


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DistillConfig().lr = 0.5  # type: ignore[misc]


def test_defining_leaves_out_what_does_not_change_the_weights() -> None:
    runtime = {
        "num_workers": 3,
        "log_every_steps": 7,
        "checkpoint_every_steps": 9,
        "keep_checkpoints": 5,
        "check_processes": True,
    }
    runtime |= {"max_nonfinite_steps": 3, "skip_bad_images": True, "similarity_images": 100, "log_gradients": True}
    assert DistillConfig().replace(**runtime).defining() == DistillConfig().defining()
    changed: dict[str, Any] = {"lr": 0.3, "seed": 1, "method": "logit", "batch_size": 64, "grad_accum_steps": 2}
    for name, value in changed.items():
        assert DistillConfig().replace(**{name: value}).defining() != DistillConfig().defining()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*FIELDS, "self", "unknown"]) | st.text()


def tried(values: Any) -> DistillConfig | str:
    """The config of `values`, or the line that refuses them."""
    try:
        return DistillConfig.from_dict(values)
    except UserError as error:
        return str(error)


@settings(deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=4) | JSON)
def test_only_user_errors_escape(values: Any) -> None:
    config = tried(values)
    if isinstance(config, str):
        assert config.splitlines() == [config]
        return
    assert tried(json.loads(json.dumps(config.to_dict()))) == config
    assert isinstance(config.loss_weights, LossSettings)


@settings(deadline=None)
@given(st.sampled_from(list(FIELDS)), JSON)
def test_a_setting_is_kept_or_refused_by_name(name: str, value: Any) -> None:
    config = tried({name: value})
    if isinstance(config, str):
        assert config.startswith((f"{name}: ", "grad_accum_steps: "))
        return
    assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
