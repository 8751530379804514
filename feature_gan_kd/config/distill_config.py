"""`DistillConfig`: every setting of a run, validated, with the presets of its method and recipe applied."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from feature_gan_kd.config import settings
from feature_gan_kd.config.augmentation import IMAGE_SETTINGS, check_augmentation
from feature_gan_kd.config.method_settings import DiscriminatorSettings, LossSettings
from feature_gan_kd.config.methods import METHOD_WITHOUT_LABELS, METHODS
from feature_gan_kd.config.recipes import RECIPES
from feature_gan_kd.config.validation import ValueType, check_value, show
from feature_gan_kd.utils.errors import UserError, closest

if TYPE_CHECKING:
    from typing_extensions import Self


LABEL_SETTINGS = (
    "smoothing",
    "bce_loss",
    "class_weights",
    "balanced_sampling",
    "kl_start_fraction",
    "labeled_fraction",
)
"""Settings that act only where models learn from labels."""


@cache
def setting_types() -> dict[str, ValueType]:
    """The type of every setting, by name."""
    hints = {name: hint for section in settings.SECTIONS for name, hint in typing.get_type_hints(section).items()}
    return {name: ValueType.from_hint(hint) for name, hint in hints.items()}


class RemembersGiven:
    """Remembers which settings the user gave, so that no preset replaces them, not even after `replace`.

    It is a base class so that the signature of `DistillConfig` stays the dataclass's own.
    """

    def __new__(cls, /, **given: Any) -> Self:
        """Raises UserError for a setting that does not exist."""
        known = list(setting_types())
        for name in given:
            if name not in known:
                near = closest(name, known)
                raise UserError(f"config: there is no setting {show(name)}{near and f', the closest are {near}'}")
        config = super().__new__(cls)
        config.__dict__["_given"] = given
        return config


# Dataclasses collect the fields of their last base first.
@dataclass(frozen=True, kw_only=True)
class DistillConfig(
    settings.TrackingSettings,
    settings.RuntimeSettings,
    settings.AugmentationSettings,
    settings.DataSettings,
    DiscriminatorSettings,
    settings.PeerSettings,
    settings.OptimSettings,
    LossSettings,
    settings.TrainingSettings,
    RemembersGiven,
):
    """Every setting of a run, by name.

    A setting that is not given has the value that the method or the recipe presets for it, else its default.

    Raises:
        UserError: at construction, for an unknown setting, and for a value of the wrong type or outside its bounds.
    """

    def __post_init__(self) -> None:
        expected = setting_types()
        for spec in dataclasses.fields(self):
            value = check_value(spec.name, getattr(self, spec.name), expected[spec.name], spec.metadata)
            object.__setattr__(self, spec.name, value)
        if not (self.labels or self.is_given("method")):
            object.__setattr__(self, "method", METHOD_WITHOUT_LABELS)
        for name, value in {**METHODS[self.method], **RECIPES[self.recipe]}.items():
            if not (self.is_given(name) or name in self.presets_left_out()):
                object.__setattr__(self, name, value)
        self._convert_warmup()
        self._check_combinations()

    def presets_left_out(self) -> dict[str, str]:
        """Settings that no preset turns on, each with why it would not act beside the user's own settings."""
        found = {} if self.labels else dict.fromkeys(LABEL_SETTINGS, "the models learn without labels")
        if self.decay_only_update:
            found["joint_backward"] = "decay_only_update needs a second optimiser"
        if self.augmentation == "none":
            found |= dict.fromkeys((*IMAGE_SETTINGS, "reprob"), "augmentation none takes its place")
        elif self.color_jitter:
            found["aa"] = f"color_jitter {self.color_jitter:g} takes its place"
        return found

    def _convert_warmup(self) -> None:
        """Keeps a warm-up in epochs as the fraction of the run that it is: all times are fractions."""
        if self.warmup_epochs is None:
            return
        if self.is_given("warmup_fraction"):
            raise UserError("warmup_epochs: warmup_fraction is given too, and both say the same: leave one of them out")
        (fraction,) = (spec for spec in dataclasses.fields(self) if spec.name == "warmup_fraction")
        most = fraction.metadata["at_most"] * self.epochs
        if self.warmup_epochs > most:
            wrong = f"{self.warmup_epochs:g} of {self.epochs} epochs"
            raise UserError(f"warmup_epochs: {wrong} is not allowed, expected at most {most:g}")
        object.__setattr__(self, "warmup_fraction", self.warmup_epochs / self.epochs)
        object.__setattr__(self, "warmup_epochs", None)

    def _check_combinations(self) -> None:
        """What depends on several settings, or on several numbers of one."""
        for name in ("milestones", "adversarial_milestones"):
            value = getattr(self, name)
            if list(value) != sorted(set(value)):
                raise UserError(f"{name}: {show(value)} is not allowed, expected rising fractions of the run")
        if self.grad_accum_steps > self.batch_size:
            raise UserError(
                f"grad_accum_steps: {self.grad_accum_steps} parts of a batch of {self.batch_size} images: "
                "at most one part per image"
            )
        if self.joint_backward and self.decay_only_update:
            raise UserError(
                "joint_backward: decay_only_update (of method zero-gradient) needs a second optimiser: leave one of "
                "them out"
            )
        if self.cuda_graphs and self.mixed_precision == "fp16":
            raise UserError(
                "cuda_graphs: cannot be combined with mixed_precision fp16, whose loss scale changes between updates: "
                "leave one of them out, or take bf16"
            )
        if self.cache_sources is not None:
            self._check_cache()
        if self.sync_batchnorm and self.compile:
            raise UserError("sync_batchnorm: cannot be combined with compile: leave one of them out")
        if self.class_weights and self.balanced_sampling:
            raise UserError("class_weights: balanced_sampling already balances the classes: leave one of them out")
        given = next((name for name in LABEL_SETTINGS if not self.labels and getattr(self, name)), None)
        if given is not None:
            raise UserError(f"{given}: has no effect without labels: leave it out, or set labels to true")
        if self.logit_loss == "decoupled":
            self._check_decoupled()
        if self.discriminator_classes and self.discriminator_norm != "batch":
            raise UserError(
                "discriminator_norm: discriminators that see classes (discriminator_classes) have no normalisation: "
                "leave one of them out"
            )
        check_augmentation(self)

    def _check_decoupled(self) -> None:
        """Raises UserError where images do not have the one class that the loss asks for."""
        if not self.labels:
            raise UserError(
                "logit_loss: decoupled asks for the class of each image: set labels to true, or choose kl or "
                "standardised"
            )
        mixing = next((name for name in ("mixup", "cutmix") if getattr(self, name)), None)
        if mixing is not None:
            raise UserError(
                f"logit_loss: decoupled asks for one class of each image, and {mixing} mixes two: leave one of them "
                "out, or choose kl or standardised"
            )

    def _check_cache(self) -> None:
        """Raises UserError where kept outputs of sources would never be used again."""
        changing = f"augmentation {self.augmentation}" if self.augmentation != "none" else ""
        changing = changing or next((name for name in ("mixup", "cutmix") if getattr(self, name)), "")
        if changing:
            raise UserError(
                f"cache_sources: the images change from epoch to epoch ({changing}), so what was kept would be that of "
                "other images: set augmentation to none, or leave it out"
            )
        if self.cuda_graphs:
            raise UserError("cache_sources: cannot be combined with cuda_graphs: leave one of them out")

    def is_given(self, name: str) -> bool:
        """Whether the user gave a setting; otherwise a preset or the default decides.

        Args:
            name: of the setting.
        """
        return name in self.__dict__["_given"]

    @property
    def loss_weights(self) -> LossSettings:
        """The settings of the losses."""
        return self

    @property
    def given(self) -> frozenset[str]:
        """The names of the settings that the user gave, which no preset replaces."""
        return frozenset(self.__dict__["_given"])

    @property
    def given_values(self) -> dict[str, Any]:
        """The same settings with their values."""
        return dict(self.__dict__["_given"])

    def replace(self, /, **changes: Any) -> DistillConfig:
        """A copy with some settings changed; another method or recipe brings its presets along.

        Raises:
            UserError: for a setting that does not exist (the closest names are given) or a bad value.
        """
        return type(self)(**{**self.__dict__["_given"], **changes})

    def to_dict(self) -> dict[str, Any]:
        """Every setting in force, as JSON values."""
        return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(self))))

    def defining(self) -> dict[str, Any]:
        """The settings that decide the weights of a run; a resumed run must have the same."""
        free = {spec.name for section in settings.MAY_CHANGE_ON_RESUME for spec in dataclasses.fields(section)}
        return {name: value for name, value in self.to_dict().items() if name not in free}

    def data_settings(self) -> dict[str, Any]:
        """The settings that choose images and their pixels, before these are normalised, as JSON values."""
        chosen = {spec.name for spec in dataclasses.fields(settings.DataSettings)} - {"mean", "std"}
        return {name: value for name, value in self.to_dict().items() if name in chosen}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillConfig:
        """The inverse of `to_dict`.

        Args:
            values: settings by name, all of which count as given: no preset replaces them.

        Raises:
            UserError: if `values` is no mapping, for an unknown setting and for a bad value.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"config: {show(values)} holds no settings, expected their names and values")
        return cls(**{str(name): value for name, value in values.items()})


def override_settings(config: DistillConfig | None, overrides: Mapping[str, Any]) -> DistillConfig:
    """A config with some settings changed.

    Args:
        config: None takes the default of every setting.
        overrides: settings by name.

    Raises:
        UserError: for what is no config, a setting that does not exist, or a bad value.
    """
    config = DistillConfig() if config is None else config
    if not isinstance(config, DistillConfig):
        raise UserError(f"config: {type(config).__name__} is not allowed, expected DistillConfig.from_dict of it")
    return config.replace(**overrides)
