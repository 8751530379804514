"""`feature-gan-kd train`."""

from __future__ import annotations

import dataclasses
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from feature_gan_kd.cli.command_line import own_command
from feature_gan_kd.cli.model_options import ModelOptions, build
from feature_gan_kd.config.distill_config import DistillConfig

if TYPE_CHECKING:
    from feature_gan_kd.report import RecordedRun
    from feature_gan_kd.training.history import History

# What `train` runs when neither models nor data are named: two small networks of timm's own on 200 of the bundled
# digits, few enough that there is something to gain, with rates that suit such models and a run of 240 steps.
DEMO = (
    *("--models", "test_convnext2", "test_resnet", "--image-size", "32", "--max-train-samples", "200"),
    *("--epochs", "60", "--evaluate-every-epochs", "3", "--batch-size", "64"),
    *("--optimizer", "adamw", "--lr", "2e-3", "--scheduler", "cosine", "--warmup-fraction", "0.1"),
    *("--adversarial-lr", "2e-4", "--adversarial-weight-decay", "0"),
    *("--discriminator-lr", "1e-2", "--discriminator-weight-decay", "0"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Run: its folder and trackers."""

    output_dir: Path
    """Folder to write the run to."""
    config: Path | None = None
    """Run file in YAML, TOML or JSON, such as the config.json of a run: models, topology, data and settings. Options
    beside it override it (default: none)."""
    eval_data: str | None = None
    """Images to evaluate on (default: the evaluation split of --data, else a fifth of the training images)."""
    unlabeled: str | None = None
    """Images without labels to train on besides: name on the hub, local folder or file (default: none)."""
    resume: bool = False
    """Continue from the newest checkpoint in the folder, if there is one."""
    log_with: tuple[str, ...] = ()
    """Trackers that log every metric, besides metrics.jsonl: tensorboard, wandb or another of Accelerate's."""
    license: str | None = None
    """Licence of the published weights, as the hub writes it: mit, apache-2.0, ... (default: that of pretrained
    weights)."""


@dataclasses.dataclass(frozen=True)
class Output:
    """Output."""

    quiet: bool = False
    """Print only warnings and errors."""
    json: bool = False
    """Print every record and the results as lines of JSON on stdout; everything else goes to stderr."""


def train(
    models: ModelOptions,
    run: Run,
    config: DistillConfig,
    output: Output,
) -> None:
    """Train models together and publish them."""
    from feature_gan_kd.training.callbacks import JsonPrinter
    from feature_gan_kd.training.run_folder import check_run_folder
    from feature_gan_kd.utils.memory import keep_freed_memory

    keep_freed_memory()
    check_run_folder(run.output_dir, run.resume)
    distiller = build(models, config)
    main_process = distiller.accelerator.is_main_process
    if main_process and not output.quiet:
        print(distiller.summary(), end="\n\n", file=sys.stderr if output.json else sys.stdout, flush=True)
    history = distiller.fit(
        models.data,
        run.eval_data,
        unlabeled_data=run.unlabeled,
        output_dir=run.output_dir,
        resume=run.resume,
        callbacks=[JsonPrinter()] if output.json else [],
        log_with=run.log_with,
        progress=not output.quiet,
        license=run.license,
    )
    if main_process:
        _finish(run.output_dir, history, output, licensed=run.license is not None or models.pretrained)


def _finish(folder: Path, history: History, output: Output, *, licensed: bool) -> None:
    """Draws the curves, and says what came out and what can be done with it."""
    from feature_gan_kd.report import read_run, results_table, write_curves

    finished, curves = read_run(folder), folder / "curves.png"
    write_curves(finished, curves)
    commands = _next_commands(finished, licensed)
    if output.json:
        last = history.last
        results = {"accuracy": history.accuracy, "ensemble": history.ensemble, "best": history.best}
        places = {"networks": str(folder / "networks"), "curves": str(curves)}
        print(dumps({"event": "end", "epoch": last["epoch"], **results, **places, "commands": commands}))
    elif not output.quiet:
        print(f"\n{results_table(finished)}\n\nnetworks: {folder / 'networks'}\ncurves:   {curves}")
        print(*(f"{name + ':':<9} {command}" for name, command in commands.items()), sep="\n")


def _next_commands(run: RecordedRun, licensed: bool) -> dict[str, str]:
    """What to do with a finished run, by the name of the command; words in capitals are the user's to fill in."""
    name = str(run.folder)
    unsaid = [] if licensed else ["--license", "LICENCE"]
    learner = next(k for k in range(len(run.names)) if k not in run.frozen)
    measure = own_command("probe", f"{name}/networks/{learner}-{run.names[learner]}", "--data", "LABELLED")
    best = ["--which", "best"] if run.is_evaluated else []
    return {
        "report": own_command("report", name),
        **({"evaluate": own_command("evaluate", name)} if run.is_evaluated else {"probe": measure}),
        "export": own_command("export", name, "FOLDER", *best, *unsaid),
    }
