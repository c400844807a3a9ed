"""AdapterBank: the adapters that a server has loaded, in slots that its batches refer to by index."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..functional import rotate_batched
from ..ops import checks
from .adapter import Adapter
from .bank_layer import BankLayer
from .bank_tables import BankTables
from .layer_names import some
from .slots import Slots


class BankFullError(RuntimeError):
    """No slot is free: evict an adapter, or wait for the batches that still hold evicted ones."""


class AdapterBank:
    """A fixed number of slots, each with the tables (r1, r2) of one adapter for every layer of a model.

        bank = AdapterBank({"q": 4096, "v": 1024}, capacity=100, device="cuda")
        bank.load("anna", "path/of/a/peft/checkpoint")
        ids = bank.ids(["anna", None, "anna"])                # once a step, one per request
        bank.rotate("q", h, ids, inplace=True)                # in every layer
        q = bank.layer("q")                                   # or: once a layer,
        q.rotate(h, ids, inplace=True)                        # and this in every step

    Args:
        widths: layer name -> D, the output features of the layer that the adapters rotate.
        capacity: how many adapters at once. All memory is allocated here and never reallocated, so the addresses that
            ``tables`` returns stay valid (in a captured CUDA graph too).
        group_size: g of all adapters and all layers.
        compact: tables of [capacity, D/2], for adapters of road_1 only. False: [capacity, D], for every variant.
        device, dtype: of the tables. Two bytes an entry halve the memory: the rms error of a bfloat16 result, in units
            of the result, is 1.7e-3 with float32 tables, 1.7e-3 with float16 and 2.4e-3 with bfloat16.

    A slot without an adapter is the identity: its rows pass bit for bit. Loading computes and checks everything first,
    and refuses an adapter without changing the bank.

    Threads: any number may read (``ids``, ``hold``, ``rotate``, ``tables``) while others write (``load``,
    ``replace``, ``evict``). Only free slots are written. A slot is free once its name is gone and no ``hold`` on it is
    open, so a batch inside ``with bank.hold(names) as ids`` sees its adapters unchanged, whatever is evicted or
    replaced meanwhile. Plain ``ids`` suffice where the same thread writes between its steps.

    CUDA streams: copies and resets run on the current stream of the calling thread, without synchronising. Threads
    that share a stream, as they do by default, need nothing. A thread that loads on its own stream must order the two:
    ``loading.wait_stream(serving)`` before it writes, ``serving.wait_stream(loading)`` before the new ids are used.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        capacity: int,
        *,
        group_size: int = 64,
        compact: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            raise TypeError(f"capacity must be an int, got {type(capacity).__name__}")
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, got {capacity}")
        self.capacity = capacity
        self._store = BankTables(widths, capacity, group_size, compact, device, dtype)
        self.widths, self.group_size, self.compact = self._store.widths, group_size, compact
        self.device, self.dtype = self._store.device, dtype
        self._tables = self._store.by_layer
        self._slots = Slots(capacity)
        self._writing = threading.Lock()

    def tables(self, layer: str) -> tuple[Tensor, Tensor]:
        """(r1, r2) of a layer, [capacity, D/2] or [capacity, D]: the tables themselves, to be read only."""
        try:
            return self._tables[layer]
        except KeyError:
            raise self._no_layer(layer) from None

    def layer(self, name: str) -> BankLayer:
        """A handle on a layer, for the loop that runs it in every step: ``bank.layer("q").rotate(h, ids)``.

        Valid as long as the bank: it sees every later load, replacement and eviction. Raises KeyError for a layer that
        the bank does not have.
        """
        return BankLayer(name, self.tables(name), self.group_size)

    def rotate(
        self,
        layer: str,
        x: Tensor,
        adapter_ids: Tensor,
        *,
        inplace: bool = False,
        overlap: bool = False,
        backend: str | None = None,
    ) -> Tensor:
        """BankLayer.rotate of the layer of that name. Raises KeyError for a layer that the bank does not have."""
        try:
            r1, r2 = self._tables[layer]
        except KeyError:
            raise self._no_layer(layer) from None
        return rotate_batched(
            x, r1, r2, adapter_ids, group_size=self.group_size, inplace=inplace, overlap=overlap, backend=backend
        )

    def ids(self, names: Sequence[str | None], *, out: Tensor | None = None) -> Tensor:
        """The slots of the named adapters, int32 [len(names)] on the bank's device; None becomes -1, no adapter.

        Args:
            out: int32 or int64 [N], N >= len(names), on the bank's device: filled, with -1 after the names, and
                returned. For CUDA graphs, which read the same memory at every replay.

        The ids are valid until one of the names is evicted or replaced; see ``hold``.

        Raises:
            KeyError: an adapter that is not loaded. TypeError, ValueError: ``out`` does not fit.
        """
        return self._to_device(self._slots.look_up(names), out)

    @contextmanager
    def hold(self, names: Sequence[str | None], *, out: Tensor | None = None) -> Iterator[Tensor]:
        """``with bank.hold(names) as ids``: as ``ids``, and their slots are not written before the block ends."""
        slots = self._slots.pin(names)
        try:
            yield self._to_device(slots, out)
        finally:
            self._clear(self._slots.release(slots))

    def slot(self, name: str) -> int:
        """The slot of a loaded adapter. Raises KeyError for another."""
        return self._slots.look_up((name,))[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The loaded adapters, in the order of their loading."""
        return tuple(self._slots.by_name)

    @property
    def free(self) -> int:
        """How many slots ``load`` and ``replace`` can take now; not those of evicted adapters that are still held."""
        return len(self._slots.free)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables, the same however many adapters are loaded."""
        return sum(table.nbytes for pair in self._store.by_layer.values() for table in pair)

    def __contains__(self, name: object) -> bool:
        return name in self._slots.by_name

    def __len__(self) -> int:
        return len(self._slots.by_name)

    def __repr__(self) -> str:
        return (
            f"AdapterBank({len(self)} of {self.capacity} adapters, {len(self.widths)} layers, {self.nbytes} bytes of "
            f"{'compact ' if self.compact else ''}{self.dtype} tables on {self.device})"
        )

    def load(self, name: str, adapter: Adapter | str | os.PathLike, *, partial: bool = False) -> int:
        """Puts an adapter into a free slot and returns the slot.

        Args:
            name: not yet loaded.
            adapter: an Adapter, or the folder of a PEFT RoAd checkpoint (see Adapter.from_peft). A layer of it is the
                bank's layer of the same name, or the only one whose name it ends with or that ends with its name
                ("model.layers.0.q_proj" and "layers.0.q_proj").
            partial: allow layers of the bank that the adapter does not have: they stay the identity.

        Raises:
            BankFullError: no slot is free; nothing is evicted automatically.
            ValueError, TypeError, FileNotFoundError: the name is taken, or the adapter does not fit: a layer missing,
                unknown, ambiguous or of another width, another group_size, a variant that compact tables cannot
                hold, a NaN or infinity, a damaged or missing file. The bank is unchanged.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {type(name).__name__}")
        with self._writing:
            if name in self:
                raise ValueError(f"an adapter named {name!r} is loaded: use replace, or evict it first")
            return self._fill_a_slot(name, adapter, partial)

    def replace(self, name: str, adapter: Adapter | str | os.PathLike, *, partial: bool = False) -> int:
        """Gives a loaded name another adapter and returns its new slot. Arguments and errors as in ``load``.

        The new adapter is written to a free slot, then the name is moved, then the old slot is freed: a lookup of the
        name gives the old adapter or the new one, never a mixture. In a full bank: evict, then load.

        Raises KeyError if no adapter of that name is loaded.
        """
        with self._writing:
            self.slot(name)
            return self._fill_a_slot(name, adapter, partial)

    def evict(self, name: str) -> None:
        """Removes an adapter. Its slot becomes the identity and free, at once or when the last ``hold`` on it ends.

        Raises KeyError if no adapter of that name is loaded.
        """
        with self._writing:
            self._clear(self._slots.remove(name))

    def _no_layer(self, layer: str) -> KeyError:
        return KeyError(f"no layer {layer!r} in this bank: it has {some(self.widths)}")

    def _fill_a_slot(self, name: str, adapter, partial: bool) -> int:
        if isinstance(adapter, (str, os.PathLike)):
            adapter = Adapter.from_peft(adapter)
        elif not isinstance(adapter, Adapter):
            raise TypeError(f"adapter must be an Adapter or the path of a checkpoint, got {type(adapter).__name__}")
        rows = self._store.rows_of(adapter, partial)
        slot = self._slots.take()
        if slot is None:
            held = len(self._slots.retired)
            raise BankFullError(
                f"no slot of {self.capacity} is free for {name!r}"
                + (f": {held} of them evicted but still held" if held else "")
            )
        try:
            self._store.write(slot, rows)
        except BaseException:
            self._clear([slot])
            raise
        self._clear(self._slots.publish(name, slot))
        return slot

    def _clear(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._store.write(slot, self._store.identity)
            self._slots.give_back(slot)

    def _to_device(self, slots: list[int], out: Tensor | None) -> Tensor:
        if out is None:
            out = torch.empty(len(slots), dtype=torch.int32, device=self.device)
        elif not isinstance(out, Tensor) or out.dtype not in checks.INTEGERS or out.device != self.device:
            raise TypeError(f"out must be an int32 or int64 tensor on {self.device}, got {_describe(out)}")
        elif out.dim() != 1 or len(out) < len(slots):
            raise ValueError(f"out must be [N] with N >= {len(slots)}, the number of names, got {list(out.shape)}")
        slots = slots + [-1] * (len(out) - len(slots))
        # Pinned memory, so that the copy does not synchronise.
        host = torch.tensor(slots, dtype=out.dtype, device="cpu", pin_memory=self.device.type == "cuda")
        return out.copy_(host, non_blocking=True)


def _describe(value) -> str:
    return f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
