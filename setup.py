"""The pages of experiments/ in the wheel, as jaxalign/experiments; pyproject.toml has the rest."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["jaxalign*"]), "jaxalign.experiments"],
    package_dir={"jaxalign.experiments": "experiments"},
)
