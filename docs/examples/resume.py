"""A run that is stopped goes on to the very same weights."""

import signal

import torch

from feature_gan_kd import Callback, Interrupted, OnlineAdversarialDistiller


class Stop(Callback):
    """Sends SIGTERM, as a scheduler does, after some update: here in the middle of the second epoch."""

    def on_step(self, step: int) -> None:
        """After every update."""
        if step == 4:
            signal.raise_signal(signal.SIGTERM)


def build() -> OnlineAdversarialDistiller:
    """The same models and settings each time."""
    return OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"], num_classes=10, image_size=32, max_train_samples=96, batch_size=32, epochs=2
    )


try:
    build().fit(output_dir="runs/stopped", callbacks=[Stop()])
except Interrupted as stop:  # a KeyboardInterrupt; the command line ends with 128 + its signal
    print(stop)

resumed = build()
resumed.fit(output_dir="runs/stopped", resume=True)
undisturbed = build()
undisturbed.fit(output_dir="runs/undisturbed")
pairs = zip(resumed.models, undisturbed.models, strict=True)
print(all(torch.equal(a, b) for one, other in pairs for a, b in zip(one.parameters(), other.parameters(), strict=True)))
