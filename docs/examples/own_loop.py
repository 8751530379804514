"""Your own training loop: `training_step` updates the models, the discriminators and the transfer layers."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from feature_gan_kd import OnlineAdversarialDistiller

torch.manual_seed(0)
pixels = torch.rand(64, 3, 32, 32)
data = TensorDataset((pixels - 0.5) / 0.25, torch.randint(0, 10, (64,)))
# `mean` and `std` say how the images were normalised.
distiller = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit"], num_classes=10, image_size=32, lr=0.01, mean=[0.5], std=[0.25]
)

for epoch in range(3):
    for images, labels in DataLoader(data, batch_size=32, shuffle=True):
        metrics = distiller.training_step(images, labels)  # tensors on the device: `float()` waits for it
    print(epoch, {name: round(float(value), 3) for name, value in metrics.items()})

# The models are plain modules: evaluate and save them as usual. In your own loop the learning rates stay as they are,
# unless you change them in the optimisers: `distiller.step.optimizer_groups[NAME].optimizer`, where NAME is `logit`,
# `feature` or `discriminator`. `fit` schedules them for you.
with torch.no_grad():
    logits = distiller.models[0].eval()(data.tensors[0])
print(logits.shape)
