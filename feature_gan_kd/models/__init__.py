"""The CIFAR models of the literature as timm models.

Importing this package registers `cifar_resnet{14,20,32,56,110}` and `cifar_wrn_{16_2,28_2,28_4,40_2}` with timm,
so that `timm.create_model("cifar_resnet20")` finds them. Registration at import is timm's own mechanism and
the only import side effect of the project.
"""

from feature_gan_kd.models.cifar_resnet import CifarResNet
from feature_gan_kd.models.cifar_wrn import CifarWideResNet

__all__ = ["CifarResNet", "CifarWideResNet"]
