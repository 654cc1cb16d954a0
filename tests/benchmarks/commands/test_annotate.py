"""Texts by a language model: kept as they are made, continued, and read back into prompts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.commands.annotate import WriterError, annotate, endpoint_writer, requests_of
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.preferences import TextRules, read_notes
from datamodules.protocol.rules import Protocol

ROOT = Path(__file__).resolve().parents[3]
DATA = ["-c", str(ROOT / "configs/data/ml_100k.yaml")]


class Stub(BaseHTTPRequestHandler):
    """Answers chat completions with a text that counts, after as many failures as it is told."""

    asked: list[dict[str, Any]]
    keys: list[str | None]
    failures: list[int]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.failures.pop(0) if self.failures else 200
        if status == 200:
            self.asked.append(body)
            self.keys.append(self.headers.get("Authorization"))
        answer = {"choices": [{"message": {"content": f"text\n {len(self.asked)}"}}]} if status == 200 else {}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def stub() -> Iterator[tuple[str, type[Stub]]]:
    Stub.asked, Stub.keys, Stub.failures = [], [], []
    server = HTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", Stub
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_writes_what_is_lacking(
    mini_data: Path, tmp_path: Path, stub: tuple[str, type[Stub]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, server = stub
    out = tmp_path / "notes.jsonl"
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    command = ["annotate", *DATA, "--out", str(out), "--url", url, "--writer", "big"]

    assert main([*command, "--limit", "2"]) == 0
    assert len(server.asked) == 2 * 3 * 2
    assert main([*command, "--limit", "3"]) == 0
    assert len(server.asked) == 3 * 3 * 2
    assert {body["model"] for body in server.asked} == {"big"}
    assert {body["temperature"] for body in server.asked} == {0}
    assert set(server.keys) == {"Bearer s3cret"}
    assert "s3cret" not in out.read_text()

    data = MovieLens100K(
        cell="P1,P2,I1,T3",
        texts=TextRules(annotations=out),
        needs=ModelNeeds("interactions"),
        protocol=Protocol(negatives=3),
    )
    data.setup()
    slate = data.slates.evaluation(data.sequences.test, 0)
    note = read_notes(out)[slate.user, data.sequences.item_ids[slate.target]]
    told = data.sample_prompt("test", 0)
    assert note["preference"].startswith("text ")
    assert note["preference"] != note["intention"]
    assert f"What this user likes: {note['preference']}." in told
    assert f"What the user has in mind: {note['intention']}." in told


def test_a_preference_is_asked_for_without_the_target_and_an_intention_without_the_history(mini_data: Path) -> None:
    data = MovieLens100K(needs=ModelNeeds("interactions"))
    by_kind: dict[str, list[str]] = {"preference": [], "intention": []}
    for _, item, kind, request in requests_of(data, ["preference", "intention"], 5):
        title = data.sequences.titles[data.sequences.item_ids.index(item)]
        by_kind[kind].append(request)
        assert (title in request.splitlines()) == (kind == "intention")
    assert len(by_kind["preference"]) == len(by_kind["intention"]) == 15


def test_a_run_that_stops_keeps_what_it_has(
    mini_data: Path, tmp_path: Path, stub: tuple[str, type[Stub]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, server = stub
    out = tmp_path / "notes.jsonl"
    command = ["annotate", *DATA, "--out", str(out), "--url", url, "--limit", "1", "--kinds", "[preference]"]
    server.failures = [500, 429]
    assert main(command) == 0
    assert len(out.read_text().splitlines()) == 3

    out.write_text("".join(out.read_text().splitlines(keepends=True)[:1]) + '{"user": "hal')
    server.failures = [401]
    assert main(command) == 1
    assert "status 401" in capsys.readouterr().err
    assert main(command) == 0
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 3


def test_another_writer_or_request_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    one = [("u", "i", "preference", "Describe")]
    assert annotate(one, str.upper, "a", path) == (1, 0)  # type: ignore[arg-type]
    assert annotate(one, str.upper, "b", path) == (1, 0)  # type: ignore[arg-type]
    assert annotate([(*one[0][:3], "Tell")], str.upper, "b", path) == (1, 0)  # type: ignore[list-item]
    assert read_notes(path) == {("u", "i"): {"preference": "TELL"}}


def test_a_local_backbone_writes(mini_data: Path, tiny_causal: Path, tmp_path: Path) -> None:
    out = tmp_path / "notes.jsonl"
    words = ["annotate", *DATA, "--writer", str(tiny_causal), "--limit", "1", "--longest", "5"]
    assert main([*words, "--out", str(out)]) == 0
    assert main([*words, "--out", str(tmp_path / "again.jsonl")]) == 0

    assert len(out.read_text().splitlines()) == 6
    assert out.read_text() == (tmp_path / "again.jsonl").read_text()


def test_bad_input_is_one_line(mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "notes.jsonl"
    out.write_text("my shopping list\n")
    for words, reason in (
        (["--out", str(out), "--url", "ftp://x"], "must begin with http"),
        (
            ["--out", str(out), "--url", "http://127.0.0.1:9/v1", "--limit", "1"],
            "notes.jsonl:1: not a line of `annotate`",
        ),
    ):
        assert main(["annotate", *DATA, *words]) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert reason in told
    with pytest.raises(InputError):
        endpoint_writer("localhost", "m", "", 5)
    with pytest.raises(WriterError, match="gave no text"):
        endpoint_writer("http://127.0.0.1:9/v1", "m", "", 5)("hello")
