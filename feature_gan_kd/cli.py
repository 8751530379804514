"""The command line: `feature-gan-kd train | evaluate | export | inspect`. Options come from the dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from feature_gan_kd.arguments import mistake, option
from feature_gan_kd.config import DistillConfig
from feature_gan_kd.errors import UserError
from feature_gan_kd.topology import TopologyName

if TYPE_CHECKING:
    from feature_gan_kd.distiller import OnlineAdversarialDistiller

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
        if run.license is None and not networks.pretrained:
            print(f"licence:  none stated; feature-gan-kd export {run.output_dir} FOLDER --license LICENCE states one")


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
    run: Positional[Path], /, data: str | None = None, eval_split: str | None = None, as_json: bool = False
) -> None:
    """Evaluate the networks of a run, and their ensemble, as its newest checkpoint has them.

    Args:
        run: Folder of the run.
        data: Images to evaluate on [those the run was evaluated on].
        eval_split: Split of them [the run's; of other data test, else validation].
        as_json: Print JSON.
    """
    distiller = _restored(run)
    if data is not None or eval_split is not None:
        distiller.config = distiller.config.replace(eval_split=eval_split)
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


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "inspect": inspect,
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without some character must not end a run
    try:
        _parse(list(sys.argv[1:] if args is None else args))()
    except UserError as error:
        print(f"feature-gan-kd: error: {_as_option(' '.join(str(error).splitlines()))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("feature-gan-kd: interrupted", file=sys.stderr)
        sys.exit(130)


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
