"""`feature-gan-kd embed`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from feature_gan_kd.cli.model_options import layer_of
from feature_gan_kd.cli.output_file import check_output_file
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.image_files import list_images
from feature_gan_kd.utils.imports import imports_without_collection

if TYPE_CHECKING:
    from accelerate import Accelerator

    from feature_gan_kd.analysis.features import FeatureExtractor
    from feature_gan_kd.export.preprocessing import Preprocessing

ENDINGS = (".safetensors", ".npy", ".parquet")


def embed(
    model: str,
    image: Path,
    images: tuple[Path, ...] = (),
    /,
    *,
    output: Annotated[Path, "-o"],
    layer: str | None = None,
    batch_size: int = 32,
    skip_bad_images: bool = False,
) -> None:
    """Write the features of images, a vector for each, to a file.

    Args:
        model: Folder of a published model; or the name of a trained model, hf-hub:owner/name or timm's, with or without
            a classifier. A folder goes before a timm name; a leading local-dir: is ignored.
        image: Image file, or a folder of them.
        images: More image files or folders.
        output: File to write, which ends in .safetensors, .npy or .parquet.
        layer: Layer whose output is taken, a map averaged over its positions: a module's name, or the number of a timm
            stage (default: the vector before the classifier).
        batch_size: Images at once in each process.
        skip_bad_images: Leave out images that cannot be decoded.
    """
    if output.suffix not in ENDINGS:
        raise UserError(f"--output: {output} is of no known kind, expected a name that ends in {', '.join(ENDINGS)}")
    if batch_size < 1:
        raise UserError(f"--batch-size: {batch_size} is not allowed, expected a whole number of at least 1")
    paths, notes = list_images([image, *images])
    check_output_file("--output", output, paths)
    with imports_without_collection():
        import numpy as np

        from feature_gan_kd.analysis.features import FeatureExtractor
        from feature_gan_kd.distributed.collectives import on_main_process
        from feature_gan_kd.distributed.launch import usable_accelerator
        from feature_gan_kd.export.feature_file import write_features
        from feature_gan_kd.export.open_model import open_model
        from feature_gan_kd.export.preprocessing import Preprocessing, skipped_note

    found = open_model(model, graphs=False)
    preprocess = Preprocessing(found)
    accelerator = usable_accelerator()
    named = None if layer is None else layer_of(layer)
    extractor = FeatureExtractor(found.module.to(accelerator.device), model, preprocess.input_size, named)
    if notes and accelerator.is_main_process:
        print(*notes, sep="\n", file=sys.stderr)
    rows, bad = _embed(extractor, preprocess, _batches(paths, batch_size), accelerator, skip=skip_bad_images)
    if not rows:
        raise UserError(f"image: none of the {len(paths)} images can be decoded: name others")
    names = [str(paths[k]) for k in rows]
    about = {"model": model, "layer": "before the classifier" if layer is None else layer}
    on_main_process(lambda: write_features(output, names, np.stack(list(rows.values())), about))
    if accelerator.is_main_process:
        if bad:
            print(skipped_note(bad), file=sys.stderr)
        print(f"{output}: {len(rows)} images, {extractor.size} features each")
    # Processes that leave while others still talk to them may abort.
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _batches(paths: Sequence[Path], size: int) -> list[dict[int, Path]]:
    """The images in batches, by their positions."""
    numbered = list(enumerate(paths))
    return [dict(numbered[first : first + size]) for first in range(0, len(numbered), size)]


def _embed(
    extractor: FeatureExtractor,
    preprocess: Preprocessing,
    batches: Sequence[dict[int, Path]],
    accelerator: Accelerator,
    *,
    skip: bool,
) -> tuple[dict[int, Any], list[Path]]:
    """The features of each image by its position, on every process, and the files that were left out.

    Whole batches are dealt to the processes in turn: each holds the same images however many processes there are, so
    its features are the same to the last bit.
    """
    from tqdm import tqdm

    from feature_gan_kd.distributed.collectives import gather
    from feature_gan_kd.export.preprocessing import read_images

    rows: dict[int, Any] = {}
    bad: list[Path] = []
    processes, place = accelerator.num_processes, accelerator.process_index

    def share(batch: dict[int, Path]) -> tuple[dict[int, Any], list[Path]]:
        read, skipped = read_images(batch, preprocess.channels, skip=skip)
        if not read:
            return {}, skipped
        features = extractor(preprocess(list(read.values())).to(accelerator.device)).cpu().numpy()
        return dict(zip(read, features, strict=True)), skipped

    live = accelerator.is_main_process and sys.stderr.isatty()
    with tqdm(total=sum(map(len, batches)), unit="image", disable=not live, dynamic_ncols=True) as bar:
        for first in range(0, len(batches), processes):
            dealt = batches[first : first + processes]
            own = dealt[place] if place < len(dealt) else {}
            for features, skipped in gather(functools.partial(share, own)):
                rows.update(features)
                bad += skipped
            bar.update(sum(map(len, dealt)))
    return rows, bad
