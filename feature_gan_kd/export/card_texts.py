"""What a model card says of each method, and the papers that it cites."""

from __future__ import annotations

from feature_gan_kd.config.methods import MethodName

DESCRIPTIONS: dict[MethodName, str] = {
    "afd": "Each model learned from the labels and from the softened predictions of its source model (KL divergence), "
    "and its feature extractor learned to produce feature maps that a discriminator cannot tell from the source's. "
    "The discriminators are not part of these weights.",
    "logit": "Each model learned from the labels and from the softened predictions of its source model (KL divergence "
    "at a temperature). Feature maps were not compared.",
    "dml": "Each model learned from the labels and from the predictions of its source model (KL divergence at "
    "temperature 1). Feature maps were not compared.",
    "vanilla": "Each model learned from the labels alone, by cross-entropy. The models did not teach each other: "
    "this is the baseline of the methods in which they do.",
    "feature": "Each model learned from the labels, and its feature extractor learned to produce feature maps that a "
    "discriminator cannot tell from its source model's. Predictions were not compared, and the discriminators are not "
    "part of these weights.",
    "l1": "Each model learned from the labels and from the softened predictions of its source model (KL divergence), "
    "and minimised the mean absolute difference of their feature maps. No discriminator was used.",
    "l1-only": "Each model learned from the labels and minimised the mean absolute difference of its feature maps and "
    "its source model's. Predictions were not compared and no discriminator was used.",
    "l2": "Each model learned from the labels and from the softened predictions of its source model (KL divergence), "
    "and minimised the mean squared difference of their feature maps. No discriminator was used.",
    "l2-only": "Each model learned from the labels and minimised the mean squared difference of its feature maps and "
    "its source model's. Predictions were not compared and no discriminator was used.",
    "pooled": "Each model learned from the labels and from the softened predictions of its source model (KL "
    "divergence), and minimised the mean squared difference of their feature maps, averaged over positions. No "
    "discriminator was used.",
    "aligned": "Each model learned from the labels and from the softened predictions of its source model (KL "
    "divergence), and turned its feature map at each position into the direction of its source's. No discriminator was "
    "used.",
    "statistics": "Each model learned from the labels and from the softened predictions of its source model (KL "
    "divergence), and matched the means and deviations of its source's feature channels. No discriminator was used.",
    "relation": "Each model learned from the labels and from the softened predictions of its source model (KL "
    "divergence), and from how similar its source finds the images of a batch. No discriminator was used.",
    "zero-gradient": "Each model learned from the labels and from the softened predictions of its source model (KL "
    "divergence), and its feature extractor took Adam's steps on a zero gradient, so that only their weight decay "
    "acted. This is a control for adversarial distillation: no discriminator was used.",
}
AFD_CITATION = """@inproceedings{chung2020feature,
  title     = {Feature-map-level Online Adversarial Knowledge Distillation},
  author    = {Chung, Inseop and Park, SeongUk and Kim, Jangho and Kwak, Nojun},
  booktitle = {International Conference on Machine Learning},
  year      = {2020},
  note      = {arXiv:2002.01775}
}"""
DML_CITATION = """@inproceedings{zhang2018deep,
  title     = {Deep Mutual Learning},
  author    = {Zhang, Ying and Xiang, Tao and Hospedales, Timothy M. and Lu, Huchuan},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2018},
  note      = {arXiv:1706.00384}
}"""
