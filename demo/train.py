"""Builds the demo model: tokenizer, training, checkpoint.

    python -m demo.train --out tandem/bundled [--steps 5000] [--seed 0] [--workers 2]

Each worker is a process with one thread and conversations of its own; after each step's backward pass they add up
their gradients, so that all make the same update. The result depends on seed, steps and workers alone (to the last
bits of floating-point sums). The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor

from demo import dialogues, score, tokenizer
from demo.network import Llama, Muon, Shape

VOCABULARY = 1280
LENGTHS = (*range(32, 289, 32), *range(320, 513, 64), 640, 768, 1024)
MICRO_BATCH, MICRO_BATCHES = 2048, 2  # tokens with padding; and how many such a worker adds up in a step
MATRIX_RATE, VECTOR_RATE = 0.01, 0.002  # twice as much learns to copy many times slower
WARM_UP, DECAY_FROM = 0.01, 0.35
# In the loss, of a token that the model only reads, but could have copied: it stands behind a token that it also
# stood behind before. It teaches to look back, which all skills need; what cannot be foreseen would be noise, and the
# opening of an answer says whether to think, which is not the model's choice.
COPY_WEIGHT = 0.3
SEED_STRIDE = 1_000_003  # between the workers' conversations

Row = tuple[list[int], list[float]]  # ids, and the weight of each in the loss


def keep_memory() -> None:
    """Tell glibc to keep freed memory: giving it back and faulting it in again takes 40 % of the time."""
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**28)
        libc.mallopt(mmap_max, 0)


def rows(bpe: Tokenizer, seed: int) -> Iterator[Row]:
    """Tokenized conversations without end."""
    render = tokenizer.template()
    for drawn in dialogues.training(seed):
        ids, parts = tokenizer.encode(bpe, render.render(**drawn))
        if len(ids) <= LENGTHS[-1]:
            yield ids, weigh(ids, parts)


def weigh(ids: list[int], parts: list[tokenizer.Part]) -> list[float]:
    """The weight of each token in the loss."""
    seen: set[tuple[int, int]] = set()
    weights = [0.0]
    for pair, part in zip(itertools.pairwise(ids), parts[1:], strict=True):
        weights.append({"answer": 1.0, "opening": 0.0, "read": COPY_WEIGHT * (pair in seen)}[part])
        seen.add(pair)
    return weights


def micro_batches(source: Iterator[Row]) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and weights, each [rows, length], of conversations of similar length.

    Lengths are rounded up to one of `LENGTHS`, so that few shapes occur: each new one costs time.
    """
    waiting: dict[int, list[Row]] = {length: [] for length in LENGTHS}
    for row in source:
        length = next(length for length in LENGTHS if len(row[0]) <= length)
        waiting[length].append(row)
        if len(waiting[length]) == MICRO_BATCH // length:
            yield padded(waiting[length], length)
            waiting[length] = []


def padded(group: list[Row], length: int) -> tuple[Tensor, Tensor]:
    """Rows as two rectangles; the padding on the right has weight 0 and is seen by no real token."""
    ids = torch.zeros(len(group), length, dtype=torch.long)
    weights = torch.zeros(len(group), length)
    for i, (row, weight) in enumerate(group):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(weight)
    return ids, weights


def rate(done: float) -> float:
    """The learning rate's factor when the fraction `done` of the steps is over: up, level, down to 0."""
    return min(1.0, done / WARM_UP, max(0.0, 1 - done) / (1 - DECAY_FROM))


def backward(model: Llama, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Leave in every weight the gradient of the weighted mean loss of all workers' tokens; returns that mean."""
    totals = torch.zeros(2)
    for ids, weights in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        totals += torch.stack((loss.detach().float(), weights[:, 1:].sum()))
    parameters = list(model.parameters())
    flat = torch.cat([*(weight.grad.flatten() for weight in parameters if weight.grad is not None), totals])
    if dist.is_initialized():
        dist.all_reduce(flat)
    total_loss, total_weight = flat[-2:].tolist()
    flat /= total_weight
    start = 0
    for weight in parameters:
        weight.grad = flat[start : start + weight.numel()].view_as(weight)
        start += weight.numel()
    return float(total_loss / total_weight)


def save(model: Llama, bpe: Tokenizer, folder: Path) -> None:
    """Write the model in bfloat16 with everything that transformers needs to load it."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = model.shape
    weights = {name: weight.detach().bfloat16().contiguous() for name, weight in model.named_parameters()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    end, pad = bpe.token_to_id("<|im_end|>"), bpe.token_to_id("<|endoftext|>")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
        "dtype": "bfloat16",
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
    # Greedy by default: a model this small has one good answer to a question.
    generation = {"do_sample": False, "temperature": 0.0, "eos_token_id": [end, pad], "pad_token_id": pad}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tokenizer.save(bpe, folder, shape.max_positions)


def train(out: Path, steps: int, seed: int, worker: int, look_every: int) -> float:
    """Take so many steps; the first worker reports and writes. Returns the mean loss of late."""
    torch.manual_seed(seed)
    bpe = tokenizer.train(VOCABULARY, seed)
    model = Llama(Shape(vocab_size=bpe.get_vocab_size()))
    matrices = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if ".layers." not in name or weight.ndim == 1]
    muon, adam = Muon(matrices, MATRIX_RATE), torch.optim.AdamW(others, VECTOR_RATE, (0.9, 0.95), weight_decay=0.0)
    source = micro_batches(rows(bpe, seed + 1 + SEED_STRIDE * worker))
    mean, began = 0.0, time.monotonic()
    for step in range(1, steps + 1):
        factor = rate(step / steps)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MATRIX_RATE * factor, VECTOR_RATE * factor
        loss = backward(model, itertools.islice(source, MICRO_BATCHES))
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        mean = loss if step == 1 else mean + 0.05 * (loss - mean)
        if worker:
            continue
        if step % 50 == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:6.1f} min  step {step} of {steps}  loss {mean:.4f}", flush=True)
        if step % look_every == 0 and step < steps:
            save(model, bpe, out)
            print(" ".join(f"{group}: {right}/{of}" for group, right, of in score.score(out, 16, seed=2)), flush=True)
    if not worker:
        save(model, bpe, out)
    return mean


def main() -> None:
    """Build the model from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=5000, help="updates; the default takes 50 to 80 minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the dialogues and the first weights")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--look-every", type=int, default=1200, help="steps between two small scores")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        meeting = options.meeting or f"file://{directory}/meeting"
        helpers = [] if options.worker else [start_worker(i, meeting) for i in range(1, options.workers)]
        if options.workers > 1:
            dist.init_process_group("gloo", init_method=meeting, rank=options.worker, world_size=options.workers)
        loss = train(options.out, options.steps, options.seed, options.worker, options.look_every)
        for helper in helpers:
            helper.wait()
    if not options.worker:
        size = (options.out / "model.safetensors").stat().st_size
        minutes = round((time.monotonic() - began) / 60, 1)
        print(json.dumps({"steps": options.steps, "minutes": minutes, "loss": round(loss, 4), "bytes": size}))


def start_worker(number: int, meeting: str) -> subprocess.Popen[bytes]:
    """The same command as another worker."""
    command = [sys.executable, "-m", "demo.train", *sys.argv[1:], "--worker", str(number), "--meeting", meeting]
    return subprocess.Popen(command)


if __name__ == "__main__":
    main()
