"""`instructrec annotate`: preferences and intentions put in words by a language model, once, into a file."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import requests

from benchmarks.grid.progress import counted
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import check_backbone_name, load_tokenizer, pretrained_folder

EPILOG = """\
example: instructrec annotate -c configs/data/ml_100k.yaml --out notes.jsonl --writer smollm2-135m-instruct --limit 20
then:    instructrec fit ... --data.cell P1,P2,I0,T3 --data.texts.annotations notes.jsonl

A preference is written from the history alone, an intention from the target's own review, categories and title, as in
InstructRec (arXiv 2305.07001), whose authors used GPT-3.5: an intention is of the held-out event, and results say so.
Every text is kept in the file as it is made; the same command goes on where it stopped, and a text whose request has
not changed is never written twice. With --url the writer is a model behind an OpenAI-compatible endpoint; its key is
read from the environment variable OPENAI_API_KEY.

exit codes: 0 done, 1 the writer failed, 2 the input is wrong"""
Writer = Callable[[str], str]
"""From a request to a text."""
Kind = Literal["preference", "intention"]
REQUESTS: dict[str, dict[Kind, str]] = {
    "en": {
        "preference": "A user chose these {nouns}, oldest first:\n{history}\n\nDescribe in one short sentence what this"
        " user likes. Do not name any of the {nouns}.",
        "intention": "A user is about to choose this {noun}:\n{target}\n\nWrite in one short sentence what the user is"
        " looking for. Do not name the {noun}.",
    },
    "zh": {
        "preference": "用户按时间顺序选择了以下{nouns}：\n{history}\n\n请用一句简短的话概括用户的偏好，不要提到具体名称。",
        "intention": "用户将要选择以下{noun}：\n{target}\n\n请用一句简短的话写出用户的需求，不要提到具体名称。",
    },
}


def run_command(arguments: Sequence[str]) -> int:
    """Runs `annotate`; returns 0, or 1 where the writer failed."""
    from benchmarks.cli.data_only import configured_data

    def add_options(parser: Any) -> None:
        parser.add_argument("--out", type=Path, required=True, help="JSONL to write, or to go on with")
        parser.add_argument(
            "--writer", type=str, default="smollm2-135m-instruct", help="backbone, or the endpoint's model"
        )
        parser.add_argument("--url", type=str | None, default=None, help="OpenAI-compatible endpoint, ending in /v1")
        parser.add_argument("--kinds", type=list[Kind], default=["preference", "intention"], help="what to write")
        parser.add_argument("--limit", type=int | None, default=None, help="events of each split; null takes all")
        parser.add_argument("--longest", type=int, default=60, help="tokens of a text")

    description = "Has a language model put preferences and intentions in words."
    try:
        data, options = configured_data("annotate", description, EPILOG, arguments, add_options)
        wanted = list(requests_of(data, options.kinds, options.limit))
        key = os.environ.get("OPENAI_API_KEY", "")
        made = endpoint_writer(options.url, options.writer, key, options.longest) if options.url else None
        writer = made or local_writer(options.writer, options.longest)
        written, kept = annotate(wanted, writer, options.writer, options.out)
    except WriterError as error:
        print(f"instructrec: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    print(f"{written} texts written, {kept} there already: {options.out}")
    print(f"next: --data.texts.annotations {options.out} with a cell that tells them, such as --data.cell P1,P2,I0,T3")
    return 0


def requests_of(data: Any, kinds: Sequence[Kind], limit: int | None) -> Iterator[tuple[str, str, Kind, str]]:
    """Yields what a writer is asked for up to `limit` targets of every split: user, item, kind, request."""
    tables = data.read()
    data.freeze(tables)
    made, slates = data.sequences, data.slates
    words, language = data.words[data.template.language], data.template.language
    evaluated = [(split, case) for split in ("test", "validation") for case in range(len(data.cases(split)))[:limit]]
    targets = [slates.evaluation(data.cases(split), case) for split, case in evaluated]
    for window in range(len(slates.windows)):
        if limit is not None and len(targets) - len(evaluated) >= limit:
            break
        targets += slates.training(window, 0)
    details = {row["item"]: row for row in tables.items.to_dicts()}
    for slate in targets[: None if limit is None else len(evaluated) + limit]:
        item = made.item_ids[slate.target]
        values = {
            "history": "\n".join(made.titles[each] for each in slate.history),
            "target": _described(details[item]),
        }
        for kind in kinds:
            yield slate.user, item, kind, REQUESTS[language][kind].format_map(words | values)


def _described(row: dict[str, Any]) -> str:
    """An item's title, categories and description, as far as there are any."""
    parts = [str(row["title"]), ", ".join(filter(None, row.get("categories") or ())), str(row.get("description") or "")]
    return "\n".join(text[:500] for text in parts if text)


def annotate(requests: Sequence[tuple[str, str, Kind, str]], writer: Writer, name: str, path: Path) -> tuple[int, int]:
    """Writes the texts that a file lacks, each as soon as it is made; returns how many, and how many were there.

    Texts of a writer with another name do not count; a line that a killed run left unfinished is made anew.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "notes.jsonl"
        >>> annotate([("u", "i", "preference", "Describe")], lambda request: "old films", "me", path)
        (1, 0)
        >>> annotate([("u", "i", "preference", "Describe")], lambda request: "old films", "me", path)
        (0, 1)
    """
    there = _finished(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = kept = 0
    with path.open("a", encoding="utf-8") as file:
        for user, item, kind, request in counted(requests, len(requests), "texts"):
            key = hashlib.sha256(f"{name}\0{kind}\0{request}".encode()).hexdigest()[:16]
            if (user, item, kind, key) in there:
                kept += 1
                continue
            text = " ".join(writer(request).split())
            row = {"user": user, "item": item, kind: text, "writer": name, "request": key}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            there.add((user, item, kind, key))
            written += 1
    return written, kept


def _finished(path: Path) -> set[tuple[str, str, str, str]]:
    """What a file holds; a last line without an end is cut off."""
    if not path.is_file():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    texts = set()
    for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), start=1):
        try:
            row = json.loads(line)
            kinds = [kind for kind in ("preference", "intention") if kind in row]
            texts |= {(str(row["user"]), str(row["item"]), kind, str(row["request"])) for kind in kinds}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}:{number}: not a line of `annotate`; choose another --out") from error
    return texts


_PATIENCE = 120  # seconds for an answer
_TRIES = 3


class WriterError(Exception):
    """A writer gave no text."""


def local_writer(backbone: str, longest: int) -> Any:
    """A writer by greedy decoding of a causal backbone: the same text on every run.

    Raises:
        InputError: there is no such backbone, or it is not a causal one.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    check_backbone_name(backbone)
    folder = pretrained_folder(backbone)
    tokenizer = load_tokenizer(backbone)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    except (ValueError, OSError) as error:
        raise InputError(f"--writer {backbone} is not a causal language model") from error
    # All of it pinned: what a model's own file says about sampling must not decide.
    rules = GenerationConfig(
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )

    def write(request: str) -> str:
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": request}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        else:
            text = f"{request}\n"
        given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(
                input_ids=given.input_ids, attention_mask=given.attention_mask, generation_config=rules
            )
        return str(tokenizer.decode(output[0, given.input_ids.shape[1] :], skip_special_tokens=True))

    return write


def endpoint_writer(url: str, model: str, key: str, longest: int) -> Any:
    """A writer behind an endpoint that speaks OpenAI's chat completions."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url {url!r} must begin with http:// or https://")
    session = requests.Session()
    session.headers.update({"Authorization": f"Bearer {key}"} if key else {})

    def write(request: str) -> str:
        asked = {
            "model": model,
            "messages": [{"role": "user", "content": request}],
            "temperature": 0,
            "max_tokens": longest,
        }
        reason = ""
        for _ in range(_TRIES):
            try:
                answer = session.post(f"{url.rstrip('/')}/chat/completions", json=asked, timeout=_PATIENCE)
                if answer.status_code == 200:
                    return str(answer.json()["choices"][0]["message"]["content"])
                reason = f"status {answer.status_code}: {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code != 429:
                    break
            except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise WriterError(f"{url} gave no text ({reason})")

    return write
