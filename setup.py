"""Packages the recipes of configs/ as googlenet_jax.configs; all else is in pyproject.toml, which
has no words for both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["googlenet_jax*"]), "googlenet_jax.configs"],
    package_dir={"googlenet_jax.configs": "configs"},
)
