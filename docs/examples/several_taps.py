"""Feature maps of several layers: each edge has one discriminator per layer."""

from feature_gan_kd import OnlineAdversarialDistiller

# The same stages in every model, by number; -1 is the last. `distiller.summary()` and `feature-gan-kd inspect` show the
# result.
distiller = OnlineAdversarialDistiller(
    ["test_resnet", "test_efficientnet"],
    num_classes=10,
    image_size=32,
    feature_layers=[-2, -1],
    max_train_samples=128,
)
print(distiller.summary())
distiller.fit(epochs=1, output_dir="runs/taps")

# Different layers for each model: names from `named_modules()`, or stage numbers. Each model needs the same number.
named = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit"], num_classes=10, image_size=32, feature_layers={0: ["layer3", "layer4"], 1: [3, -1]}
)
print(named.summary())
