"""`python -m feature_gan_kd`, so that `accelerate launch -m feature_gan_kd train ...` works."""

from feature_gan_kd.cli import main

if __name__ == "__main__":
    main()
