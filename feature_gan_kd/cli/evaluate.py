"""`feature-gan-kd evaluate`."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from feature_gan_kd.cli.model_options import restored


def evaluate(
    run: Path,
    /,
    data: str | None = None,
    eval_split: str | None = None,
    skip_bad_images: bool = False,
    json: bool = False,
) -> None:
    """Evaluate the models of a run and their ensemble, with the weights of its newest checkpoint.

    Args:
        run: Folder of the run.
        data: Images to evaluate on (default: those the run was evaluated on).
        eval_split: Split to evaluate on (default: the run's; of other data test, else validation).
        skip_bad_images: Skip images that cannot be decoded.
        json: Print one line of JSON.
    """
    distiller = restored(run)
    if data is not None or eval_split is not None:
        distiller.group.config = distiller.config.replace(eval_split=eval_split)
    distiller.group.config = distiller.config.replace(skip_bad_images=skip_bad_images)
    result = distiller.evaluate(data)
    if not distiller.accelerator.is_main_process:
        return
    if json:
        print(dumps(result))
        return
    for name, accuracy, loss in zip(distiller.names, result["accuracy"], result["cross_entropy"], strict=True):
        print(f"{name:<24} top-1 {accuracy:6.2f} %  cross-entropy {loss:.4f}")
    print(f"{'ensemble':<24} top-1 {result['ensemble']:6.2f} %  on {result['images']} images")
