"""Laws of the page's modules, run where they live: in the browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.growth import assert_seconds_are_linear
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def run(browser: Browser, server: ServerProcess) -> Iterator[Any]:
    """Runs the body of an async function that is given a module of the page and an argument."""
    page = browser.new_page()
    page.goto(server.url)

    def call(module: str, body: str, argument: Any = None) -> Any:
        code = f"async (given) => {{ const it = await import('/page/{module}.js'); {body} }}"
        return page.evaluate(code, argument)

    yield call
    page.close()


def test_a_stream_of_events_may_be_split_anywhere(run: Any) -> None:
    stream = (
        "data: x\r\ndata: y\r\n\r\n"
        'data: {"a": "é€😀"}\r\n\r\n: waiting\n\ndata: one\ndata:two\n\nevent: x\nid: 1\n\ndata: cr\r\rdata\n\n'
        "data: [DONE]\n\n"
    )
    body = """
      const bytes = new TextEncoder().encode(given);
      const read = (...cuts) => {
        const parser = new it.EventParser();
        const bounds = [0, ...cuts, bytes.length];
        return bounds.slice(1).flatMap((end, i) => parser.push(bytes.slice(bounds[i], end)));
      };
      const all = [read()];
      for (let i = 0; i <= bytes.length; i++) for (let j = i; j <= bytes.length; j++) all.push(read(i, j));
      all.push(read(...bytes.keys()));
      return [...new Set(all.map((events) => JSON.stringify(events)))].map((text) => JSON.parse(text));
    """
    assert run("api", body, stream) == [["x\ny", '{"a": "é€😀"}', "one\ntwo", "cr", "", "[DONE]"]]


def test_metrics_are_read_as_prometheus_writes_them(run: Any) -> None:
    text = "\n".join(
        (
            "# HELP a A thing",
            "# TYPE a counter",
            'a{x="1",le="+Inf"} 3.5 1700000000',
            'a{x="q\\"\\\\\\n}, {",} +Inf',
            "b 1e-3",
            "c:d NaN",
            "not a sample {",
            "",
        )
    )
    samples = run(
        "metrics",
        "return [...it.parseMetrics(given)].map(([n, s]) => [n, s.map((x) => [x.labels, String(x.value)])])",
        text,
    )
    assert samples == [
        ["a", [[{"x": "1", "le": "+Inf"}, "3.5"], [{"x": 'q"\\\n}, {'}, "Infinity"]]],
        ["b", [[{}, "0.001"]]],
        ["c:d", [[{}, "NaN"]]],
    ]


def test_figures_are_rates_of_seconds_and_means_of_a_minute_and_survive_a_restart(run: Any) -> None:
    body = """
      const scrape = (tokens, sum, count) => ({ tokens, running: 0, waiting: 0, cache: 0,
        firstToken: { sum, count }, perToken: { sum: 0, count: 0 } });
      const trend = new it.Trend();
      const seen = [];
      for (const [time, ...values] of given) {
        trend.push(scrape(...values), time * 1000);
        const { throughput, firstToken, perToken } = trend.figures();
        seen.push([throughput, firstToken, perToken]);
      }
      return seen;
    """
    scrapes = [[0, 100, 1, 2], [2, 200, 2, 4], [4, 200, 2, 4], [9, 200, 2, 4], [100, 300, 8, 6], [101, 10, 1, 1]]
    figures = run("metrics", body, scrapes)
    assert figures[0] == [0, 0.5, None]  # no time has passed: the mean is that of all requests
    assert figures[1] == [50, 0.5, None]
    assert figures[2][0] == 25
    assert figures[3][0] == 0
    assert figures[4][1] == 3
    assert figures[5] == [0, 1, None]  # it counts from the start again


MARKDOWN = [
    ("a **b** c", "<p>a <strong>b</strong> c</p>"),
    (
        "***a*** ~~b~~ __c__ *d* _e_",
        "<p><strong><em>a</em></strong> <del>b</del> <strong>c</strong> <em>d</em> <em>e</em></p>",
    ),
    ("snake_case_name 2 * 3 * 4 **", "<p>snake_case_name 2 * 3 * 4 **</p>"),
    ("`a*b*` ``c`d`` \\*e\\* `f", "<p><code>a*b*</code> <code>c`d</code> *e* `f</p>"),
    ("one\ntwo\n\nthree", "<p>one<br>two</p>|<p>three</p>"),
    ("# a #\n## b", "<h2>a</h2><h3>b</h3>"),
    ("---", "<hr>"),
    ("- a\n- b\n  - c\n\n- d", "<ul><li>a</li><li><p>b</p><ul><li>c</li></ul></li><li>d</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
    ("<b>a</b> & b", "<p>&lt;b&gt;a&lt;/b&gt; &amp; b</p>"),
    ("", ""),
]


@pytest.mark.parametrize(("source", "markup"), MARKDOWN)
def test_markdown(run: Any, source: str, markup: str) -> None:
    body = """
      const root = document.createElement("div");
      it.renderMarkdown(root, given);
      return [...root.children].map((block) => block.innerHTML).join("|");
    """
    assert run("markdown", body, source) == markup


def test_markdown_that_grows_is_the_same_as_markdown_that_is_whole(run: Any) -> None:
    source = (
        "# T\n\n- a\n- *b\n\n  c*\n\n```py\nx = 1\n\ny\n```\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "> q\n\n[x](https://e.x/) `y`\n\n1. z"
    )
    body = """
      const grown = document.createElement("div");
      for (let end = 0; end <= given.length; end++) {
        it.renderMarkdown(grown, given.slice(0, end));
        const whole = document.createElement("div");
        it.renderMarkdown(whole, given.slice(0, end));
        if (grown.innerHTML !== whole.innerHTML) return given.slice(0, end);
      }
      return null;
    """
    assert run("markdown", body, source) is None


HOSTILE = (
    "*", "**a", "[", "[a](", "`", "`` ` ", "> ", "- ", "  - a\n", "|", "|-", "<http", "_a_", "https://a.b/!", "~~",
    "\\", "# ", "-", "- - ", "![", "```\n",
)  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.timeout(30)
def test_markdown_takes_linear_time_for_hostile_text(run: Any, unit: str) -> None:
    body = """
      const root = document.createElement("div");
      const began = performance.now();
      it.renderMarkdown(root, given.unit.repeat(Math.ceil(given.size / given.unit.length)) + "x");
      return (performance.now() - began) / 1000;
    """
    assert_seconds_are_linear(lambda size: run("markdown", body, {"unit": unit, "size": size}), 40_000)


def test_tokens_that_share_a_character_are_shown_together(run: Any) -> None:
    parts = [[240, 159], [152], [128]]
    tokens = [{"text": "a"}, *({"text": str(i), "bytes": part} for i, part in enumerate(parts)), {"text": " b"}]
    groups = run("tokens", "return it.groupTokens(given).map((g) => [g.text, g.tokens.length])", tokens)
    assert groups == [["a", 1], ["😀", 3], [" b", 1]]
