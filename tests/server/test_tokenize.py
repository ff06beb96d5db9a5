"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

import pytest

from tests.server.conftest import CONTEXT
from tests.server.process import ServerProcess


@pytest.mark.parametrize("text", ["the quick brown fox", "", "naïve 東京 🎉\n\t", "<|im_start|>user", " leading"])
def test_there_and_back(server: ServerProcess, text: str) -> None:
    answer = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == CONTEXT
    assert server.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_conversations_are_rendered(server: ServerProcess) -> None:
    messages = [{"role": "user", "content": "fox"}]
    tokens = server.post("/tokenize", {"messages": messages}).json()
    assert "token_strs" not in tokens
    text = server.post("/detokenize", {"tokens": tokens["tokens"]}).json()["prompt"]
    assert text == "<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n"
    answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == tokens["count"]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    continued = server.post("/tokenize", {"messages": messages, **options}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": continued}).json()["prompt"] == "<|im_start|>user\nfox"


def test_long_texts(server: ServerProcess) -> None:
    text = "the quick brown fox " * 5000
    tokens = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json()["prompt"] == text
