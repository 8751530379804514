"""Data sets from any source as normalised batches; order and augmentation depend only on (seed, epoch, image)."""

from feature_gan_kd.data.augmentation import check_auto_augment as check_auto_augment
from feature_gan_kd.data.augmentation import evaluation_crop_pct as evaluation_crop_pct
from feature_gan_kd.data.batches import ImageSource as ImageSource
from feature_gan_kd.data.batches import evaluation_batches as evaluation_batches
from feature_gan_kd.data.class_weights import class_weights as class_weights
from feature_gan_kd.data.draws import draw_fifth as draw_fifth
from feature_gan_kd.data.image_transforms import OwnTransform as OwnTransform
from feature_gan_kd.data.mixing import MixupCutmix as MixupCutmix
from feature_gan_kd.data.mixing import build_mixup_cutmix as build_mixup_cutmix
from feature_gan_kd.data.open import Data as Data
from feature_gan_kd.data.open import count_classes as count_classes
from feature_gan_kd.data.open import open_data as open_data
from feature_gan_kd.data.open_evaluation import open_evaluation as open_evaluation
