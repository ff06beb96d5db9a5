"""The rules between the folders, read off the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tandem", "reference", "optimized", "server")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
SHIPPED = [*FILES, *(file for name in ("conformance", "demo") for file in sorted((ROOT / name).rglob("*.py")))]
# ``multiprocessing`` pickles what it sends
UNPICKLING = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "multiprocessing"}
UNSAFE = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "torch.load",
    "torch.serialization.load", "numpy.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
UNSAFE_OPTIONS = {"allow_pickle", "trust_remote_code", "weights_only"}
ENGINE_SIDE = {"torch", "triton", "transformers", "safetensors", "numpy", "msgspec", "zmq", "tqdm"}
ENGINE_MODULES = [
    *sorted((ROOT / "reference").rglob("*.py")),
    *sorted((ROOT / "optimized").rglob("*.py")),
    *sorted((ROOT / "tandem" / "models").rglob("*.py")),
    *(ROOT / "tandem" / f"{name}.py" for name in ("config", "engine", "errors", "registry", "sampling_params")),
    *(ROOT / "tandem" / "process" / f"{name}.py" for name in ("transport", "worker")),
]


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_can_unpickle_or_evaluate(file: Path) -> None:
    found = unsafe(file.read_text(encoding="utf-8"))
    assert not found, found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import joblib", "import torch\ntorch.load(f)",
        "from torch import load", "from torch import load as read", "from torch.serialization import load",
        "import torch as t\nt.load(f)", "eval(x)", "exec(x)", "import builtins\nbuiltins.eval(x)", 
        "import yaml\nyaml.load(f)",
        "import yaml\nyaml.unsafe_load(f)", "from yaml import full_load", 
        "import numpy\nnumpy.load(f, allow_pickle=True)",
        "import numpy as np\nnp.load(f, None, True)", "f(trust_remote_code=True)", "import multiprocessing",
        "from multiprocessing.connection import Client", "__import__(name)",
    ],
)  # fmt: skip
def test_the_law_knows_what_to_look_for(code: str) -> None:
    assert unsafe(code)


def unsafe(code: str) -> set[str]:
    """What in ``code`` can run what it reads: unpickling, evaluating, code that comes with a checkpoint."""
    tree = ast.parse(code)
    named = dict[str, str]()  # what a name in this file stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {a.asname or a.name: a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            named |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    found = {name for name in named.values() if name.partition(".")[0] in UNPICKLING or name in UNSAFE}
    safe_loaders = {
        c.name for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for b in c.bases if is_safe_loader(b)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        head, dot, rest = ast.unparse(call.func).partition(".")
        name = named.get(head, head) + dot + rest
        if name in UNSAFE and not (name == "yaml.load" and ast.unparse(call.args[-1]) in safe_loaders):
            found.add(name)
        found |= {f"{name}({k.arg})" for k in call.keywords if k.arg in UNSAFE_OPTIONS and not is_false(k.value)}
    return found


def is_safe_loader(node: ast.expr) -> bool:
    return ast.unparse(node) == "yaml.SafeLoader"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_folders_import_only_what_they_may(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    seen = roots(imports(file))
    if package == "server":
        assert not seen & {"reference", "optimized", "torch", "transformers"}
    if package == "reference":
        assert not seen & {"optimized", "server", "transformers"}
    if package == "optimized":
        assert not seen & {"reference", "server", "transformers"}
    if file.parent.name == "scheduling":
        assert not seen & {"torch", "triton"}
    if package == "tandem" and file.name != "registry.py":
        assert not seen & {"reference", "optimized"}
    if package == "tandem" and "cli" not in file.parts:
        assert "server" not in seen


@pytest.mark.parametrize("file", ENGINE_MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_engine_side_modules_need_no_web_stack(file: Path) -> None:
    own = {"tandem", "reference", "optimized"}
    allowed = ENGINE_SIDE | own | set(sys.stdlib_module_names)
    assert roots(imports(file, top_level_only=True)) <= allowed


def test_the_front_process_imports_neither_torch_nor_transformers() -> None:
    modules = "tandem.cli.main, tandem.process.client, tandem.generation.generation, server.run, server.app"
    code = (
        f"import {modules}, sys; print(sorted({{'torch', 'transformers', 'numpy', 'reference'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_engines_need_torch_and_its_companions_alone() -> None:
    """They run where no web stack is installed, and no transport."""
    needless = "{'zmq', 'fastapi', 'jinja2', 'yaml', 'uvicorn', 'prometheus_client'}"
    code = f"import optimized, reference, tandem.registry, sys; print(sorted({needless} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_public_interface_is_pinned() -> None:
    import tandem

    names = {"BeamSearchParams", "CompletionOutput", "LLM", "RequestOutput", "SamplingParams"}
    assert set(tandem.__all__) == names | {"StructuredOutputsParams", "__version__"}
    assert all(hasattr(tandem, name) for name in tandem.__all__)
