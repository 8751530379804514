"""A discriminator of one's own: any module that gives each map one answer in (0, 1)."""

from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller


class PatchDiscriminator(nn.Module):
    """Judges every place of the map by itself and averages the answers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Conv2d(channels, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 1), nn.Sigmoid())

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch,)."""
        return self.judge(maps).mean((1, 2, 3))


distiller = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit"],
    num_classes=10,
    image_size=32,
    max_train_samples=256,
    discriminator=lambda shape: PatchDiscriminator(shape[0]),  # (channels, height, width) of an edge and tap
)
print(distiller.discriminators)
history = distiller.fit(epochs=1, output_dir="runs/own-discriminator")
print({name: value for name, value in history.last["metrics"].items() if name.startswith(("real", "fake"))})
