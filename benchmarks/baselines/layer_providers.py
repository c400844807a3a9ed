"""The ways to serve a mixed batch through one linear layer: RoAd, LoRA and IA3, each at its best and as usually
implemented. ``prepare`` is what may be in place before the call; ``run`` is the layer with its adapters."""

from functools import partial

import torch
from torch.nn.functional import linear

import road_kernels as rk
from road_kernels import python_fallback

from ..harness.accuracy import rounding
from ..harness.backends import usable_backends
from ..harness.case import Provider
from ..harness.cold_inputs import Inputs
from ..harness.record import PLAIN
from . import formulas

HOST = "lists of Python indices are copied to the device in the call"
SCALING = 2.0  # PEFT multiplies by it in every call; the other ways fold it into the weights


def providers(inputs: Inputs, moved: int, group_size: int, compiled: bool) -> list[Provider]:
    """``moved``: bytes of the layer alone, to which each method adds those of the adapters in use."""
    used = len(set(inputs.names) - {-1})
    width = inputs.weight.shape[0]
    tables = rk.road_tables(inputs.theta[:1], inputs.alpha[:1], group_size=group_size)
    sizes = {  # bytes of one adapter as stored for serving
        "none": 0,
        "RoAd": sum(t.nbytes for t in tables),
        "LoRA": inputs.lora_a[0].nbytes + inputs.lora_b[0].nbytes,
        "IA3": width * inputs.v.element_size(),
    }
    made = [plain(), *road(inputs, group_size, compiled), *lora(inputs), ia3()]
    for p in made:
        family = p.about["family"]
        p.bytes = moved + used * sizes[family]
        p.about = p.about | {"resident_bytes": inputs.theta.shape[0] * sizes[family]}
        # Rounding of y itself, of the product before it, and of the adapter's own products.
        p.tolerance = rounding(inputs.x.dtype, 1 if inputs.x.dtype.itemsize == 2 else 16)
    return made


# ---- expected results in float64, for some requests and tokens


def some_of(y, i: Inputs):
    return y[i.some][:, i.times]


def some_of_sorted(y, i: Inputs):
    return y[torch.argsort(order_of(i))[i.some]][:, i.times]


def expect_plain(i: Inputs):
    return linear(some_of(i.x, i).double(), i.weight.double())


def expect_lora(i: Inputs):
    ids = i.ids[i.some]
    a, b = (bank[ids].double() * (ids != -1)[:, None, None] for bank in (i.lora_a, i.lora_b))
    return expect_plain(i) + some_of(i.x, i).double() @ a.transpose(1, 2) @ b


def expect_ia3(i: Inputs):
    return expect_plain(i) * i.v[i.ids[i.some]].double()[:, None]


def road_expectation(group_size: int):
    def expect(i: Inputs):
        tables = python_fallback.road_tables(i.theta.double(), i.alpha.double(), "road_1", group_size)
        return python_fallback.rotate_batched(expect_plain(i), *tables, i.ids[i.some], group_size)

    return expect


# ---- the layer alone


def plain() -> Provider:
    def run(i):
        return linear(i.x, i.weight)

    return Provider(PLAIN, run, expect_plain, view=some_of, about={"family": "none"})


# ---- RoAd


def road(inputs: Inputs, group_size: int, compiled: bool) -> list[Provider]:
    dtype = inputs.x.dtype
    common = {"expect": road_expectation(group_size), "view": some_of, "about": {"family": "RoAd"}}

    def tables(i):
        return i.x, i.weight, i.ids, *rk.road_tables(i.theta, i.alpha, group_size=group_size)

    def kernel(s, backend):
        x, weight, ids, r1, r2 = s
        return rk.rotate_batched(linear(x, weight), r1, r2, ids, group_size=group_size, inplace=True, backend=backend)

    def coefficients(i):
        """Of all adapters, in the layer's dtype; the last row is for requests without an adapter."""
        first, second = rk.road_tables(i.theta, i.alpha, group_size=group_size)
        first, second = python_fallback.expand_tables(first, second, i.weight.shape[0], group_size)
        none = torch.zeros_like(first[:1])
        return torch.cat((first, none + 1)).to(dtype)[:, None], torch.cat((second, none)).to(dtype)[:, None]

    def stacked(i):
        return i.x, i.weight, *(bank[i.ids] for bank in coefficients(i))

    def formula(s):
        x, weight, first, second = s
        return formulas.eager_formula(linear(x, weight), first, second, group_size)

    def gathered(x, weight, first, second, ids):
        return formulas.eager_formula(linear(x, weight), first[ids], second[ids], group_size)

    def separate(i):
        """PEFT keeps a parameter per adapter, which must have the base layer's dtype or its mixed batch fails."""
        return i, *({a: bank[a].clone() for a in set(i.names) if a != -1} for bank in (i.theta, i.alpha))

    def loop(s):
        i, theta, alpha = s
        y = linear(i.x, i.weight)
        return formulas.road_adapter_by_adapter(y, theta, alpha, i.names, "road_1", group_size)

    fast = [name for name in usable_backends(inputs.x.device) if name != "python"] or ["python"]
    made = [
        Provider(f"RoAd, road_kernels {name}", partial(kernel, backend=name), prepare=tables, ours=True, **common)
        for name in fast
    ]
    made.append(Provider("RoAd, eager formula, coefficients in place", formula, prepare=stacked, **common))
    if compiled:
        run = formulas.compile_afresh(gathered)
        every = lambda i: (i.x, i.weight, *coefficients(i), i.ids)  # noqa: E731
        made.append(Provider("RoAd, formula under torch.compile", lambda s: run(*s), prepare=every, **common))
    made.append(Provider("RoAd, adapter by adapter (PEFT)", loop, prepare=separate, eager_only=HOST, **common))
    return made


# ---- LoRA


def order_of(i: Inputs):
    """Requests sorted by adapter; those without one come last."""
    key = torch.where(i.ids == -1, i.lora_a.shape[0], i.ids)
    return torch.argsort(key, stable=True)


def with_adapter(i: Inputs):
    """(requests with an adapter, or None if all have one; their adapters)."""
    who = (i.ids != -1).nonzero().flatten()
    return (None, i.ids) if len(who) == len(i.ids) else (who, i.ids[who])


def lora(inputs: Inputs) -> list[Provider]:
    common = {"expect": expect_lora, "about": {"family": "LoRA"}}

    def stacked(i, packed_as_peft=False):
        """[R, in, rank] and [R, rank, out] of this batch. Both products run along contiguous memory, which is the
        faster layout on a CPU; in PEFT's layout the second factor is contiguous along the rank."""
        who, ids = with_adapter(i)
        a, b = i.lora_a[ids].transpose(1, 2), i.lora_b[ids]
        return i.x, i.weight, a, b.transpose(1, 2).contiguous().transpose(1, 2) if packed_as_peft else b, who

    def bmm(s):
        x, weight, a, b, who = s
        return formulas.lora_batched(linear(x, weight), x, a, b, who)

    def banks(i):
        return i, *with_adapter(i)

    def gather(s):
        i, who, ids = s
        return formulas.lora_batched(linear(i.x, i.weight), i.x, i.lora_a[ids].transpose(1, 2), i.lora_b[ids], who)

    def separate(i):
        used = set(i.names) - {-1}
        a = {k: i.lora_a[k].clone() for k in used}
        return i, a, {k: (i.lora_b[k] / SCALING).t().contiguous() for k in used}

    def loop(s):
        i, a, b = s
        return formulas.lora_adapter_by_adapter(linear(i.x, i.weight), i.x, a, b, i.names, SCALING)

    def segments(i):
        names = sorted(a for a in i.names if a != -1)
        first = [k for k in range(len(names)) if k == 0 or names[k] != names[k - 1]]
        found = [(s, e, names[s]) for s, e in zip(first, [*first[1:], len(names)], strict=True)]
        used = sorted(set(names))
        return i.x[order_of(i)], i.weight, {k: i.lora_a[k].t() for k in used}, {k: i.lora_b[k] for k in used}, found

    def run_segments(s):
        x, weight, a, b, found = s
        return formulas.lora_segments(linear(x, weight), x, a, b, found)

    def groups(i):
        x, weight, _, _, found = segments(i)
        used = torch.tensor([a for _, _, a in found], device=x.device)
        ends = torch.tensor([e * x.shape[1] for _, e, _ in found], dtype=torch.int32, device=x.device)
        return x, weight, i.lora_a[used].transpose(1, 2), i.lora_b[used], ends, found[-1][1] * x.shape[1]

    def run_groups(s):
        x, weight, *rest = s
        return formulas.lora_grouped(linear(x, weight), x, *rest)

    peft_layout = partial(stacked, packed_as_peft=True)
    made = [
        Provider("LoRA, bmm, weights in place", bmm, prepare=stacked, view=some_of, **common),
        Provider("LoRA, bmm, weights in place, as PEFT packs them", bmm, prepare=peft_layout, view=some_of, **common),
        Provider("LoRA, bmm, weights gathered in the call", gather, prepare=banks, view=some_of, **common),
        Provider("LoRA, sorted segments", run_segments, prepare=segments, view=some_of_sorted, **common),
        Provider("LoRA, adapter by adapter (PEFT)", loop, prepare=separate, view=some_of, eager_only=HOST, **common),
    ]
    if hasattr(torch.nn.functional, "grouped_mm"):  # since torch 2.10; not for every dtype, device and rank
        name = "LoRA, sorted, torch's grouped_mm"
        made.append(Provider(name, run_groups, prepare=groups, view=some_of_sorted, may_fail=True, **common))
    return made


# ---- IA3


def ia3() -> Provider:
    def run(i):
        return linear(i.x, i.weight).mul_(i.v[i.ids][:, None])

    return Provider("IA3, vectors gathered in the call", run, expect_ia3, view=some_of, about={"family": "IA3"})
