"""Scores the demo model on prompts it was never trained on: `python -m demo.score [--model DIR]`.

Prints a Markdown table, then one line of JSON. The exit status is 1 when a group is below 90 %. An answer
counts when its text is exactly the expected one; JSON and tool calls count when they parse to equal values.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from demo import dialogues
from demo.dialogues import Conversation
from tandem import LLM, SamplingParams

BUNDLED = Path(__file__).parent.parent / "tandem" / "bundled"
NEEDED = 0.9
MAX_TOKENS = 200
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
THOUGHT = re.compile(r"<think>\n(.+?)\n</think>\n\n(.*)", re.DOTALL)


def answers(model_dir: Path, prompts: list[Conversation]) -> list[str]:
    """The model's greedy answer to each conversation without its last message, as text."""
    llm = LLM(str(model_dir))
    greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    found = []
    for prompt in prompts:
        (result,) = llm.chat(
            prompt["messages"][:-1],
            greedy,
            tools=prompt["tools"],
            chat_template_kwargs={"enable_thinking": prompt["enable_thinking"]},
            use_tqdm=False,
        )
        found.append(result.outputs[0].text)
    llm.close()
    return found


def calls(text: str) -> list[Any] | None:
    """The tool calls that make up the whole text, or None where there is anything else."""
    if CALL.sub("", text).strip():
        return None
    return [_parsed(call) for call in CALL.findall(text)]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def correct(prompt: Conversation, answer: str) -> bool:
    """Whether the answer is the one that the conversation ends with."""
    expected = prompt["messages"][-1]
    if prompt["enable_thinking"]:
        thought = THOUGHT.fullmatch(answer)
        if thought is None:
            return False
        answer = thought[2]
    if expected.get("tool_calls"):
        return calls(answer) == [call["function"] for call in expected["tool_calls"]]
    value = _parsed(expected["content"])
    if isinstance(value, (dict, list)):
        return bool(_parsed(answer) == value)
    return bool(answer == expected["content"])


def score(
    model_dir: Path, count: int, seed: int = 1, failures: list[str] | None = None
) -> list[tuple[str, int, int]]:
    """For each group: its name, how many answers are correct, and of how many.

    Wrong answers are appended to `failures` where it is given.
    """
    prompts = [(group, prompt) for group in dialogues.GROUPS for prompt in dialogues.held_out(group, count, seed)]
    right = dict.fromkeys(dialogues.GROUPS, 0)
    for (group, prompt), answer in zip(prompts, answers(model_dir, [prompt for _, prompt in prompts]), strict=True):
        if correct(prompt, answer):
            right[group] += 1
        elif failures is not None:
            failures.append(
                json.dumps({"group": group, "answer": answer, "messages": prompt["messages"]}, ensure_ascii=False)
            )
    return [(group, right[group], count) for group in right]


def table(results: Iterable[tuple[str, int, int]]) -> Iterator[str]:
    """The lines of the Markdown table."""
    yield "| group | correct | of | % |"
    yield "|---|---:|---:|---:|"
    for group, right, of in results:
        yield f"| {group} | {right} | {of} | {100 * right / of:.1f} |"


def main() -> None:
    """Score a model from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="the folder of the model")
    parser.add_argument("--count", type=int, default=100, help="prompts in each group")
    parser.add_argument("--show-failures", action="store_true", help="print every wrong answer first")
    options = parser.parse_args()
    failures: list[str] = []
    results = score(options.model, options.count, failures=failures)
    if options.show_failures:
        print("\n".join(failures), end="\n\n")
    print("\n".join(table(results)))
    passed = all(right >= NEEDED * of for _, right, of in results)
    print(json.dumps({"passed": passed, "groups": {group: right / of for group, right, of in results}}))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
