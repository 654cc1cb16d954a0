"""Maps `configs/` into the package, which pyproject.toml cannot say beside `packages.find`; all else stands there."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["recmodels*", "datamodules*", "callbacks*", "benchmarks*"]),
        "benchmarks.configs",
    ],
    package_dir={"benchmarks.configs": "configs"},
)
