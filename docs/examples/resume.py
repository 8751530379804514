"""A stopped run resumes and ends with the same weights as a run that was never stopped."""

import signal

import torch

from feature_gan_kd import Callback, Interrupted, OnlineAdversarialDistiller


class Stop(Callback):
    """Sends SIGTERM, as a scheduler does, in the middle of the second epoch."""

    def on_step(self, step: int) -> None:
        """After every update."""
        if step == 4:
            signal.raise_signal(signal.SIGTERM)


def build() -> OnlineAdversarialDistiller:
    """Builds the same models with the same settings each time."""
    return OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"], num_classes=10, image_size=32, max_train_samples=96, batch_size=32, epochs=2
    )


try:
    build().fit(output_dir="runs/stopped", callbacks=[Stop()])
except Interrupted as stop:  # a KeyboardInterrupt; the command line exits with 128 + the signal's number
    print(stop)

resumed = build()
resumed.fit(output_dir="runs/stopped", resume=True)
uninterrupted = build()
uninterrupted.fit(output_dir="runs/uninterrupted")
pairs = zip(resumed.models, uninterrupted.models, strict=True)
print(all(torch.equal(a, b) for one, other in pairs for a, b in zip(one.parameters(), other.parameters(), strict=True)))
