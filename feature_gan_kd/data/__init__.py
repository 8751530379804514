"""Data sets of any origin as normalised batches: order and augmentation depend on (seed, epoch, image) alone."""

from feature_gan_kd.data.batches import ImageSource as ImageSource
from feature_gan_kd.data.mixing import Mixing as Mixing
from feature_gan_kd.data.mixing import mixing_of as mixing_of
from feature_gan_kd.data.open import Data as Data
from feature_gan_kd.data.open import count_classes as count_classes
from feature_gan_kd.data.open import open_data as open_data
from feature_gan_kd.data.open import open_evaluation as open_evaluation
