"""Where backbones come from: names, folders, hub ids, and the converted copy of a packaged one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from transformers import AutoTokenizer

from datamodules.contract.errors import InputError
from datamodules.sources import pretrained
from datamodules.sources.kinds import PackageArchive
from datamodules.sources.pretrained import (
    PackagedBackbone,
    check_backbone_name,
    context_length,
    load_tokenizer,
    pretrained_folder,
)

# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("smollm2-135m", "smollm2-135m-instruct"),
        ("SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("all-minilm", "all-minilm-l6-v2"),
        ("/no/such/folder", None),
        ("./owner/name", None),
        ("../name", None),
        ("~nobody-of-that-name/model", None),
        ("owner/", None),
        ("@main", None),
        ("x" * 5000, None),
        ("a\0b", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str | None) -> None:
    for use in (check_backbone_name, pretrained_folder, load_tokenizer, context_length):
        with pytest.raises(InputError, match="no backbone .* the nearest packaged one is") as error:
            use(name)
        assert nearest is None or str(error.value).endswith(repr(nearest))
        assert "\n" not in str(error.value)


def test_packaged_names_and_hub_ids_are_taken_without_fetching() -> None:
    for name in (*pretrained.PACKAGED, "HuggingFaceTB/SmolLM2-135M-Instruct", "owner/name@v1.0"):
        check_backbone_name(name)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"backbone folder .* holds no config\.json"):
        pretrained_folder(str(tmp_path))


def test_a_folder_is_itself(tiny_causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_causal.parent))

    assert pretrained_folder(str(tiny_causal)) == tiny_causal
    assert pretrained_folder(f"~/{tiny_causal.name}") == tiny_causal


def test_a_hub_id_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(InputError, match="cannot get owner/name@v1 from the Hugging Face hub: ") as error:
        pretrained_folder("owner/name@v1")

    assert "\n" not in str(error.value)


# --- tokenizer and context ------------------------------------------------------------------------------------------


def test_the_tokenizer_is_fast_and_can_pad(tiny_causal: Path, tiny_encoder: Path) -> None:
    for folder in (tiny_causal, tiny_encoder):
        tokenizer = load_tokenizer(str(folder))
        assert tokenizer.is_fast
        assert tokenizer.pad_token_id is not None
        assert context_length(str(folder)) == 512


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "bart", "max_position_embeddings": 1024, "pad_token_id": 1}, 1024),
        ({"model_type": "t5", "n_positions": 512}, 512),
    ],
)
def test_positions_that_no_token_may_have_do_not_count(tmp_path: Path, config: dict[str, Any], context: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(str(tmp_path)) == context


def copy_of(folder: Path, target: Path, change: Callable[[Any], None]) -> str:
    """A copy of a backbone folder whose tokenizer was changed."""
    shutil.copytree(folder, target)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(target)
    return str(target)


@pytest.mark.parametrize("added", [0, 1, 3])
def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_refused(
    added: int, tiny_causal: Path, tmp_path: Path
) -> None:
    """As where item tokens were added and the model was saved without resizing its embeddings."""
    shutil.copytree(tiny_causal, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = len(tokenizer)
    tokenizer.add_tokens([f"<item_{number}>" for number in range(added)])
    tokenizer.save_pretrained(tmp_path)
    if not added:
        load_tokenizer(str(tmp_path))
        return
    with pytest.raises(InputError, match=f"{rows + added} token ids and the model {rows} embeddings"):
        load_tokenizer(str(tmp_path))


def test_without_a_padding_token_the_end_token_pads(tiny_causal: Path, tmp_path: Path) -> None:
    name = copy_of(tiny_causal, tmp_path / "copy", lambda t: setattr(t, "pad_token", None))

    tokenizer = load_tokenizer(name)

    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_without_padding_and_end_token_it_is_refused(tiny_causal: Path, tmp_path: Path) -> None:
    def strip(tokenizer: Any) -> None:
        tokenizer.pad_token = tokenizer.eos_token = None

    with pytest.raises(InputError, match="neither a padding nor an end token"):
        load_tokenizer(copy_of(tiny_causal, tmp_path / "copy", strip))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"config.json": '{"model_type": "llama"}'},
        {"config.json": '{"model_type": "gpt2"}'},  # of which transformers makes a tokenizer without any token
        {"config.json": '{"model_type": "bert"}'},
        {"config.json": '{"model_type": "llama"}', "tokenizer.json": "garbage"},
        {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{}"},
        {"config.json": "garbage"},
        {"config.json": "[]"},
    ],
    ids=["empty", "llama", "gpt2", "bert", "garbage tokenizer", "empty tokenizer", "garbage config", "list"],
)
def test_a_missing_or_broken_tokenizer_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    with pytest.raises(InputError, match="has no usable tokenizer in") as error:
        load_tokenizer(str(tmp_path))

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_seq_len": 77, "hidden_size": 8}, 77),
        ({"max_position_embeddings": None, "n_positions": 5}, 5),
        ({}, 10**9),
    ],
)
def test_the_context_is_read_from_the_configuration(config: dict[str, Any], length: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert context_length(str(tmp_path)) == length


@pytest.mark.parametrize("content", ["garbage", "[]"])
def test_a_broken_configuration_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(InputError, match=r"config\.json"):
        context_length(str(tmp_path))


# --- packaged backbones ---------------------------------------------------------------------------------------------


@dataclass
class Conversion:
    """Stands in for the package and for the conversion of its weights, and counts."""

    package: Path
    fetched: int = 0
    converted: int = 0
    fails: bool = False
    seen: list[tuple[Path, str]] = field(default_factory=list)

    def fetch(self, source: Any) -> Path:
        self.fetched += 1
        return self.package

    def convert(self, source: Path, filename: str, target: Path) -> None:
        self.converted += 1
        self.seen.append((source, filename))
        (target / "config.json").write_text('{"max_position_embeddings": 64}')
        if self.fails:
            raise InputError("no room")
        (target / "model.safetensors").write_bytes(b"weights")


@pytest.fixture
def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "tiny.gguf").write_bytes(b"gguf")
    fake = Conversion(package)
    archive = PackageArchive("tiny", "1.0", "tiny-1.0-py3-none-any.whl", "ab" * 32, members=("tiny/*",))
    monkeypatch.setitem(pretrained.PACKAGED, "tiny", PackagedBackbone(archive, gguf="tiny.gguf", licence="MIT"))
    monkeypatch.setitem(pretrained.PACKAGED, "plain", PackagedBackbone(archive, gguf="", licence="MIT"))
    monkeypatch.setattr(pretrained, "fetch", fake.fetch)
    monkeypatch.setattr(pretrained, "_convert_gguf", fake.convert)
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))
    return fake


def test_a_packaged_backbone_is_converted_once(conversion: Conversion) -> None:
    folder = pretrained_folder("tiny")

    assert conversion.seen == [(conversion.package / "inner", "tiny.gguf")]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert context_length("tiny") == 64
    assert pretrained_folder("tiny") == folder
    assert (conversion.fetched, conversion.converted) == (1, 1)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half made stays behind


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"w3ights"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text(""),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text("[1]"),
        lambda folder: (folder / "manifest.json").write_text('{"model.safetensors": 7}'),
    ],
    ids=["changed", "removed", "no manifest", "blank manifest", "empty manifest", "list", "wrong sum"],
)
def test_a_damaged_copy_is_noticed_and_made_again(
    conversion: Conversion, damage: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pretrained_folder("tiny")
    damage(folder)

    assert pretrained_folder("tiny") == folder

    assert capsys.readouterr().err == f"instructrec: {folder} is damaged; converting tiny again\n"
    assert conversion.converted == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert pretrained_folder("tiny") == folder
    assert conversion.converted == 2


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, PackagedBackbone], None]] = {
    "archive": lambda patch, tiny: patch.setitem(
        pretrained.PACKAGED, "tiny", replace(tiny, archive=replace(tiny.archive, sha256="cd" * 32))
    ),
    "file": lambda patch, tiny: patch.setitem(pretrained.PACKAGED, "tiny", replace(tiny, gguf="other.gguf")),
    "code": lambda patch, tiny: patch.setattr(pretrained, "_convert_gguf", other_conversion),
    **{
        name: lambda patch, tiny, name=name: patch.setattr(  # type: ignore[misc]
            pretrained, "version", lambda library: "0.0.0" if library == name else version(library)
        )
        for name in ("transformers", "gguf", "safetensors")
    },
}


def other_conversion(source: Path, filename: str, target: Path) -> None:
    (target / "model.safetensors").write_bytes(b"other weights")


@pytest.mark.parametrize("field", CHANGES)
def test_whatever_decides_a_conversion_makes_a_new_one(
    conversion: Conversion, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (conversion.package / "inner" / "other.gguf").write_bytes(b"gguf")
    before = pretrained_folder("tiny")
    assert pretrained_folder("tiny") == before
    CHANGES[field](monkeypatch, pretrained.PACKAGED["tiny"])

    after = pretrained_folder("tiny")

    assert after != before
    assert conversion.converted == (1 if field == "code" else 2)
    assert (before / "model.safetensors").read_bytes() == b"weights"


CONVERT = """
import fcntl, sys, time
from pathlib import Path
sys.path.append({root!r})
from datamodules.sources import pretrained
from datamodules.sources.kinds import PackageArchive
fcntl.flock = fcntl.lockf = lambda *a: None  # as on file systems where locks do nothing
archive = PackageArchive("tiny", "1.0", "tiny-1.0-py3-none-any.whl", "ab" * 32, members=("tiny/*",))
pretrained.PACKAGED["tiny"] = pretrained.PackagedBackbone(archive, gguf="tiny.gguf", licence="MIT")
pretrained.fetch = lambda source: Path({package!r})
def convert(source, filename, target):
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes(b"half")
        time.sleep(0.1)
        (target / name).write_bytes(b"weights")
pretrained._convert_gguf = convert
pretrained._conversion_key = lambda packaged: "00000000"
folder = pretrained.pretrained_folder("tiny")
print(folder, (folder / "model.safetensors").read_text())
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_eight_processes_that_convert_agree_without_locks(
    conversion: Conversion, tmp_path: Path, damaged: bool
) -> None:
    code = CONVERT.format(root=str(Path(__file__).parents[3]), package=str(conversion.package))

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    if damaged:
        out, _ = start().communicate()
        (Path(out.split()[0]) / "model.safetensors").write_bytes(b"w3ights")
    children = [start() for _ in range(8)]
    answers = [child.communicate(timeout=120) for child in children]

    assert [child.returncode for child in children] == [0] * 8, answers
    [answer] = {out for out, _ in answers}
    assert answer.endswith(" weights\n")
    folder = Path(answer.split()[0])
    assert list(folder.parent.iterdir()) == [folder]  # no partial folder stays


def test_a_slower_process_leaves_a_whole_folder_alone(conversion: Conversion, tmp_path: Path) -> None:
    folder = pretrained_folder("tiny")
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    fresh = Path(shutil.copytree(folder, tmp_path / "fresh"))
    pretrained._place(fresh, folder)
    assert {file.name: file.stat().st_ino for file in folder.iterdir()} == before


def test_what_a_killed_conversion_left_is_removed(conversion: Conversion) -> None:
    folder = pretrained_folder("tiny")
    left = folder.with_name(f"{folder.name}.free.1.0.tmp")
    shutil.move(folder, left)

    assert pretrained_folder("tiny") == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_without_room_is_one_line(
    conversion: Conversion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "_convert_gguf", full)
    with pytest.raises(InputError, match=r"cannot keep the converted tiny in .*: No space left on device; make room"):
        pretrained_folder("tiny")
    assert list((tmp_path / "cache" / "pretrained").iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing_behind(conversion: Conversion, tmp_path: Path) -> None:
    conversion.fails = True
    with pytest.raises(InputError, match="no room"):
        pretrained_folder("tiny")
    assert list((tmp_path / "cache" / "pretrained").iterdir()) == []

    conversion.fails = False
    assert (pretrained_folder("tiny") / "model.safetensors").is_file()


def test_a_package_without_the_weights_is_refused(conversion: Conversion) -> None:
    (conversion.package / "inner" / "tiny.gguf").unlink()

    with pytest.raises(InputError, match=r"holds no tiny\.gguf"):
        pretrained_folder("tiny")


def test_a_packaged_model_folder_is_used_as_it_is(conversion: Conversion) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        pretrained_folder("plain")
    (conversion.package / "inner" / "config.json").write_text("{}")

    assert pretrained_folder("plain") == conversion.package / "inner"
    assert conversion.converted == 0


def test_converted_backbones_keep_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A touched character of `_convert_gguf` would have every user's backbone converted again."""
    monkeypatch.setattr(pretrained, "version", lambda library: "1.0")
    assert pretrained._conversion_key("model.gguf") == "6656a3a1"
