"""`feature-gan-kd train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from feature_gan_kd.cli.invocation import own_command, resume_command
from feature_gan_kd.cli.networks import Networks, build
from feature_gan_kd.config import DistillConfig

# What `train` runs when neither networks nor data are named: a CNN and a transformer of timm's own on the bundled
# digits, with rates that suit such networks and a run of some 450 steps.
DEMO = (
    *("--models", "test_resnet", "test_vit", "--image-size", "32", "--epochs", "20", "--batch-size", "64"),
    *("--optimizer", "adamw", "--lr", "2e-3", "--scheduler", "cosine", "--warmup", "0.1"),
    *("--adversarial-lr", "2e-4", "--adversarial-weight-decay", "0"),
    *("--discriminator-lr", "1e-3", "--discriminator-weight-decay", "0"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a run is kept."""

    output_dir: Path
    """Folder of the run."""
    eval_data: str | None = None
    """Other images to evaluate on [the evaluation split of --data, else a fifth held out]."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder, if there is one."""
    license: str | None = None
    """Licence of the published weights, as the hub writes it (mit, apache-2.0, ...) [that of pretrained ones]."""


def train(
    networks: OmitArgPrefixes[Networks], run: OmitArgPrefixes[Run], config: OmitArgPrefixes[DistillConfig]
) -> None:
    """Train networks together and publish them."""
    from feature_gan_kd.run_folder import usable_folder

    usable_folder(run.output_dir, run.resume)
    distiller = build(networks, config)
    main_process = distiller.accelerator.is_main_process
    if main_process:
        print(distiller.summary(), end="\n\n", flush=True)
    distiller.fit(networks.data, run.eval_data, output_dir=run.output_dir, resume=run.resume, license=run.license)
    if main_process:
        from feature_gan_kd.report import draw_curves, read_run, table

        finished, curves = read_run(run.output_dir), run.output_dir / "curves.png"
        draw_curves(finished, curves)
        print(f"\n{table(finished)}\n\nnetworks: {run.output_dir / 'networks'}\ncurves:   {curves}")
        print(f"evaluate: {own_command('evaluate', str(run.output_dir))}")
        unsaid = "" if run.license or networks.pretrained else " --license LICENCE"
        print(f"export:   {own_command('export', str(run.output_dir))} FOLDER --which best{unsaid}")
        print(f"resume:   {resume_command()}")
