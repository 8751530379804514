"""The command line: `feature-gan-kd train | evaluate | export | inspect | report`; options come from dataclasses."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from feature_gan_kd.arguments import mistake, option
from feature_gan_kd.config import DistillConfig
from feature_gan_kd.errors import DivergedError, Interrupted, UserError
from feature_gan_kd.topology import TopologyName

if TYPE_CHECKING:
    from feature_gan_kd.distiller import OnlineAdversarialDistiller

# The arguments of the present command, as they were typed.
_typed: contextvars.ContextVar[list[str]] = contextvars.ContextVar("typed")

# What `train` runs when neither networks nor data are named: a CNN and a transformer of timm's own on the bundled
# digits, with rates that suit such networks and a run of some 450 steps.
DEMO = (
    *("--models", "test_resnet", "test_vit", "--image-size", "32", "--epochs", "20", "--batch-size", "64"),
    *("--optimizer", "adamw", "--lr", "2e-3", "--scheduler", "cosine", "--warmup", "0.1"),
    *("--adversarial-lr", "2e-4", "--adversarial-weight-decay", "0"),
    *("--discriminator-lr", "1e-3", "--discriminator-weight-decay", "0"),
)


@dataclasses.dataclass(frozen=True)
class Networks:
    """Networks, their wiring and their data."""

    models: tuple[str, ...] = ()
    """At least two networks: timm names, `local-dir:` or `hf-hub:` names [a demo pair, with settings of its own]."""
    data: str | None = None
    """Hub name, local folder or file [the bundled digits]."""
    num_classes: int | None = None
    """Size of the logits [as many as the data have classes]."""
    in_chans: Literal[1, 3] = 3
    """Channels of the images."""
    pretrained: bool = False
    """Start from trained weights."""
    feature_layers: tuple[str, ...] = ()
    """Layers whose output is taught: names, or numbers of timm's stages (0, 1, ..., -1), in every network; K:LAYER is
    for network K alone [the last map before pooling]."""
    topology: TopologyName = "cycle"
    """Who teaches whom."""
    frozen: tuple[int, ...] = ()
    """Positions of networks that only teach."""


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
    distiller = _build(networks, config)
    main_process = distiller.accelerator.is_main_process
    if main_process:
        print(distiller.summary(), end="\n\n", flush=True)
    distiller.fit(networks.data, run.eval_data, output_dir=run.output_dir, resume=run.resume, license=run.license)
    if main_process:
        from feature_gan_kd.report import draw_curves, read_run, table

        finished, curves = read_run(run.output_dir), run.output_dir / "curves.png"
        draw_curves(finished, curves)
        print(f"\n{table(finished)}\n\nnetworks: {run.output_dir / 'networks'}\ncurves:   {curves}")
        print(f"evaluate: {_own_command('evaluate', str(run.output_dir))}")
        unsaid = "" if run.license or networks.pretrained else " --license LICENCE"
        print(f"export:   {_own_command('export', str(run.output_dir))} FOLDER --which best{unsaid}")
        print(f"resume:   {_resume_command()}")


def inspect(networks: OmitArgPrefixes[Networks], config: OmitArgPrefixes[DistillConfig]) -> None:
    """Show the wiring of networks and its price, without training them."""
    from feature_gan_kd.data import count_classes
    from feature_gan_kd.inspection import inspect_networks

    classes = networks.num_classes
    if classes is None and networks.data is not None:
        classes = count_classes(networks.data, config)
    print(
        inspect_networks(
            _peers(networks),
            num_classes=classes,
            in_chans=networks.in_chans,
            feature_layers=_layers(networks),
            topology=networks.topology,
            frozen=networks.frozen,
            config=config,
        )
    )


def evaluate(
    run: Positional[Path],
    /,
    data: str | None = None,
    eval_split: str | None = None,
    skip_bad_images: bool = False,
    as_json: bool = False,
) -> None:
    """Evaluate the networks of a run, and their ensemble, as its newest checkpoint has them.

    Args:
        run: Folder of the run.
        data: Images to evaluate on [those the run was evaluated on].
        eval_split: Split of them [the run's; of other data test, else validation].
        skip_bad_images: Leave out images that cannot be decoded.
        as_json: Print JSON.
    """
    distiller = _restored(run)
    if data is not None or eval_split is not None:
        distiller.config = distiller.config.replace(eval_split=eval_split)
    distiller.config = distiller.config.replace(skip_bad_images=skip_bad_images)
    result = distiller.evaluate(data)
    if not distiller.accelerator.is_main_process:
        return
    if as_json:
        print(json.dumps(result))
        return
    for name, accuracy, loss in zip(distiller.names, result["accuracy"], result["loss"], strict=True):
        print(f"{name:<24} top-1 {accuracy:6.2f} %  cross-entropy {loss:.4f}")
    print(f"{'ensemble':<24} top-1 {result['ensemble']:6.2f} %  on {result['images']} images")


def export(
    run: Positional[Path],
    output_dir: Positional[Path],
    /,
    which: Literal["last", "best"] = "last",
    license: str | None = None,
) -> None:
    """Publish the networks of a run, one folder each that plain timm loads.

    Args:
        run: Folder of the run.
        output_dir: Where the folders go.
        which: Weights of the last checkpoint or of each network's best epoch.
        license: Licence of the weights, as the hub writes it.
    """
    distiller = _restored(run)
    if which == "best":
        distiller.load_best(run)
    for folder in distiller.save_pretrained(output_dir, which=which, license=license):
        if distiller.accelerator.is_main_process:
            print(folder)


def report(run: Positional[Path], others: Positional[tuple[Path, ...]] = (), /, output: Path | None = None) -> None:
    """Draw a run, or several laid over each other, as one HTML file that opens from disk.

    Args:
        run: Folder of the run; it may still be going on.
        others: Folders of runs to compare with it.
        output: The file [report.html in the first run's folder].
    """
    from feature_gan_kd.report import read_run, write_page

    path = run / "report.html" if output is None else output
    write_page([read_run(folder) for folder in (run, *others)], path)
    print(path)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "inspect": inspect,
    "report": report,
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line on stderr and exit status 2, a training that
    cannot go on one line and 1, a signal exit status 128 + signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without some character must not end a run
    typed = list(sys.argv[1:] if args is None else args)
    _typed.set(typed)
    plain, warnings.formatwarning = warnings.formatwarning, _one_line_warning
    try:
        _parse(typed)()
    except (UserError, DivergedError) as error:
        line = f"feature-gan-kd: error: {_as_option(' '.join(str(error).splitlines()))}"
        if _first_to_say(line):
            print(line, file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted as stop:
        if _speaks():
            launched = "launched as before, " if "LOCAL_RANK" in os.environ else ""
            print(f"feature-gan-kd: {stop}; {launched}it goes on with\n{_resume_command()}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("feature-gan-kd: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = plain


def _own_command(*args: str) -> str:
    """The line that runs this program again with other arguments."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return shlex.join([sys.executable, "-m", "feature_gan_kd", *args])
    found = name != "feature-gan-kd" or shutil.which(name) == sys.argv[0]
    return shlex.join(["feature-gan-kd" if found else sys.argv[0], *args])


def _resume_command() -> str:
    """The line that lets the present run go on."""
    return _own_command(*(arg for arg in _typed.get() if arg not in ("--resume", "--no-resume")), "--resume")


def _speaks() -> bool:
    """Whether this is the one process of a launch that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def _first_to_say(line: str) -> bool:
    """Whether no other process of the same launch has said this: most mistakes are found by all of them."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from feature_gan_kd.processes import first_to_say

    return first_to_say(line)


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of this package as one line, printed once; those of others with their origin."""
    if not Path(filename).is_relative_to(Path(__file__).parent):
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"feature-gan-kd: warning: {' '.join(str(message).split())}\n" if _speaks() else ""


def _parse(args: list[str]) -> Callable[[], None]:
    """The command with its options, ready to run."""
    from feature_gan_kd import __version__

    if args == ["--version"]:
        return functools.partial(print, __version__)
    name = args[0] if args else ""
    if name not in COMMANDS and name not in ("-h", "--help"):
        wrong = f"{name!r} is not allowed" if name else "none is named"
        raise UserError(f"command: {wrong}, expected {', '.join(COMMANDS)} or --help")
    for before, arg in itertools.pairwise(args):
        # Most often an unset variable of the shell; as a path it would mean the present folder.
        if re.fullmatch("(--[^=]+=)?", arg):
            raise UserError(f"{arg.rstrip('=') or before}: its value is empty")
    given = args[1:]
    if name == "train" and not {"--models", "--data"} & {arg.split("=")[0] for arg in args}:
        args = [name, *DEMO, *given]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {key: _deferred(function) for key, function in COMMANDS.items()}, prog="feature-gan-kd", args=args
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_own_message(stop) or mistake(name, COMMANDS[name], given)) from None
    return command


def _deferred(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same signature, but what it gives is the call: errors of parsing and of running stay apart."""

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(function, *args, **kwargs)

    return bind


def _own_message(stop: SystemExit) -> str | None:
    """The message of the `UserError` that made tyro stop, such as that of a setting outside its bounds."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, UserError):
        error = error.__context__
    return None if error is None else str(error)


def _as_option(message: str) -> str:
    """A line that begins with a setting's name begins with its option instead."""
    name, colon, rest = message.partition(":")
    known = {spec.name for cls in (DistillConfig, Networks, Run) for spec in dataclasses.fields(cls)}
    return f"{option(name)}:{rest}" if colon and name in known else message


def _build(networks: Networks, config: DistillConfig) -> OnlineAdversarialDistiller:
    from feature_gan_kd.data import count_classes
    from feature_gan_kd.distiller import OnlineAdversarialDistiller

    return OnlineAdversarialDistiller(
        _peers(networks),
        num_classes=count_classes(networks.data, config) if networks.num_classes is None else networks.num_classes,
        in_chans=networks.in_chans,
        pretrained=networks.pretrained,
        feature_layers=_layers(networks),
        topology=networks.topology,
        frozen=networks.frozen,
        config=config,
    )


def _peers(networks: Networks) -> tuple[str, ...]:
    if len(networks.models) < 2:
        raise UserError(f"models: {len(networks.models)} named, at least 2 are needed: name a network and its peer")
    return networks.models


def _layers(networks: Networks) -> list[str | int] | dict[int, list[str | int]] | None:
    """The layers as the distiller takes them; `K:LAYER` is for network K alone."""
    common: list[str | int] = []
    own: dict[int, list[str | int]] = {}
    for word in networks.feature_layers:
        network, colon, layer = word.rpartition(":")
        target = own.setdefault(int(network), []) if colon and network.isdigit() else common
        target.append(int(layer) if re.fullmatch(r"-?\d+", layer) else layer)
    if own and common:
        raise UserError(f"feature_layers: {common[0]!r} is for all networks and others for one: say all as K:LAYER")
    return own or common or None


def _restored(run: Path) -> OnlineAdversarialDistiller:
    from feature_gan_kd.checkpoint import newest_good
    from feature_gan_kd.distiller import OnlineAdversarialDistiller

    found = newest_good(run / "checkpoints", None)
    if found is None:
        raise UserError(f"run: there is no checkpoint in {run / 'checkpoints'}: name the folder of a run")
    return OnlineAdversarialDistiller.from_checkpoint(found[0])
