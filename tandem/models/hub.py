"""Where a model's files are: a local directory, the hub, or the model bundled with this package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from tandem.errors import CheckpointError

BUNDLED_MODEL = Path(__file__).parents[1] / "bundled"
BUNDLED_NAME = "tandem-demo"
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
MAX_JSON_BYTES = 64 * 2**20
TEXT_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", "tokenizer*", "merges*", "vocab*")


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The directory of a checkpoint, and how to complete it.

    Attributes:
        path: a local directory; for a hub model the snapshot that holds its configuration and tokenizer.
        hub_id: the model's id when its weights still come from the hub, else None.
        revision, download_dir: for the hub.
    """

    path: str
    hub_id: str | None = None
    revision: str | None = None
    download_dir: str | None = None

    def read_json(self, name: str, required: bool = False) -> dict[str, Any]:
        """Read a JSON object; ``{}`` if the file is not there.

        Raises:
            CheckpointError: the file is malformed, or missing though ``required``.
        """
        value = read_json(Path(self.path) / name)
        if value is None and required:
            raise CheckpointError(f"{self.hub_id or self.path} has no {name}: it is not a model directory")
        return value or {}

    def with_weights(self) -> Path:
        """The directory with the weights in it, fetched from the hub first if they come from there."""
        if self.hub_id is None:
            return Path(self.path)
        return Path(_fetch(self.hub_id, self.revision, self.download_dir, WEIGHT_PATTERNS))


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file.

    Raises:
        CheckpointError: it cannot be read, is malformed, or larger than any configuration.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{file} has more than {MAX_JSON_BYTES} bytes")
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return value


def locate(model: str, revision: str | None, download_dir: str | None) -> ModelFiles:
    """Find a model by directory or hub id and make its configuration and tokenizer files local.

    The switches of ``huggingface_hub`` (``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_TOKEN``, …) apply.

    Raises:
        CheckpointError: there is no such directory, and the hub does not have it or cannot be reached.
    """
    if not model:
        return ModelFiles(path=str(BUNDLED_MODEL))
    try:
        directory = Path(model).expanduser()
        is_directory, exists = directory.is_dir(), directory.exists()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{model!r} cannot be looked at: {error}") from error
    if is_directory:
        return ModelFiles(path=str(directory.resolve()))
    if exists:
        raise CheckpointError(f"{model} is a file; give the directory that holds config.json and *.safetensors")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(f"{model} is neither a directory nor a hub id such as org/name")
    path = _fetch(model, revision, download_dir, TEXT_PATTERNS)
    return ModelFiles(path=path, hub_id=model, revision=revision, download_dir=download_dir)


def served_name(model: str) -> str:
    """The name under which clients see a model that was given none."""
    return model or BUNDLED_NAME


def _fetch(hub_id: str, revision: str | None, download_dir: str | None, patterns: tuple[str, ...]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return str(
            snapshot_download(
                hub_id, revision=revision, cache_dir=download_dir, allow_patterns=list(patterns), max_workers=4
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(f"{hub_id} needs its licence accepted on the hub, and a token in HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"the hub has no model {hub_id} (a private one needs a token in HF_TOKEN)") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} has no revision {revision} on the hub") from error
    except LocalEntryNotFoundError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "")
        why = "HF_HUB_OFFLINE is set" if offline not in ("", "0") else "the hub cannot be reached"
        raise CheckpointError(f"{hub_id} is not a local directory, is not in the hub's cache, and {why}") from error
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id} is neither a directory nor a valid hub id") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"fetching {hub_id} from the hub failed: {error}".splitlines()[0]) from error
