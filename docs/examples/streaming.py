"""A streamed data set: nothing is copied to the disk, and no images are held in memory.

`datasets.load_dataset(NAME, streaming=True)` opens a data set of the hub; the setting `streaming=True` does the same.
This file first writes the bundled digits as four files, the shards of the stream. With several processes (`accelerate
launch`, as in several_processes.py) each process reads its own shards. A stopped run resumes with the next image. The
images before it in that epoch are read again, but not decoded.
"""

import signal
from pathlib import Path

import datasets

import feature_gan_kd
from feature_gan_kd import Callback, History, Interrupted, OnlineAdversarialDistiller

bundled = Path(feature_gan_kd.__file__).parent / "data" / "bundled" / "digits.parquet"
digits = datasets.load_dataset("parquet", data_files=str(bundled), split="train")
train, test = digits.select(range(256)), digits.select(range(1600, 1700))
Path("digits").mkdir(exist_ok=True)
for number in range(4):
    train.shard(4, number).to_parquet(f"digits/train-{number}-of-4.parquet")
test.to_parquet("digits/test-0-of-1.parquet")

stream = datasets.load_dataset("digits", streaming=True)
print(stream["train"].num_shards, "shards")


class Stop(Callback):
    """Sends SIGTERM, as a scheduler does, in the middle of the second epoch."""

    def on_step(self, step: int) -> None:
        """After every update."""
        if step == 6:
            signal.raise_signal(signal.SIGTERM)


def run(*callbacks: Callback) -> History:
    """Starts the run, or resumes it."""
    # Files do not say how many images they hold, so `max_train_samples` sets the length of an epoch. Data sets of the
    # hub do say it.
    distiller = OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"], num_classes=10, image_size=32, max_train_samples=256, max_eval_samples=100
    )
    return distiller.fit(stream, epochs=2, batch_size=64, output_dir="runs/streaming", resume=True, callbacks=callbacks)


try:
    run(Stop())
except Interrupted as stop:
    print(stop)
history = run()
print([record["images"] for record in history.epochs], history.last["ensemble"])
