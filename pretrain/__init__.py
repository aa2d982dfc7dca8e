"""Momentum Contrast pre-training (MoCo, He et al., CVPR 2020; MoCo v2, Chen et al., 2020)."""

__version__ = "0.1.0"
