"""A frozen teacher: it is trained first, then only teaches."""

import torch

from feature_gan_kd import OnlineAdversarialDistiller

# Any trained model will do; here one is trained without a lesson.
first = OnlineAdversarialDistiller(
    ["test_resnet", "test_resnet"], num_classes=10, image_size=32, max_train_samples=256, method="vanilla"
)
first.fit(epochs=1)
teacher = first.models[0]
before = {key: value.clone() for key, value in teacher.state_dict().items()}

distiller = OnlineAdversarialDistiller(
    [teacher, "test_vit"], num_classes=10, image_size=32, max_train_samples=256, frozen=[0]
)
print(*distiller.edges)  # the edge that would teach the teacher is left out
distiller.fit(epochs=1, output_dir="runs/student")
print(all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items()))
