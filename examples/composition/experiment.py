"""Sentiment (task A) and telling where a snippet is from (task B): trained together, evaluated in every combination."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

import road_kernels as rk
from examples.sentiment import data, train
from examples.sentiment.fetch import sdist
from examples.sentiment.model import Texts, load_encoder, load_tokenizer, tokenize

from .halves import BOTH, NONE, USES, A, B, Halves

# Which rows a batch is made of, in equal parts. Without BOTH, "both halves" is a combination never seen in training.
MIXES = {"rows of A and of B": (A, B), "rows of A, of B and of both": (A, B, BOTH)}


@dataclass(frozen=True)
class Plan:
    train: int  # snippets of each domain, at most
    validation: int
    test: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]


FULL = Plan(400, 100, 200, (0, 1, 2), (1e-2, 3e-2, 1e-1, 3e-1))
QUICK = Plan(12, 12, 12, (0,), (3e-2,))  # shows that everything runs, nothing about quality


# Zero is meant: the bank has the identity there. Alone, a row has other padding: float32 rounding through six layers.
LIMITS = {
    "gradient outside the half that the rows used": 0.0,
    "row without an adapter against the plain encoder": 0.0,
    "row of a mixed batch against itself alone": 1e-4,
}


@dataclass(frozen=True)
class Part:
    texts: Texts
    ratings: Tensor  # [n, 1], what task A predicts
    origins: Tensor  # [n, 4], one-hot over the domains, what task B predicts


@dataclass
class Tasks:
    """The model with a head for each task, both reading the last token."""

    model: Halves
    heads: dict[int, nn.Linear]

    def predict(self, part: Part, use: int | None, size: int = 64) -> tuple[dict[int, Tensor], Tensor]:
        """Both tasks' predictions with every row on the adapter ``use``, and the hidden states [layers, n, 384]."""
        order = sorted(range(len(part.texts)), key=lambda r: len(part.texts.ids[r]))
        hidden: Tensor | None = None
        with torch.no_grad():
            for k in range(0, len(order), size):
                rows = order[k : k + size]
                uses = None if use is None else torch.full((len(rows),), use)
                states = torch.stack(self.model(part.texts.batch(rows), uses))
                hidden = torch.empty(len(states), len(order), states.shape[-1]) if hidden is None else hidden
                hidden[:, rows] = states
            return {task: head(hidden[-1]) for task, head in self.heads.items()}, hidden


def prepare(plan: Plan) -> dict[str, Part]:
    tokenizer, snippets = load_tokenizer(), data.read(sdist())
    splits = [data.split(snippets[d], plan.train, plan.validation, plan.test) for d in data.DOMAINS]
    parts = {}
    for name in ("train", "validation", "test"):
        chosen = [getattr(split, name) for split in splits]
        texts = tokenize(tokenizer, [s for part in chosen for s in part])
        origin = torch.cat([torch.full((len(part),), k) for k, part in enumerate(chosen)])
        parts[name] = Part(texts, texts.ratings[:, None], nn.functional.one_hot(origin, len(splits)).float())
    return parts


def start(parts: dict[str, Part]) -> Tasks:
    """Adapters that change nothing yet, and the best heads on the frozen encoder."""
    tasks = Tasks(Halves(load_encoder()), {})
    (x, y), (held, held_y) = ((tasks.predict(p, None)[1][-1], p) for p in (parts["train"], parts["validation"]))
    tasks.heads[A] = train.ridge(x, y.ratings, held, held_y.ratings)
    tasks.heads[B] = train.ridge(x, y.origins, held, held_y.origins)
    return tasks


def scores(predicted: dict[int, Tensor], part: Part) -> dict[str, float]:
    return {
        "spearman": train.quality(predicted[A].squeeze(-1), part.texts.ratings)["spearman"],
        "accuracy": float((predicted[B].argmax(-1) == part.origins.argmax(-1)).float().mean()),
    }


def finetune(tasks: Tasks, part: Part, mix: tuple[int, ...], rate: float, seed: int, progress) -> None:
    """One pass. A row on A's half is there for task A alone, one on B's half for B alone, one on both for both."""
    generator = torch.Generator().manual_seed(seed)
    batches = train.shuffled_batches(part.texts, generator)
    heads = [p for head in tasks.heads.values() for p in head.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": tasks.model.adapters(), "lr": rate}, {"params": heads, "lr": train.HEAD_RATE}]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / len(batches))
    targets = {A: part.ratings, B: part.origins}
    for rows in batches:
        uses = torch.tensor(mix).repeat(len(rows))[: len(rows)][torch.randperm(len(rows), generator=generator)]
        last = tasks.model(part.texts.batch(rows), uses)[-1]
        loss = torch.zeros(())
        for task, target in targets.items():
            takes_part = (uses == task) | (uses == BOTH)
            error = (tasks.heads[task](last) - target[rows]).square().mean(1) / target.var(0).mean()
            loss = loss + error[takes_part].sum() / len(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(len(rows))


def check(tasks: Tasks, part: Part) -> dict[str, float]:
    """What must hold exactly, on the trained model; the largest violation of each."""
    rows, model = list(range(8)), tasks.model
    batch = part.texts.batch(rows)
    uses = torch.tensor([A, B, BOTH, NONE] * 2)
    mixed = model(batch, uses)[-1]
    alone = torch.cat([model(part.texts.batch([r]), uses[r : r + 1])[-1] for r in rows])

    def gradients(use: int) -> list[Tensor]:
        model.zero_grad()
        model(batch, torch.full((8,), use))[-1].square().sum().backward()
        return [p.grad for p in model.adapters()]

    def other(grad: Tensor, task: int) -> Tensor:
        own = torch.zeros_like(grad, dtype=torch.bool)
        middle = grad.shape[1] // 2
        own[task, slice(0, middle) if task == A else slice(middle, None)] = True
        return grad[~own]

    strays = max(float(other(g, task).abs().max()) for task in (A, B) for g in gradients(task))
    untouched = (mixed - model(batch, None)[-1])[uses == NONE]
    return dict(zip(LIMITS, (strays, float(untouched.abs().max()), float((mixed - alone).abs().max())), strict=True))


def pilot_measures(hidden: dict[str, Tensor]) -> dict[str, dict[str, list[float]]]:
    """Of each way of use, layer by layer, the mean over snippets of the last token's two measures against "none"."""
    base = hidden["none"]
    return {
        use: {
            "magnitude_change": rk.magnitude_change(states, base).mean(1).tolist(),
            "angular_displacement": rk.angular_displacement(states, base).mean(1).tolist(),
        }
        for use, states in hidden.items()
        if use != "none"
    }


def run(plan: Plan) -> dict:
    began = time.perf_counter()
    parts = prepare(plan)
    frozen = start(parts)
    result = {
        "sizes": {name: len(part.texts) for name, part in parts.items()},
        "seeds": len(plan.seeds),
        "frozen": scores(frozen.predict(parts["test"], None)[0], parts["test"]),
        "validation": {},
        "mixes": {name: {use: [] for use in USES} for name in MIXES},
    }
    choosing = len(plan.rates) if len(plan.rates) > 1 else 0
    total = (choosing + len(plan.seeds) * len(MIXES)) * len(parts["train"].texts)
    with tqdm(total=total, unit=" snippets", smoothing=0.05) as progress:

        def trained(name: str, rate: float, seed: int) -> Tasks:
            tasks = start(parts)
            finetune(tasks, parts["train"], MIXES[name], rate, seed, progress)
            return tasks

        rate, first = plan.rates[0], next(iter(MIXES))
        if choosing:  # by each task on its own half, on the validation part: the combination has no say in it
            for candidate in plan.rates:
                progress.set_description(f"choosing a rate: {candidate:g}")
                tasks = trained(first, candidate, plan.seeds[0])
                on = {u: scores(tasks.predict(parts["validation"], u)[0], parts["validation"]) for u in (A, B, BOTH)}
                result["validation"][f"{candidate:g}"] = {
                    "alone": {"spearman": on[A]["spearman"], "accuracy": on[B]["accuracy"]},
                    "both": on[BOTH],
                }
            rate = max(plan.rates, key=lambda r: sum(result["validation"][f"{r:g}"]["alone"].values()))
        for seed in plan.seeds:
            for name in MIXES:
                progress.set_description(f"seed {seed}: {name}")
                tasks, hidden = trained(name, rate, seed), {}
                for use, adapter in USES.items():
                    predicted, hidden[use] = tasks.predict(parts["test"], adapter)
                    result["mixes"][name][use].append(scores(predicted, parts["test"]))
                if name == first and seed == plan.seeds[0]:
                    result["measures"] = pilot_measures(hidden)
                    result["checks"] = check(tasks, parts["test"])
    parameters = sum(p.numel() for p in tasks.model.adapters())
    return result | {
        "rate": rate,
        "parameters_of_a_half": parameters // 4,
        "minutes": (time.perf_counter() - began) / 60,
    }
