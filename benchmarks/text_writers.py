"""Language models that write short texts: a local backbone, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Any

import requests

from datamodules.pretrained import check_backbone_name, load_tokenizer, pretrained_folder
from datamodules.sources import InputError

_PATIENCE = 120  # seconds for an answer
_TRIES = 3


class WriterError(Exception):
    """A writer gave no text."""


def local_writer(backbone: str, longest: int) -> Any:
    """A writer by greedy decoding of a causal backbone: the same text on every run.

    Args:
        backbone: packaged name, folder or hub id.
        longest: tokens of a text.

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
            made = model.generate(
                input_ids=given.input_ids, attention_mask=given.attention_mask, generation_config=rules
            )
        return str(tokenizer.decode(made[0, given.input_ids.shape[1] :], skip_special_tokens=True))

    return write


def endpoint_writer(url: str, model: str, key: str, longest: int) -> Any:
    """A writer behind an endpoint that speaks OpenAI's chat completions.

    Args:
        url: of the interface, ending in `/v1`.
        model: its name there.
        key: sent as a bearer token; empty sends none.
        longest: tokens of a text.

    Raises:
        InputError: the address is none.
    """
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
        told = ""
        for _ in range(_TRIES):
            try:
                answer = session.post(f"{url.rstrip('/')}/chat/completions", json=asked, timeout=_PATIENCE)
                if answer.status_code == 200:
                    return str(answer.json()["choices"][0]["message"]["content"])
                told = f"status {answer.status_code}: {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code != 429:
                    break
            except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as error:
                told = f"{type(error).__name__}: {error}"
        raise WriterError(f"{url} gave no text ({told})")

    return write
