"""Three models in a cycle, the paper's topology: 0 teaches 1, 1 teaches 2, 2 teaches 0."""

from feature_gan_kd import OnlineAdversarialDistiller

distiller = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit", "test_efficientnet"],
    num_classes=10,
    image_size=32,
    topology="cycle",
    max_train_samples=128,
)
print(*distiller.edges)
history = distiller.fit(epochs=1, output_dir="runs/cycle")
print(history.last["accuracy"], history.last["ensemble"])

# Other topologies: "complete" (each model teaches all others), "star" (model 0 and each other model teach one another),
# or your own list of edges (source, learner).
explicit = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit", "test_efficientnet"],
    num_classes=10,
    image_size=32,
    topology=[(0, 1), (0, 2), (1, 0)],
)
print(explicit.summary())
