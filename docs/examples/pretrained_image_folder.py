"""Two pretrained models learn from each other on your own image folder, and are published.

An image folder is `FOLDER/train/CLASS/*.png` and, if you have images to evaluate on, `FOLDER/test/CLASS/*.png`.
The first part of this file only prepares an example: it draws such a folder, and trains two small models on the bundled
digits as pretrained models. With your own images and models of the hub you need only the second part.
"""

from pathlib import Path

import numpy as np
import timm
from PIL import Image, ImageDraw

from feature_gan_kd import OnlineAdversarialDistiller

# Part 1: draw a folder of circles, squares and lines.
rng = np.random.default_rng(0)
for split, count in (("train", 24), ("test", 8)):
    for shape in ("circle", "line", "square"):
        for number in range(count):
            image = Image.new("RGB", (40, 40), tuple(rng.integers(0, 100, 3).tolist()))
            x, y = rng.integers(2, 16, 2).tolist()
            box, color = (x, y, x + 20, y + 20), tuple(rng.integers(150, 255, 3).tolist())
            draw = ImageDraw.Draw(image)
            {"circle": draw.ellipse, "line": draw.line, "square": draw.rectangle}[shape](box, fill=color)
            path = Path("shapes", split, shape, f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)

# Train two models and publish them as folders.
first = OnlineAdversarialDistiller(["test_resnet", "test_vit"], num_classes=10, image_size=32, lr=0.02)
first.fit(epochs=1)
teachers = first.save_pretrained("pretrained", license="cc-by-4.0")

# Part 2: start from their weights, with a new classifier for the classes of the folder. `hf-hub:owner/name` loads a
# model of the hub, and a plain timm name loads timm's weights.
distiller = OnlineAdversarialDistiller(
    [f"local-dir:{folder}" for folder in teachers], num_classes=3, pretrained=True, batch_size=24, lr=0.02
)
history = distiller.fit("shapes", epochs=3, output_dir="runs/shapes")
published = distiller.save_pretrained("published")

# Plain timm loads the result.
model = timm.create_model(f"local-dir:{published[0]}", pretrained=True)
print(history.last["accuracy"], model.num_classes, model.pretrained_cfg["label_names"])
