"""Train two models together and publish them, in three lines. Without data, `fit` uses the bundled digits."""

from feature_gan_kd import OnlineAdversarialDistiller

distiller = OnlineAdversarialDistiller(["test_resnet", "test_vit"], num_classes=10, image_size=32)
history = distiller.fit(epochs=1, output_dir="runs/three-lines")
folders = distiller.save_pretrained("distilled")

print(history.last["accuracy"], history.last["ensemble"])
print(*folders, sep="\n")
