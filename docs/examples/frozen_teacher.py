"""A frozen teacher: a trained model teaches a student and does not change."""

import torch

from feature_gan_kd import OnlineAdversarialDistiller

# The teacher can be any trained model, for example `local-dir:FOLDER` or `hf-hub:OWNER/NAME`. Here it is trained first,
# with `method="vanilla"`: each model learns alone.
first = OnlineAdversarialDistiller(
    ["test_resnet", "test_resnet"], num_classes=10, image_size=32, max_train_samples=256, method="vanilla"
)
first.fit(epochs=1)
teacher = first.models[0]
before = {key: value.clone() for key, value in teacher.state_dict().items()}

distiller = OnlineAdversarialDistiller(
    [teacher, "test_vit"], num_classes=10, image_size=32, max_train_samples=256, frozen=[0]
)
print(*distiller.edges)  # one edge: the teacher (0) teaches the student (1)
distiller.fit(epochs=1, output_dir="runs/student")
# The teacher has not changed.
print(all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items()))
