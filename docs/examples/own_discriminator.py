"""Your own discriminator: any module that returns one answer in (0, 1) per map."""

from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller


class PatchDiscriminator(nn.Module):
    """Scores every position of the map and averages the scores."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 1), nn.Sigmoid())

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch,)."""
        return self.layers(maps).mean((1, 2, 3))


distiller = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit"],
    num_classes=10,
    image_size=32,
    max_train_samples=256,
    discriminator=lambda shape: PatchDiscriminator(shape[0]),  # called with (channels, height, width) of each map
)
print(distiller.discriminators)
history = distiller.fit(epochs=1, output_dir="runs/own-discriminator")
print({name: value for name, value in history.last["metrics"].items() if name.startswith(("real", "fake"))})
