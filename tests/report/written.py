"""Runs' folders with records that are known, as `fit` would write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feature_gan_kd.config.settings import DistillConfig

PAIR = ("cifar_resnet20", "cifar_resnet32")
LONG = (
    "convnextv2_atto_with_a_very_long_variant_name",
    "swinv2_cr_small_ns_224",
    "vit_small_patch16_dinov3_qkvb",
    "maxvit_rmlp_small_rw_256_windowed_memory_mlp",
)
KINDS = {
    "vanilla": (),
    "logit": ("logit",),
    "l1": ("logit", "l1"),
    "l2-only": ("l2",),
    "feature": ("adversarial", "discriminator"),
    "afd": ("logit", "adversarial", "discriminator"),
}
MEASURED = ("gradient", "decay", "update", "descent", "shrinkage")
LOSSES = ("logit", "feature")
ALIKE = ("similarity", "cosine")


def write_run(
    folder: Path,
    *,
    names: Sequence[str] = PAIR,
    method: str = "afd",
    epochs: int = 3,
    planned: int = 3,
    updates: int = 8,
    log_every_steps: int = 4,
    edges: Sequence[tuple[int, int]] | None = None,
    frozen: Sequence[int] = (),
    layers: Sequence[str] | None = None,
    **settings: Any,
) -> Path:
    """A run's folder with records like those of `fit`: accuracies rise, except in the last of several epochs.

    With `layers` gradients and similarity are recorded, the latter at each of them: `[""]` or `["@0", "@1"]`.
    """
    count = len(names)
    edges = edges or [(k, (k + 1) % count) for k in range(count)]
    learners = [k for k in range(count) if k not in frozen]
    about = {
        "models": [{"name": name} for name in names],
        "edges": [list(edge) for edge in edges],
        "frozen": list(frozen),
        "config": DistillConfig.from_dict({"method": method, "epochs": planned, **settings}).to_dict(),
        "data": {"name": "uoft-cs/cifar100", "train_images": 50000, "evaluation_images": 10000},
    }
    lines: list[dict[str, Any]] = []
    for step in range(log_every_steps, max(epochs, 1) * updates + 1, log_every_steps):
        epoch = (step - 1) // updates + 1
        metrics = {
            f"{kind}/{k}": (k + 1) / step for kind in ("cross_entropy", "accuracy", *KINDS[method]) for k in learners
        }
        if "discriminator" in KINDS[method]:
            metrics |= {f"real/{s}->{t}": 1 - 0.4 / step - 0.01 * t for s, t in edges}
            metrics |= {f"fake/{s}->{t}": 0.4 / step + 0.01 * t for s, t in edges}
        if layers is not None:
            metrics |= {f"{name}_{kind}/{k}": 1 / step for name in MEASURED for kind in LOSSES for k in learners}
            metrics |= {f"{name}_discriminator/{s}->{t}": 2 / step for name in MEASURED for s, t in edges}
            metrics |= {f"right/{s}->{t}": 1 - 0.4 / step for s, t in edges}
        rates = {"logit": 0.1 / epoch}
        if set(KINDS[method]) - {"logit"}:
            rates |= {"feature": 2e-5, "discriminator": 2e-5}
        record = {"step": step, "epoch": epoch, "metrics": metrics, "lr": rates, "images_per_second": 900.0}
        lines.append({"event": "step", **record})
        if step % updates == 0 and epochs:
            gone = epoch - 2 if epoch == epochs > 1 else epoch
            accuracy = [60 + 2 * gone + k / 4 for k in range(count)]
            end: dict[str, Any] = {
                "accuracy": accuracy,
                "ensemble": 70.0 + gone,
                "loss": [2.0 / epoch] * count,
                "seconds": 2.0,
            }
            end["metrics"] = metrics | {
                f"{kind}/{s}->{t}{layer}": 0.9 - 0.4 / step
                for kind in ALIKE
                for s, t in edges
                for layer in layers or ()
            }
            lines.append({"event": "epoch", **record, **end, "images_per_second": 100.0 * epoch})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about))
    write_lines(folder, lines)
    return folder


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, to be changed."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_lines(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes the records of a run."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_description(folder: Path, **changes: Any) -> Path:
    """The same run with other entries in `config.json`."""
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **changes}))
    return folder
