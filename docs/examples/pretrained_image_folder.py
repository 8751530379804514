"""Two pretrained models learn from each other on an image folder of one's own, and are published.

An image folder is `FOLDER/train/CLASS/*.png` and, where there are images to test on, `FOLDER/test/CLASS/*.png`.
This file draws one, and trains two small models on the bundled digits to have pretrained ones; with your own images
and models of the hub the second part is all you need.
"""

from pathlib import Path

import numpy as np
import timm
from PIL import Image, ImageDraw

from feature_gan_kd import OnlineAdversarialDistiller

# A folder of images: circles, squares and lines of any colour.
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

# Two trained models, published as folders.
first = OnlineAdversarialDistiller(["test_resnet", "test_vit"], num_classes=10, image_size=32, lr=0.02)
first.fit(epochs=1)
teachers = first.save_pretrained("pretrained", license="cc-by-4.0")

# Their weights, with a new classifier for the folder's classes. `hf-hub:owner/name` takes a model of the hub, and a
# plain timm name its weights there.
distiller = OnlineAdversarialDistiller(
    [f"local-dir:{folder}" for folder in teachers], num_classes=3, pretrained=True, batch_size=24, lr=0.02
)
history = distiller.fit("shapes", epochs=3, output_dir="runs/shapes")
published = distiller.save_pretrained("published")

# What plain timm makes of the first of them.
model = timm.create_model(f"local-dir:{published[0]}", pretrained=True)
print(history.last["accuracy"], model.num_classes, model.pretrained_cfg["label_names"])
