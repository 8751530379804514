"""Writes folders of runs whose records are known, in the form that `fit` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feature_gan_kd.config.distill_config import DistillConfig

PAIR = ("cifar_resnet20", "cifar_resnet32")
LONG = (
    "convnextv2_atto_with_a_very_long_variant_name",
    "swinv2_cr_small_ns_224",
    "vit_small_patch16_dinov3_qkvb",
    "maxvit_rmlp_small_rw_256_windowed_memory_mlp",
)
# Of each method, the metrics by learner besides cross-entropy and accuracy.
KINDS = {
    "vanilla": (),
    "logit": ("kl",),
    "l1": ("kl", "l1"),
    "l2-only": ("l2",),
    "aligned": ("kl", "aligned"),
    "statistics": ("kl", "statistics"),
    "pooled": ("kl", "l2"),
    "relation": ("kl", "relation"),
    "feature": ("adversarial", "discriminator"),
    "afd": ("kl", "adversarial", "discriminator"),
    "zero-gradient": ("kl",),
}
GRADIENT_STATS = ("gradient", "decay", "update", "descent", "shrinkage")
SIMILARITIES = ("similarity", "cosine")

Edges = Sequence[tuple[int, int]]


def write_run(
    folder: Path,
    *,
    names: Sequence[str] = PAIR,
    method: str = "afd",
    epochs: int = 3,
    planned: int = 3,
    updates: int = 8,
    log_every_steps: int = 4,
    edges: Edges | None = None,
    frozen: Sequence[int] = (),
    layers: Sequence[str] | None = None,
    **settings: Any,
) -> Path:
    """Writes a run's folder: accuracies rise, except in the last of several epochs.

    With `layers` gradients and similarity are recorded, the latter at each of them: `[""]` or `["@0", "@1"]`.
    """
    count = len(names)
    edges = edges or [(k, (k + 1) % count) for k in range(count)]
    learners = [k for k in range(count) if k not in frozen]
    description = {
        "models": [{"name": name} for name in names],
        "topology": [list(edge) for edge in edges],
        "frozen": list(frozen),
        "config": DistillConfig.from_dict({"method": method, "epochs": planned, **settings}).to_dict(),
        "data": {"name": "uoft-cs/cifar100", "train_images": 50000, "evaluation_images": 10000},
    }
    lines: list[dict[str, Any]] = []
    for step in range(log_every_steps, max(epochs, 1) * updates + 1, log_every_steps):
        epoch = (step - 1) // updates + 1
        metrics = training_metrics(step, method, learners, edges, with_gradients=layers is not None)
        metrics |= {"train/images_per_second": 900.0, "lr/logit": 0.1 / epoch}
        if set(KINDS[method]) - {"kl"}:
            metrics |= {"lr/feature": 2e-5, "lr/discriminator": 2e-5}
        record = {"step": step, "epoch": epoch, "metrics": metrics}
        lines.append({"event": "step", **record})
        if step % updates == 0 and epochs:
            done = epoch - 2 if epoch == epochs > 1 else epoch
            evaluation = evaluation_metrics(count, done, 2.0 / epoch)
            evaluation |= {
                f"eval/{kind}/{s}->{t}{layer}": 0.9 - 0.4 / step
                for kind in SIMILARITIES
                for s, t in edges
                for layer in layers or ()
            }
            evaluation["train/epoch_images_per_second"] = 100.0 * epoch
            end = {"metrics": metrics | evaluation, "epochs": planned, "seconds": 2.0, "seconds_left": 0.0}
            lines.append({"event": "epoch", **record, **end})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(description))
    write_lines(folder, lines)
    return folder


def training_metrics(
    step: int, method: str, learners: Sequence[int], edges: Edges, *, with_gradients: bool
) -> dict[str, float]:
    """What the updates up to `step` record, by its name in `metrics.jsonl`."""
    kinds = ("cross_entropy", "accuracy", *KINDS[method])
    metrics = {f"{kind}/{k}": (100 if kind == "accuracy" else 1) * (k + 1) / step for kind in kinds for k in learners}
    if "discriminator" in KINDS[method]:
        metrics |= {f"real/{s}->{t}": 1 - 0.4 / step - 0.01 * t for s, t in edges}
        metrics |= {f"fake/{s}->{t}": 0.4 / step + 0.01 * t for s, t in edges}
    if with_gradients:
        for name in GRADIENT_STATS:
            metrics |= {f"{name}_{loss}/{k}": 1 / step for loss in ("logit", "feature") for k in learners}
            metrics |= {f"{name}_discriminator/{s}->{t}": 2 / step for s, t in edges}
        metrics |= {f"right/{s}->{t}": 100 - 40 / step for s, t in edges}
    return {f"train/{name}": value for name, value in metrics.items()}


def evaluation_metrics(count: int, epochs: int, cross_entropy: float) -> dict[str, float]:
    """What an evaluation of `count` models records that learned for so many epochs."""
    return {
        **{f"eval/accuracy/{k}": 60 + 2 * epochs + k / 4 for k in range(count)},
        "eval/accuracy/ensemble": 70.0 + epochs,
        **{f"eval/cross_entropy/{k}": cross_entropy for k in range(count)},
        "eval/images": 10000,
    }


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Reads the records of a run, for a test that changes them."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_lines(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes the records of a run."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_description(folder: Path, **changes: Any) -> Path:
    """The same run with other entries in `config.json`."""
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, **changes}))
    return folder
