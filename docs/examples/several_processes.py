"""One run on several GPUs: the same script, started by Accelerate.

accelerate launch --multi_gpu --num_processes 2 several_processes.py

`batch_size` counts the images of one update over all processes. With more processes each one takes a smaller share, and
the losses and weights stay the same, up to rounding.
"""

import torch

from feature_gan_kd import OnlineAdversarialDistiller

distiller = OnlineAdversarialDistiller(
    ["test_resnet", "test_vit"],
    num_classes=10,
    image_size=32,
    max_train_samples=128,
    sync_batchnorm=True,  # batch normalisation uses the statistics of the whole batch
)
history = distiller.fit(epochs=1, batch_size=64, output_dir="runs/several-processes")

accelerator = distiller.accelerator
weights = torch.stack([parameter.detach().double().sum() for parameter in distiller.models[0].parameters()])
print(f"process {accelerator.process_index} of {accelerator.num_processes}: weights add up to {weights.sum():.9f}")
if accelerator.is_main_process:
    print("top-1 %:", *history.last["accuracy"])
accelerator.end_training()
