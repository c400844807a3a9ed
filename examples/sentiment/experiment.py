"""The whole comparison: sizes, choice of learning rates, runs over domains and seeds, and the cost of one step."""

import gc
import statistics
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from road_kernels.integrations import peft as road_peft

from . import data, train
from .fetch import sdist
from .memory import kept_for_backward
from .model import METHODS, Texts, embed, load_encoder, load_tokenizer, tokenize
from .serve import BASE, Requests, serve

SERVED = "RoAd1"


@dataclass(frozen=True)
class Plan:
    train: int  # snippets of each domain, at most
    validation: int
    test: int
    seeds: tuple[int, ...]
    rate_domains: tuple[str, ...]  # where learning rates are chosen (by their validation parts); the rest reuses them
    requests: int  # of each domain, in the mixed batch
    rounds: int  # of timing


FULL = Plan(800, 300, 600, (0, 1, 2), ("tweets", "news"), 6, 15)
# Shows that everything runs: too short to say anything about quality, and the middle learning rate unchosen.
QUICK = Plan(24, 24, 24, (0,), (), 2, 1)


def prepare(plan: Plan, encoder: nn.Module) -> dict[str, train.Domain]:
    tokenizer, domains = load_tokenizer(), {}
    for name, snippets in tqdm(data.read(sdist()).items(), desc="data and frozen encoder"):
        parts = data.split(snippets, plan.train, plan.validation, plan.test)
        texts = [tokenize(tokenizer, part) for part in (parts.train, parts.validation, parts.test)]
        domains[name] = train.Domain(*texts, head=train.solve_head(encoder, texts[0], texts[1]))
    return domains


def choose_rates(plan: Plan, encoder, domains, methods, progress) -> tuple[dict[str, float], dict, dict]:
    """For each method the rate with the best mean validation correlation over rate_domains, with the first seed.

    Returns the chosen rates, all validation figures, and the runs made, by (method, domain, seed, rate).
    """
    chosen, figures, runs = {}, {}, {}
    for method in methods:
        m = METHODS[method]
        chosen[method], figures[method] = m.rates[len(m.rates) // 2], {}
        for rate in m.rates if plan.rate_domains else ():
            scores = []
            for name in plan.rate_domains:
                progress.set_description(f"choosing a rate: {method} {rate:g} on {name}")
                run = train.finetune(encoder, m, domains[name], rate, plan.seeds[0], progress)
                runs[method, name, plan.seeds[0], rate] = run
                scores.append(train.evaluate(encoder, m, run, domains[name].validation)["pearson"])
            figures[method][f"{rate:g}"] = statistics.mean(scores)
        if figures[method]:
            chosen[method] = max(m.rates, key=lambda rate: figures[method][f"{rate:g}"])
    return chosen, figures, runs


def compare(plan: Plan, encoder, domains, adapters: Path, methods=METHODS) -> dict[str, dict]:
    """Every method on every domain and seed, the methods in turn so that a busy machine slows all of them alike."""
    trainable = [name for name in methods if METHODS[name].rates]
    again = len(domains) * len(plan.seeds) - len(plan.rate_domains)  # the first seed's best run is not repeated
    per_method = sum(len(METHODS[name].rates) for name in trainable) * len(plan.rate_domains) + len(trainable) * again
    result = {name: {"parameters": 0, "domains": {d: [] for d in domains}} for name in methods}
    for name, domain in domains.items() if "frozen" in methods else ():
        with torch.no_grad():
            predicted = domain.head(train.embeddings(encoder, domain.test)).squeeze(-1)
        result["frozen"]["domains"][name].append(train.quality(predicted, domain.test.ratings))
    with tqdm(total=per_method * plan.train, unit=" snippets", smoothing=0.05) as progress:
        rates, figures, runs = choose_rates(plan, encoder, domains, trainable, progress)
        runs = {key[:3]: run for key, run in runs.items() if key[3] == rates[key[0]]}
        for seed in plan.seeds:
            for name, domain in domains.items():
                for method in trainable:
                    progress.set_description(f"seed {seed}: {method} on {name}")
                    key = (method, name, seed)
                    if key not in runs:
                        runs[key] = train.finetune(encoder, METHODS[method], domain, rates[method], seed, progress)
                    score = train.evaluate(encoder, METHODS[method], runs[key], domain.test)
                    result[method]["domains"][name].append(score)
                    if method == SERVED and seed == plan.seeds[0]:
                        save(runs[key], adapters / name)
    for method in trainable:
        mine = [run for key, run in runs.items() if key[0] == method]
        peaks = [run.peak_mib for run in mine if run.peak_mib is not None]
        result[method] |= {
            "parameters": mine[0].parameters,
            "rate": rates[method],
            "validation": figures[method],
            "seconds": statistics.median(run.seconds for run in mine),
            "peak_mib": max(peaks) if peaks else None,
        }
    return result


def save(run: train.Trained, folder: Path) -> None:
    """As PEFT's save_pretrained does, with the head beside the adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    METHODS[SERVED].config.save_pretrained(folder)
    save_file(run.state, folder / "adapter_model.safetensors")
    save_file(dict(run.head.state_dict()), folder / "head.safetensors")


def step_cost(texts: Texts, rounds: int) -> dict[str, dict]:
    """Forward and backward of one batch, the longest texts, for every way of adapting; the ways interleaved."""
    batch = texts.batch(sorted(range(len(texts)), key=lambda r: -len(texts.ids[r]))[: train.BATCH])
    ways = {
        "RoAd1 on our kernels, in place": ("RoAd1", partial(road_peft.enabled, inplace=True)),
        "RoAd1 on our kernels": ("RoAd1", road_peft.enabled),
        "RoAd1, PEFT's own code": ("RoAd1", nullcontext),
        "LoRA": ("LoRA", nullcontext),
        "IA3": ("IA3", nullcontext),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    kept = {}
    with ExitStack() as stack:
        models = {m: stack.enter_context(train.adapted(load_encoder(), METHODS[m])) for m in ("RoAd1", "LoRA", "IA3")}
        for k in range(rounds + 1):
            for way, (method, context) in ways.items():
                with context():
                    start = time.perf_counter()
                    embed(models[method], batch).square().sum().backward()
                    times[way] += [1e3 * (time.perf_counter() - start)] if k else []  # the first round warms up
                    if not k:
                        kept[way] = kept_for_backward(partial(embed, models[method], batch), [models[method]])
    return {way: {"milliseconds": statistics.median(times[way]), "kept_mib": kept[way]} for way in ways}


def serve_mixed(plan: Plan, domains: dict[str, train.Domain], adapters: Path) -> dict:
    """Requests of all domains and some without an adapter, in turn; each domain's requests use its adapter and head."""
    texts, names, heads = [], [], []
    for k in range(plan.requests):
        for name, domain in [*domains.items(), (BASE, next(iter(domains.values())))]:
            row = -1 - k if name == BASE else k
            texts.append((domain.test.ids[row], domain.test.ratings[row]))
            names.append(name)
            heads.append(domain.head.state_dict() if name == BASE else load_file(adapters / name / "head.safetensors"))
    requests = Requests(
        Texts([ids for ids, _ in texts], torch.stack([rating for _, rating in texts])),
        names,
        torch.cat([head["weight"] for head in heads]),
        torch.cat([head["bias"] for head in heads]),
    )
    return serve(load_encoder, {name: adapters / name for name in domains}, requests, plan.rounds)


def run_one(plan: Plan, method: str) -> dict:
    """The figures of one method for a result of another run; without times, which are compared within a run only."""
    encoder = load_encoder()
    with road_peft.enabled(inplace=True):
        row = compare(plan, encoder, prepare(plan, encoder), Path(), [method])[method]
    return row | {"seconds": None, "peak_mib": None}


def run(plan: Plan, adapters: Path) -> dict:
    """Everything; the adapters that are served are saved to ``adapters``. Returns what report.py prints and draws."""
    start = time.perf_counter()
    gc.freeze()  # what the imports made is never collected: each of PeakMemory's collections then takes milliseconds
    encoder = load_encoder()
    domains = prepare(plan, encoder)
    # The one line that puts PEFT's RoAd layers on these kernels. In place: the rotation keeps nothing for its backward.
    with road_peft.enabled(inplace=True):
        methods = compare(plan, encoder, domains, adapters)
    return {
        "sizes": {name: [len(d.train), len(d.validation), len(d.test)] for name, d in domains.items()},
        "seeds": len(plan.seeds),
        "rate_domains": plan.rate_domains,
        "methods": methods,
        "step": step_cost(domains["news"].train, plan.rounds),
        "serving": serve_mixed(plan, domains, adapters),
        "minutes": (time.perf_counter() - start) / 60,
    }
