"""Replaces python under `--launch`: writes what a training writes, without training.

Environment variables change what it does: SECONDS to take, FAIL the method that fails, TELL the variable to print.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from feature_gan_kd.config.distill_config import DistillConfig

METRICS = {
    "train/cross_entropy/0": 1.23456,
    "eval/accuracy/0": 5.0,
    "eval/accuracy/1": 6.0,
    "eval/accuracy/ensemble": 7.0,
    "eval/images": 4,
}


def main() -> None:
    """Records that it was started, then writes the run's files."""
    method, seed, folder = (_value(name) for name in ("--method", "--seed", "--output-dir"))
    place = Path(folder)
    with (place / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if method == os.environ.get("FAIL"):
        print("no luck with this one")
        sys.exit(3)
    print(os.environ.get(os.environ.get("TELL", ""), ""))
    time.sleep(float(os.environ.get("SECONDS", "0")))
    models = [{"name": name.split("/")[-1].removeprefix("1-")} for name in _values("--models")]
    config = DistillConfig(method=method, seed=int(seed), epochs=int(_value("--epochs")))  # type: ignore[arg-type]
    frozen = [1] if "--frozen" in sys.argv else []
    about = {"models": models, "frozen": frozen, "feature_layers": None, "config": config.to_dict()}
    about |= {"versions": {"torch": "1", "timm": "1"}, "device": "cpu"}
    data = {"name": "none", "fingerprint": "f", "train_images": 4, "evaluation_images": 4}
    epochs = [
        {"event": "epoch", "epoch": k, "step": k, "metrics": METRICS, "seconds": 1} for k in range(1, config.epochs + 1)
    ]
    for k, model in enumerate(models):
        (place / "networks" / f"{k}-{model['name']}").mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps({**about, "data": data}))
    (place / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))


def _values(option: str) -> list[str]:
    rest = sys.argv[sys.argv.index(option) + 1 :]
    return rest[: next((k for k, word in enumerate(rest) if word.startswith("--")), len(rest))]


def _value(option: str) -> str:
    return _values(option)[0]


if __name__ == "__main__":
    main()
