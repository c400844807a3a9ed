"""One adapter on one domain: the head solved on the frozen encoder, then adapter and head trained together."""

import copy
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from scipy import stats
from torch import Tensor, nn

from . import road_lora
from .memory import PeakMemory
from .model import WIDTH, Method, Texts, embed
from .road_lora import RoadLoraConfig

BATCH = 16
HEAD_RATE = 1e-3
CLEAR = 0.5  # |rating| from which on the sign of a snippet counts as agreed upon


@dataclass(frozen=True)
class Domain:
    train: Texts
    validation: Texts
    test: Texts
    head: nn.Linear  # solved on the frozen encoder: where every method starts, and the whole of "frozen"


@dataclass(frozen=True)
class Trained:
    state: dict[str, Tensor]  # the adapter's parameters, in PEFT's names
    head: nn.Linear
    parameters: int  # of the adapter
    seconds: float
    peak_mib: float | None


def shuffled_batches(texts: Texts, generator: torch.Generator, size: int = BATCH) -> list[list[int]]:
    """Random batches of texts of similar length: shuffled, sorted within pools of eight batches, shuffled again."""
    order = torch.randperm(len(texts), generator=generator).tolist()
    pools = [order[k : k + 8 * size] for k in range(0, len(order), 8 * size)]
    order = [row for pool in pools for row in sorted(pool, key=lambda r: len(texts.ids[r]))]
    batches = [order[k : k + size] for k in range(0, len(order), size)]
    return [batches[k] for k in torch.randperm(len(batches), generator=generator)]


@torch.no_grad()
def embeddings(encoder: nn.Module, texts: Texts, size: int = 64) -> Tensor:
    """[n, 384], in the order of texts; sorted by length inside, so that little padding is computed."""
    order = sorted(range(len(texts)), key=lambda r: len(texts.ids[r]))
    out = torch.empty(len(texts), WIDTH)
    for k in range(0, len(order), size):
        rows = order[k : k + size]
        out[rows] = embed(encoder, texts.batch(rows))
    return out


def ridge(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> nn.Linear:
    """The linear map from x [n, d] to y [n, k] of least squares; its ridge chosen by the squared error on held."""
    x, y, held_x, held_y = (t.double() for t in (x, y, held_x, held_y))
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram, moment = (x - mean_x).T @ (x - mean_x) / len(y), (x - mean_x).T @ (y - mean_y) / len(y)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    solutions = [torch.linalg.solve(gram + strength * eye, moment) for strength in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
    w = min(solutions, key=lambda w: float(((held_x - mean_x) @ w + mean_y - held_y).square().sum()))
    head = nn.Linear(*w.shape)
    with torch.no_grad():
        head.weight.copy_(w.T)
        head.bias.copy_(mean_y - mean_x @ w)
    return head


def solve_head(encoder: nn.Module, train: Texts, validation: Texts) -> nn.Linear:
    """The best linear head on the frozen encoder's embeddings."""
    x, held = embeddings(encoder, train), embeddings(encoder, validation)
    return ridge(x, train.ratings[:, None], held, validation.ratings[:, None])


def correlation(predicted: Tensor, ratings: Tensor) -> float:
    return float(stats.pearsonr(predicted.numpy(), ratings.numpy()).statistic)


def quality(predicted: Tensor, ratings: Tensor) -> dict[str, float]:
    """Agreement of predicted ratings with the human ones, both [n]; sign: over the clearly rated snippets only."""
    clear = ratings.abs() >= CLEAR
    return {
        "spearman": float(stats.spearmanr(predicted.numpy(), ratings.numpy()).statistic),
        "pearson": correlation(predicted, ratings),
        "sign": float((predicted[clear].sign() == ratings[clear].sign()).float().mean()),
    }


@contextmanager
def adapted(encoder: nn.Module, method: Method, seed: int = 0, state: dict[str, Tensor] | None = None):
    """The encoder with a fresh adapter in it, or with the trained ``state``; without it again on leaving."""
    if method.config is None:
        yield encoder
        return
    torch.manual_seed(seed)  # LoRA starts from random numbers
    if isinstance(method.config, RoadLoraConfig):
        road_lora.wrap(encoder, method.config)
        if state is not None:
            encoder.load_state_dict(state, strict=False)
        try:
            yield encoder.eval()
        finally:
            road_lora.unwrap(encoder)
        return
    model = get_peft_model(encoder, copy.deepcopy(method.config))
    if state is not None:
        set_peft_model_state_dict(model, state)
    try:
        # Dropout stays off for every method alike: a run sees each text once.
        yield model.eval()
    finally:
        model.unload()
        encoder.requires_grad_(False)


def finetune(encoder: nn.Module, method: Method, domain: Domain, rate: float, seed: int, progress=None) -> Trained:
    """One pass over the training part by Adam on the squared error, the rate warmed up and then falling to zero.

    The seed sets the order of the batches and the adapter's start. ``progress`` is updated by the texts seen.
    """
    texts, head = domain.train, copy.deepcopy(domain.head)
    batches = shuffled_batches(texts, torch.Generator().manual_seed(seed))
    warmup = max(1, len(batches) // 10)
    with adapted(encoder, method, seed) as model:
        adapter = [p for p in model.parameters() if p.requires_grad]
        groups = [{"params": head.parameters(), "lr": HEAD_RATE}]
        for name, p in model.named_parameters():
            if p.requires_grad:
                faster = method.road_factor if name.endswith((".theta", ".alpha")) else 1
                groups.append({"params": [p], "lr": rate * faster})
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: min((k + 1) / warmup, (len(batches) - k) / max(1, len(batches) - warmup))
        )
        scale = float(texts.ratings.var())

        def loss(rows: list[int]) -> Tensor:
            predicted = head(embed(model, texts.batch(rows))).squeeze(-1)
            return nn.functional.mse_loss(predicted, texts.ratings[rows]) / scale

        with PeakMemory() as memory:
            start = time.perf_counter()
            for rows in batches:
                optimizer.zero_grad()
                loss(rows).backward()
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress.update(len(rows))
            seconds = time.perf_counter() - start
        road_and_lora = isinstance(method.config, RoadLoraConfig)
        state = road_lora.state_of(model) if road_and_lora else get_peft_model_state_dict(model)
        state = {name: p.detach().clone() for name, p in state.items()}
    return Trained(state, head, sum(p.numel() for p in adapter), seconds, memory.peak_mib)


@torch.no_grad()
def evaluate(encoder: nn.Module, method: Method, trained: Trained, texts: Texts) -> dict[str, float]:
    with adapted(encoder, method, state=trained.state) as model:
        return quality(trained.head(embeddings(model, texts)).squeeze(-1), texts.ratings)
