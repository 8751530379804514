"""Your own module learns together with a timm model."""

from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller


class SmallModel(nn.Module):
    """Any module that maps images to logits. Its last feature map before pooling is found automatically."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2)
        )
        self.classifier = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) to logits (batch, classes)."""
        return self.classifier(self.features(images).mean((2, 3)))


mine = SmallModel(10)
distiller = OnlineAdversarialDistiller([mine, "test_resnet"], num_classes=10, image_size=32, max_train_samples=256)
print(distiller.summary())
distiller.fit(epochs=1, output_dir="runs/own-module")

# `mine` itself is trained. It has no wrapper, no hook and no additional key in its state.
print(distiller.models[0] is mine, sorted(mine.state_dict())[:2])

# A checkpoint holds weights, not code: pass the module again when you load one.
distiller.save_checkpoint("checkpoint")
again = OnlineAdversarialDistiller.from_checkpoint("checkpoint", models=[SmallModel(10), distiller.models[1]])
