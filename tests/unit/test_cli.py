"""From a command line to a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from server.config import ServerConfig
from tandem.cli import main as cli
from tandem.cli import serve
from tandem.errors import ConfigError


def parse(*argv: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    serve.add_command(parser.add_subparsers())
    return serve.server_config(parser.parse_args(serve.expand_config_file(["serve", *argv])))


def test_the_defaults_of_the_command_line_are_those_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in serve.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert parse() == ServerConfig()


def test_options_reach_the_field_of_their_name() -> None:
    listening = ["--host", "::1", "--port", "0", "--api-key", "a", "b", "--api-key", "c"]
    listening += ["--served-model-name", "x", "y"]
    loading = ["some/model", "--max-model-len", "8k", "--dtype", "half", "--seed", "7"]
    serving = ["--root-path", "/p", "--shutdown-timeout", "2.5", "--disable-frontend-multiprocessing"]
    as_json = ["--hf-overrides", '{"rope_theta":1}', "--allowed-origins", '["https://a"]']
    config = parse(*loading, *listening, *serving, *as_json)
    assert (config.host, config.port, config.api_keys) == ("::1", 0, ("a", "b", "c"))
    assert config.served_model_names == ("x", "y")
    assert (config.root_path, config.shutdown_timeout, config.in_process_engine) == ("/p", 2.5, True)
    assert config.allowed_origins == ("https://a",)
    model = config.model
    assert (model.model, model.max_model_len, model.dtype, model.seed) == ("some/model", 8000, "float16", 7)
    assert model.hf_overrides == {"rope_theta": 1}


def test_scheduling_options_reach_the_engine() -> None:
    model = parse("--max-num-seqs", "8", "--kv-cache-memory-bytes", "2G", "--no-enable-prefix-caching").model
    assert (model.max_num_seqs, model.kv_cache_memory_bytes) == (8, 2 * 2**30)
    assert model.scheduler.enable_prefix_caching is False
    scheduler = parse("--gpu-memory-utilization", "0.5", "--enforce-eager").model.scheduler
    assert (scheduler.gpu_memory_utilization, scheduler.enforce_eager) == (0.5, True)


def test_keys_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.delenv("TANDEM_API_KEY", raising=False)
    assert parse().api_keys == ("secret",)
    assert parse("--api-key", "given").api_keys == ("given",)


def test_a_file_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: m\nport: 1234\nserved_model_name: [a, b]\nallow-credentials: true\nallowed-origins: [x]\n"
    )
    config = parse("--config", str(file), "--port", "5")
    assert (config.model.model, config.port, config.allow_credentials) == ("m", 5, True)
    assert (config.served_model_names, config.allowed_origins) == (("a", "b"), ("x",))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--dtype", "int3"], "--dtype"),
        (["--max-model-len", "lots"], "--max-model-len"),
        (["--max-model-len", "0"], "--max-model-len"),
        (["--load-format", "pt"], "--load-format"),
        (["--backend", "fast"], "--backend"),
        (["--trust-remote-code"], "--trust-remote-code"),
        (["--port", "65536"], "--port"),
        (["--ssl-keyfile", __file__], "--ssl-keyfile"),
        (["--ssl-keyfile", "no", "--ssl-certfile", "no"], "--ssl-keyfile"),
        (["--config", "no/such.yaml"], "--config"),
        (["--max-logprobs", "-2"], "--max-logprobs"),
        (["a", "--model", "b"], "--model"),
        (["--max-num-seqs", "0"], "--max-num-seqs"),
        (["--scheduling-policy", "lifo"], "--scheduling-policy"),
        (["--backend", "reference", "--block-size", "32"], "--block-size"),
        (["--backend", "reference", "--enforce-eager"], "--enforce-eager"),
        (["--gpu-memory-utilization", "0"], "--gpu-memory-utilization"),
        (["--gpu-memory-utilization", "90"], "--gpu-memory-utilization"),
        (["--gpu-memory-utilization", "nan"], "--gpu-memory-utilization"),
        (["--gpu-memory-utilization", "0.5", "--kv-cache-memory-bytes", "1G"], "--gpu-memory-utilization"),
        (["--api-key", ""], "--api-key"),
    ],
)
def test_a_bad_option_is_named(argv: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(*argv)
    assert refusal.value.option == named
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "--port", "many"],
        ["serve", "--tensor-parallel", "2"],
        ["serve", "--hf-overrides", "{"],
        ["serve", "--allowed-origins", "[1]"],
        ["serve", "--config"],
        ["serve", "--kv-cache-memory-bytes", "lots"],
        ["serve", "--gpu-memory-utilization", "most"],
        ["swim"],
        [],
    ],
)
def test_a_malformed_command_is_one_line_and_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_the_user_can_mend_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--dtype", "int3"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --dtype") and error.count("\n") == 1
