"""`feature-gan-kd report`."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path

from feature_gan_kd.cli.model_options import restored
from feature_gan_kd.utils.errors import UserError


def report(
    run: Path,
    others: tuple[Path, ...] = (),
    /,
    output: Path | None = None,
    grad_cam: tuple[int, ...] | None = None,
    data: str | None = None,
    json: bool = False,
) -> None:
    """Draw a run, or several overlaid, as one HTML file that opens from disk; print a table that compares several.

    Args:
        run: Folder of the run; it may still be going.
        others: Folders of runs to compare with it.
        output: File to write (default: report.html in the first run's folder).
        grad_cam: Numbers of evaluation images, from 0: draw where each model sees the right class in them. The
            pictures stay in the run's folder, and later reports show them too.
        data: Images for --grad-cam (default: those the run was evaluated on).
        json: Print the path of the file as one line of JSON.
    """
    from feature_gan_kd.report import comparison_table, distinct_labels, read_run, write_page

    if grad_cam == ():
        raise UserError("grad_cam: no image is named: add the numbers of evaluation images, from 0")
    if data is not None and grad_cam is None:
        raise UserError("data: only --grad-cam takes images: add --grad-cam, or leave --data out")
    runs = [read_run(folder) for folder in (run, *others)]
    for folder in (run, *others) if grad_cam is not None else ():
        _draw_pictures(folder, grad_cam or (), data)
    path = run / "report.html" if output is None else output
    write_page(runs, path)
    if json:
        print(dumps({"report": str(path)}))
        return
    if len(runs) > 1:
        print(comparison_table(runs, distinct_labels(runs)), end="\n\n")
    print(path)


def _draw_pictures(run: Path, numbers: Sequence[int], data: str | None) -> None:
    """Draws Grad-CAM pictures of a run's models, with the weights of their best epochs, into its folder.

    Args:
        run: its folder; it may still be going.
        numbers: of evaluation images, from 0.
        data: images in place of those that the run was evaluated on.

    Raises:
        UserError: where no model is published yet, a model does not classify, the images do not exist, or the pictures
            cannot be drawn or written.
    """
    published = run / "networks"
    if not list(published.glob("*-best")):
        raise UserError(f"grad_cam: {published} holds no model yet: wait for the run's first evaluation")
    import torch

    from feature_gan_kd.analysis.gradcam_pictures import draw_grad_cam, with_taps
    from feature_gan_kd.training.run import open_evaluation_images

    distiller = restored(run)
    group = distiller.group
    encoder = next((k for k in range(len(group.peers)) if k not in group.classifiers), None)
    if encoder is not None:
        raise UserError(
            f"grad_cam: model {encoder} ({group.names[encoder]}) of {run} has no classifier of the learners' classes, "
            "so there is no answer of which to draw the place: leave --grad-cam out"
        )
    distiller.load_best(run)
    source = open_evaluation_images(group, data)
    device, size = group.accelerator.device, group.image_size
    models = with_taps(
        group.tapped,
        feature_layers=group.feature_layers,
        images=torch.zeros(2, group.in_chans, size, size, device=device),
        vectors=distiller.config.vectors_as_maps,
    )
    draw_grad_cam(
        models,
        source,
        numbers,
        run / "grad-cam",
        normalisation=group.normalisation(),
        class_names=group.provenance.class_names if group.provenance else None,
        device=device,
    )
