"""From a command line to a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from server.config import ServerConfig
from tandem.cli import main as cli
from tandem.cli import serve
from tandem.cli.foreign import is_foreign
from tandem.cli.parser import Parser
from tandem.cli.vllm_options import FOREIGN, OWN, options_table
from tandem.errors import ConfigError


def parse(*argv: str) -> ServerConfig:
    parser = Parser()
    serve.add_command(parser.add_subparsers())
    return serve.server_config(parser.parse_args(["serve", *argv]))


@pytest.fixture(autouse=True)
def no_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in serve.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_of_the_command_line_are_those_of_the_configuration() -> None:
    assert parse() == ServerConfig()


def test_options_reach_the_field_of_their_name() -> None:
    listening = ["--host", "::1", "--port", "0", "--api-key", "a", "--api-key", "b", "--api-key=c"]
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
        (["--backend", "reference", "--scheduling-policy", "priority"], "--scheduling-policy"),
        (["--backend", "reference", "--gpu-memory-utilization", "0.5"], "--gpu-memory-utilization"),
        (
            [
                "--backend",
                "reference",
                "--speculative-config.method",
                "ngram",
                "--speculative-config.num_speculative_tokens",
                "2",
            ],
            "--speculative-config",
        ),
        (["--logprobs-mode", "logits"], "--logprobs-mode"),
        (["--enable-log-outputs"], "--enable-log-outputs"),
        (["--enable-log-requests", "--disable-log-requests"], "--disable-log-requests"),
        (["--metrics-port", "65536"], "--metrics-port"),
        (["--metrics-port", "8000"], "--metrics-port"),
        (["--metrics-port", "9000", "--disable-log-stats"], "--metrics-port"),
        (["--headless"], "--headless"),
        (["--grpc"], "--grpc"),
        (["-tp", "2"], "--tensor-parallel-size"),
        (["--tensor_parallel_size=4"], "--tensor-parallel-size"),
        (["--data-parallel-size", "2"], "--data-parallel-size"),
        (["--api-server-count", "0"], "--api-server-count"),
        (["--kv-cache-dtype", "fp8"], "--kv-cache-dtype"),
        (["-q", "awq"], "--quantization"),
        (["--enable-lora"], "--enable-lora"),
        (["--lora-modules", "a=b", "c=d"], "--lora-modules"),
        (["--compilation-config", '{"mode": 3}'], "--compilation-config"),
        (["-O3"], "--optimization-level"),
        (["--hf-overrides.a", "1", "--hf-overrides.a.b", "2"], "--hf-overrides"),
        (["--hf-overrides.a.b", "2", "--hf-overrides.a", "1"], "--hf-overrides"),
        (["--hf-overrides.a", "1", "--hf-overrides.a+", "2"], "--hf-overrides"),
        (["--hf-overrides.a"], "--hf-overrides"),
        (["--hf-overrides.a", "--port", "1"], "--hf-overrides"),
        (["--hf-overrides", "[]", "--hf-overrides.a", "1"], "--hf-overrides"),
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
        ["serve", "-tp"],
        ["serve", "m", "extra"],
        ["serve", "--shutdown-timeout", "nan"],
        ["serve", "--shutdown-timeout", "-1"],
        ["serve", "--max-num-queued-reqs", "-1"],
        ["serve", "--max-log-len", "1" * 5000],
        ["serve", "--hf-overrides", "[" * 100_000],
        ["serve", "--uvicorn-log-level", "a\nb"],
        ["serve", "--no\nsuch"],
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


SWITCHES = [
    ("enable-prefix-caching", lambda config: config.model.enable_prefix_caching),
    ("enable-chunked-prefill", lambda config: config.model.enable_chunked_prefill),
    ("enforce-eager", lambda config: config.model.enforce_eager),
    ("trust-remote-code", lambda config: config.model.trust_remote_code),
    ("trust-request-chat-template", lambda config: config.trust_request_chat_template),
    ("allow-special-tokens-in-content", lambda config: config.allow_special_tokens_in_content),
    ("allow-credentials", lambda config: config.allow_credentials),
    ("enable-ollama-api", lambda config: config.enable_ollama_api),
    ("enable-request-id-headers", lambda config: config.enable_request_id_headers),
    ("enable-dev-mode", lambda config: config.enable_dev_mode),
    ("enable-tokenizer-info-endpoint", lambda config: config.enable_tokenizer_info_endpoint),
    ("enable-log-requests", lambda config: config.enable_log_requests),
    ("disable-fastapi-docs", lambda config: config.disable_fastapi_docs),
    ("disable-ui", lambda config: config.disable_ui),
    ("salt-prefix-cache-by-key", lambda config: config.salt_prefix_cache_by_key),
    ("disable-uvicorn-access-log", lambda config: config.disable_access_log),
    ("disable-frontend-multiprocessing", lambda config: config.in_process_engine),
    ("enable-auto-tool-choice", lambda config: config.enable_auto_tool_choice),
    ("disable-log-requests", lambda config: not config.enable_log_requests),
    ("enable-log-outputs", lambda config: config.enable_log_outputs),
    ("enable-metrics", lambda config: config.enable_metrics),
    ("disable-log-stats", lambda config: not config.enable_metrics),
    ("enable-server-load-tracking", lambda config: config.enable_server_load_tracking),
]
NEEDED = {
    "enable-auto-tool-choice": ["--tool-call-parser", "auto"],
    "enable-log-outputs": ["--enable-log-requests"],
}


@pytest.mark.parametrize(("name", "read"), SWITCHES, ids=[name for name, _ in SWITCHES])
@pytest.mark.parametrize("on", [True, False])
def test_every_switch_has_two_positions_in_every_spelling(tmp_path: Path, name: str, read: Any, on: bool) -> None:
    if name == "trust-remote-code" and on:
        return  # refused, whoever asks
    file = tmp_path / "serve.yaml"
    word, under = ("true" if on else "false"), name.replace("-", "_")
    needed = NEEDED.get(name, [])
    plain = f"--{name}" if on else f"--no-{name}"
    for argv in (
        [plain],
        [plain.replace("-", "_").replace("__", "--", 1)],
        [f"--{name}={word}"],
        [f"--{under}={word}"],
    ):
        assert read(parse(*argv, *needed)) is on, argv
    for text in (f"{name}: {word}", f"{under}: {word}"):
        file.write_text(text)
        assert read(parse("--config", str(file), *needed)) is on, text
        assert read(parse(f"--config={file}", plain, *needed)) is on
    if name != "trust-remote-code":
        other = f"--no-{name}" if on else f"--{name}"
        assert read(parse("--config", str(file), other, *needed)) is not on, "the file won"


def test_no_switch_is_left_out_of_that_test() -> None:
    parser = Parser()
    serve.add_command(parser.add_subparsers())
    (command,) = parser._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    own = [action for action in command._actions if not is_foreign(action)]
    switches = {action.option_strings[0][2:] for action in own if action.nargs == 0} - {""}
    assert switches == {name for name, _ in SWITCHES}


def test_options_may_be_written_with_underscores_and_an_equals_sign() -> None:
    config = parse("--max_model_len=8k", "--served_model_name", "a_b", "--api_key=c_d", "--hf_overrides={}", "m_m")
    assert (config.model.max_model_len, config.model.model) == (8000, "m_m")
    assert (config.served_model_names, config.api_keys) == (("a_b",), ("c_d",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("config: other.yaml", "there is no option config"),
        ("tensor-parallel: 2", "there is no option tensor-parallel"),
        ("attention-backend: FLASH_ATTN", "attention-backend has no meaning here"),
        ("numa-bind-nodes: [0, 1]", "numa-bind-nodes has no meaning here"),
        ("no-enforce-eager: true", "there is no option no-enforce-eager"),
        ("help: true", "there is no option help"),
        ("enforce-eager: 'yes please'", "enforce-eager is a switch"),
        ("enforce-eager: 1", "enforce-eager is a switch"),
        ("enforce-eager:", "enforce-eager is a switch"),
        ("port: true", "port must be a single value"),
        ("port:", "port must be a single value"),
        ("port: [1, 2]", "port must be a single value"),
        ("port: {a: 1}", "port must be a single value"),
        ("port: 2024-01-01", "port must be a single value"),
        ("model: [a, b]", "model must be a single value"),
        ("served-model-name: [a, [b]]", "served-model-name must be a single value"),
        ("api-key: [null]", "api-key must be a single value"),
        ("port: 1\nport: 2", "port is given twice"),
        ("max-num-seqs: 1\nmax_num_seqs: 2", "max-num-seqs is given twice"),
        ("hf-overrides: {a: 1, a: 2}", "a is given twice"),
        ("host: &a x\nuds: *a", "aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("host: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("host: 'x", "is not valid YAML"),
        ("host: " + "[" * 100_000, "is not valid YAML"),
        ("host: " + "x" * 2**20, "has more than 1048576 bytes"),
        ("- host", "must map option names"),
        ("1: host", "must map option names"),
        ("just text", "must map option names"),
        ("host: \x00", "is not valid YAML"),
    ],
)
def test_a_file_that_says_what_no_option_means_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as refusal:
        parse("--config", str(file))
    assert refusal.value.option == "--config" and "\n" not in str(refusal.value)


def test_a_file_of_another_encoding_or_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"host: \xe9\xff")
    for path in (tmp_path / "latin", tmp_path):
        with pytest.raises(ConfigError, match="--config"):
            parse("--config", str(path))
    with pytest.raises(ConfigError, match="twice"):
        parse("--config", "a", "--config=b")


def test_values_of_every_kind_come_out_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: of/file\nport: 1\nserved_model_name: one\napi-key: [a, 7]\nshutdown-timeout: 2.5\n"
        "hf-overrides: {a: {b: [1]}}\nallowed-headers: [x, y]\nkv-cache-memory-bytes: 2G\nhost: '::1'\n"
    )
    config = parse("--config", str(file))
    assert (config.port, config.served_model_names, config.api_keys) == (1, ("one",), ("a", "7"))
    assert (config.shutdown_timeout, config.allowed_headers, config.host) == (2.5, ("x", "y"), "::1")
    model = config.model
    assert (model.model, model.hf_overrides, model.kv_cache_memory_bytes) == ("of/file", {"a": {"b": [1]}}, 2**31)
    for argv in (["of/line"], ["--model", "of/line"]):
        assert parse(*argv, "--config", str(file)).model.model == "of/line", "the file won"
    config = parse("--config", str(file), "--served-model-name", "x", "y", "--api-key", "k")
    assert (config.served_model_names, config.api_keys) == (("x", "y"), ("k",)), "the file's were added"


# ------------------------------------------------------- options that swallow the model


def test_a_key_never_takes_the_model_along(tmp_path: Path) -> None:
    config = parse("--api-key", "k", str(tmp_path))
    assert (config.api_keys, config.model.model) == (("k",), str(tmp_path))


@pytest.mark.parametrize(
    "names", [["PATH"], ["m", "PATH"], ["a", "b"], ["a", "--served-model-name", "m", "org/name"]]
)
def test_a_name_that_may_be_the_model_is_refused(tmp_path: Path, names: list[str]) -> None:
    named = [str(tmp_path) if name == "PATH" else name for name in names]
    with pytest.raises(ConfigError, match="write the model first") as refusal:
        parse("--served-model-name", *named)
    assert refusal.value.option == "--served-model-name"


def test_several_names_are_fine_where_they_can_be_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path)
    for argv in (
        [path, "--served-model-name", "a", "b"],
        ["--served-model-name", "a", "b", "--", path],
        ["--served-model-name", "a", "b", "--port", "1", path],
        ["--served-model-name", "a", "b", "--model", path],
        ["--model", path, "--served-model-name", "a", "--served-model-name", "b"],
    ):
        config = parse(*argv)
        assert (config.served_model_names, config.model.model) == (("a", "b"), path)
    assert parse("--served-model-name", "a").served_model_names == ("a",), "the demonstration model has one name"
    assert parse(path, "--served-model-name", path).served_model_names == (path,)


# ------------------------------------------------------- keys


@pytest.mark.parametrize("spelled", ["secret\n", " secret", "secret\r\n", "\tsecret "])
def test_the_ends_of_a_key_are_stripped(monkeypatch: pytest.MonkeyPatch, spelled: str) -> None:
    assert parse("--api-key", spelled).api_keys == ("secret",)
    monkeypatch.setenv("TANDEM_API_KEY", spelled)
    assert parse().api_keys == ("secret",)


@pytest.mark.parametrize("key", ["", " ", "\n", "a\nb", "a\x00b", "a\x7fb", "a\tb"])
def test_a_key_that_nobody_can_send_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse("--api-key", "good", "--api-key", key)
    assert refusal.value.option == "--api-key" and "\n" not in str(refusal.value)
    if "\x00" not in key:
        monkeypatch.setenv("VLLM_API_KEY", key)  # an empty secret must not open the server
        with pytest.raises(ConfigError, match="VLLM_API_KEY"):
            parse()


def test_an_unknown_option_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--tensor-parallel", "2"], ["--no-port"], ["m", "-zz", "2"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", *argv])
        option = next(argument for argument in argv if argument.startswith("-")).partition("=")[0]
        assert (end.value.code, capsys.readouterr().err) == (
            2,
            f"error: there is no option {option} (see tandem --help)\n",
        )


def test_an_argument_too_many_is_not_repeated_for_it_may_be_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "m", "--api-key", "a", "secret"])
    error = capsys.readouterr().err
    assert "secret" not in error and error.count("\n") == 1


# ------------------------------------------------------- options of vllm serve


@pytest.mark.parametrize("foreign", FOREIGN, ids=[foreign.name for foreign in FOREIGN])
def test_what_does_nothing_here_is_accepted_where_it_changes_nothing_and_else_refused(
    foreign: Any, tmp_path: Path
) -> None:
    underscored = "--" + foreign.name.replace("-", "_")
    if foreign.is_switch:
        (neutral,) = foreign.neutral
        plain, negated = foreign.option, f"--no-{foreign.name}"
        good, bad = (plain, negated) if neutral == "true" else (negated, plain)
        accepted = [[good], [good.replace("-", "_").replace("__", "--", 1)], [f"{underscored}={neutral}"]]
        refused = [[bad], [f"{underscored}={'false' if neutral == 'true' else 'true'}"]]
        refused += [[alias] for alias in foreign.aliases if neutral == "false"]
        in_file = [f"{foreign.name}: {neutral}"]
    else:
        names = [foreign.option, underscored, *foreign.aliases]
        accepted = [[name, value] for name in names for value in foreign.neutral]
        refused = [[name, "something-else"] for name in names]
        in_file = [f"{foreign.name}: '{value}'" for value in foreign.neutral]
    for argv in accepted:
        assert parse("m", *argv) == parse("m"), argv
    for argv in refused:
        with pytest.raises(ConfigError) as refusal:
            parse("m", *argv)
        assert refusal.value.option == foreign.option and foreign.why in str(refusal.value)
        assert "has no meaning here" in str(refusal.value) and "\n" not in str(refusal.value)
    file = tmp_path / "serve.yaml"
    for text in in_file:
        file.write_text(text)
        assert parse("--config", str(file)) == parse(), text


def test_the_page_of_options_is_what_the_code_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "options.md"
    assert page.read_text(encoding="utf-8") == options_table(serve.serve_parser()), (
        "write it anew: python -m tandem.cli.vllm_options > docs/options.md"
    )


def test_every_option_is_told_of_once_and_those_that_are_ours_are_there() -> None:
    names = [*OWN.split(), *(foreign.name for foreign in FOREIGN)]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    actions = serve.serve_parser()._option_string_actions
    for name in OWN.split():
        assert f"--{name}" in actions and not is_foreign(actions[f"--{name}"]), name
    aliases = [alias for foreign in FOREIGN for alias in foreign.aliases]
    assert len(aliases) == len(set(aliases))


def test_a_production_command_line_of_vllms_serves_here() -> None:
    config = parse(
        "org/model", "--tensor-parallel-size", "1", "-pp", "1", "--gpu-memory-utilization", "0.9", "--max-model-len",
        "-1", "--kv-cache-dtype", "auto", "--disable-log-requests", "--api-server-count", "1", "--no-enable-lora",
    )  # fmt: skip
    assert config == parse("org/model")
    assert (
        parse("m", "--kv-cache-memory-bytes", "1G", "--gpu-memory-utilization", "0.9").model.gpu_memory_utilization
        is None
    )


@pytest.mark.parametrize(
    ("argv", "merged"),
    [
        (["--hf-overrides.rope_theta", "1e6"], {"rope_theta": 1e6}),
        (["--hf-overrides.a.b_c.d=[1]", "--hf_overrides.a.e", "text"], {"a": {"b_c": {"d": [1]}, "e": "text"}}),
        (["--hf-overrides", '{"a": {"b": 1}, "c": 2}', "--hf-overrides.a.b", "3"], {"a": {"b": 3}, "c": 2}),
        (["--hf-overrides.a+", "x", "--hf-overrides.a+=y,2"], {"a": ["x", "y", 2]}),
        (["--hf-overrides.a", "-1"], {"a": -1}),
        (["--hf-overrides.a="], {"a": ""}),
    ],
)
def test_objects_may_be_written_key_by_key(argv: list[str], merged: dict[str, Any]) -> None:
    config = parse(*argv, "some/model")
    assert (config.model.hf_overrides, config.model.model) == (merged, "some/model")


def test_speculation_may_be_written_key_by_key() -> None:
    asked = ["--speculative-config.method", "ngram", "--speculative-config.num_speculative_tokens", "3"]
    speculative = parse(*asked).model.speculative_config
    assert speculative == parse("-sc", '{"method": "ngram", "num_speculative_tokens": 3}').model.speculative_config
    assert speculative is not None and speculative.num_speculative_tokens == 3


def test_the_reference_engine_takes_what_cannot_change_its_answers() -> None:
    model = parse(
        "--backend", "reference", "--block-size", "32", "--enforce-eager", "--max-num-seqs", "8",
        "--no-enable-prefix-caching", "--kv-cache-memory-bytes", "1G", "--max-num-batched-tokens", "64",
    ).model  # fmt: skip
    assert (model.backend, model.block_size, model.kv_cache_memory_bytes) == ("reference", 32, 2**30)


def test_middleware_and_quiet_paths_are_lists() -> None:
    config = parse("--middleware", "a.B", "--middleware", "c.d", "--disable-access-log-for-endpoints", "/health, /x")
    assert (config.middleware, config.quiet_paths) == (("a.B", "c.d"), ("/health", "/x"))


def test_profiles_are_asked_for_as_json_or_key_by_key() -> None:
    config = parse("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/p"}')
    assert config == parse("--profiler-config.torch_profiler_dir", "/p") and config.profiler_config is not None
    for wrong in ('{"torch_profiler_dir": "here"}', '{"torch_profiler_dir": "/p", "max_iterations": 0}'):
        with pytest.raises(ConfigError, match="profiler-config"):
            parse("--profiler-config", wrong)
    for wrong in (
        "{}",
        "[]",
        '{"torch_profiler_dir": "/p", "profiler": "cuda"}',
        '{"torch_profiler_dir": "/p", "a": 1}',
    ):
        with pytest.raises(SystemExit):
            parse("--profiler-config", wrong)
    with pytest.raises(ConfigError, match="--distributed-executor-backend"):
        parse("--profiler-config.torch_profiler_dir", "/p", "--distributed-executor-backend", "mp")
