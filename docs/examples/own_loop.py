"""A training loop of one's own: `training_step` is the whole update of models, discriminators and transfer layers."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from feature_gan_kd import OnlineAdversarialDistiller

torch.manual_seed(0)
data = TensorDataset(torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,)))
distiller = OnlineAdversarialDistiller(["test_resnet", "test_vit"], num_classes=10, image_size=32, lr=0.01)

for epoch in range(3):
    for images, labels in DataLoader(data, batch_size=32, shuffle=True):
        metrics = distiller.training_step(images, labels)  # tensors on the device: reading them waits for it
    print(epoch, {name: round(float(value), 3) for name, value in metrics.items()})

# The models are plain modules: evaluate, save or schedule them as you are used to. Learning rates are those of
# `distiller.step.updates[KIND].optimizer`; `fit` schedules them, a loop of one's own has to.
with torch.no_grad():
    logits = distiller.models[0].eval()(data.tensors[0])
print(logits.shape)
