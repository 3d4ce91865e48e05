"""What pyproject.toml has no words for: the configs of configs/ are packaged as
googlenet_jax.configs, and the long description is the README without links into the repository,
which lead nowhere elsewhere.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup


def long_description() -> str:
    """The README; of a link to a file of the repository its text stays, of a picture nothing."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


setup(
    packages=[*find_packages(include=["googlenet_jax*"]), "googlenet_jax.configs"],
    package_dir={"googlenet_jax.configs": "configs"},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
