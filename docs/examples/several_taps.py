"""Maps taken at several layers: each edge then has a discriminator per layer."""

from feature_gan_kd import OnlineAdversarialDistiller

# For every model: stages by number, -1 the last. `distiller.summary()` or `feature-gan-kd inspect` show the outcome.
distiller = OnlineAdversarialDistiller(
    ["test_resnet", "test_efficientnet"],
    num_classes=10,
    image_size=32,
    feature_layers=[-2, -1],
    max_train_samples=128,
)
print(distiller.summary())
distiller.fit(epochs=1, output_dir="runs/taps")

# For each model its own: layers by the names of `named_modules()`, or stages; as many for each.
named = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit"], num_classes=10, image_size=32, feature_layers={0: ["layer3", "layer4"], 1: [3, -1]}
)
print(named.summary())
