"""The paper's recipe, number by number."""

from __future__ import annotations

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.recipes import PAPER_STEPS


def test_the_papers_recipe() -> None:
    recipe = DistillConfig(recipe="paper")
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == ("momentum", 0.1, 0.9, 1e-4)
    assert (recipe.scheduler, recipe.milestones, recipe.warmup_fraction) == ("multistep", (150 / 300, 225 / 300), 0)
    assert (recipe.adversarial_optimizer, recipe.adversarial_lr, recipe.discriminator_lr) == ("adam", 2e-5, 2e-5)
    assert (recipe.adversarial_weight_decay, recipe.discriminator_weight_decay) == (0.1, 0.1)
    assert recipe.adversarial_milestones == (75 / 300, 150 / 300)
    assert PAPER_STEPS == 300 * 391
