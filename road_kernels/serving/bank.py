"""AdapterBank: the adapters that a server has loaded, in slots that its batches refer to by index."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..functional import rotate_batched
from . import bank_ids
from .bank_layer import BankLayer
from .bank_tables import BankTables
from .bank_writer import BankWriter
from .layer_names import some


class AdapterBank(BankWriter):
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
        packed: name -> layers whose outputs are columns of one tensor, in this order ({"qkv": ["q", "k", "v"]}): their
            tables lie side by side, and ``tables``, ``layer`` and ``rotate`` also take that name, for all columns at
            once. Adapters are still loaded and updated by the names of the layers.
        device, dtype: of the tables. Two bytes an entry halve the memory: the rms error of a bfloat16 result, in units
            of the result, is 1.7e-3 with float32 tables, 1.7e-3 with float16 and 2.4e-3 with bfloat16.

    Empty slots are the identity: r1 = 1, r2 = 0. Their numbers pass rows bit for bit, finite or not, as -1 does. Ids
    that the bank makes (``ids``, ``hold``, ``ids_of_slots``) are -1 where there is no adapter: in place, such rows are
    not even read.

    Loading and updating compute and check everything first, and refuse an adapter without changing the bank.

    Threads: any number may read (``ids``, ``hold``, ``rotate``, ``tables``) while others write (``load``,
    ``replace``, ``update``, ``evict``). No slot is written that a ``hold`` is open on, so a batch inside ``with
    bank.hold(names) as ids`` sees its adapters unchanged, whatever is evicted, replaced or updated meanwhile. Plain
    ``ids`` suffice where the same thread writes between its steps.

    Copies of a bank, deep or not, and what is unpickled (by ``torch.load`` with ``weights_only=True`` too) have the
    same adapters in the same slots, and memory, locks and holds of their own. ``map_location`` decides on the device.

    CUDA streams: copies and resets run on the current stream of the calling thread; only ``update`` with tensors of
    the device synchronises. Threads that share a stream, as they do by default, need nothing. A thread that loads on
    its own stream must order the two: ``loading.wait_stream(serving)`` before it writes,
    ``serving.wait_stream(loading)`` before the new ids are used.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        capacity: int,
        *,
        group_size: int = 64,
        compact: bool = True,
        packed: Mapping[str, Sequence[str]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            raise TypeError(f"capacity must be an int, got {type(capacity).__name__}")
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, got {capacity}")
        super().__init__(BankTables(widths, capacity, group_size, compact, device, dtype, packed), capacity)
        self.widths, self.group_size, self.compact = self._store.widths, group_size, bool(compact)
        self.device, self.dtype = self._store.device, dtype
        self._tables = {**self._store.by_layer, **self._store.of_packed}

    def __reduce__(self):
        with self._lock:
            by_name = dict(self._slots.by_name)
            rows = self._store.read(list(by_name.values()))
        about = dict(self.widths), self.capacity, self.group_size, self.compact
        return _restore, (*about, by_name, rows, dict(self._store.packed))

    def tables(self, layer: str) -> tuple[Tensor, Tensor]:
        """(r1, r2) of a layer, or of packed ones, [capacity, D/2] or [capacity, D]: the tables, to be read only."""
        try:
            return self._tables[layer]
        except KeyError:
            raise self._no_layer(layer) from None

    def layer(self, name: str) -> BankLayer:
        """A handle on a layer, for the loop that runs it in every step: ``bank.layer("q").rotate(h, ids)``.

        Valid as long as the bank: it sees every later write. Raises KeyError for a layer that
        the bank does not have.
        """
        return BankLayer(self, name)

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

        The ids are valid until one of the names is evicted or replaced, or updated while a ``hold`` is open on it; see
        ``hold``.

        Raises:
            KeyError: an adapter that is not loaded. TypeError, ValueError: ``out`` does not fit.
        """
        return bank_ids.to_device(self._slots.look_up(names), out, self.device)

    @contextmanager
    def hold(self, names: Sequence[str | None], *, out: Tensor | None = None) -> Iterator[Tensor]:
        """``with bank.hold(names) as ids``: as ``ids``, and their slots are not written before the block ends."""
        slots = self._slots.pin(names)
        try:
            yield bank_ids.to_device(slots, out, self.device)
        finally:
            self._clear(self._slots.release(slots))

    def ids_of_slots(self, slots: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``slots`` with -1 in place of the number of every empty slot, whose rows then pass bit for bit.

        For servers that keep slot numbers in a tensor of their own: once a step, not once a layer. A slot that a
        ``hold`` is open on is not empty. Nothing is read back from a GPU, so it can be captured in a CUDA graph.

        Args:
            slots: int32 or int64 [...] on the bank's device, -1 .. capacity - 1.
            out: of the shape of ``slots``, int32 or int64, filled and returned; may be ``slots`` itself.

        Raises:
            TypeError, ValueError: not such tensors. IndexError: another number (on a GPU: a device-side assertion).
        """
        return bank_ids.of_slots(slots, self._store.filled, out)

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

    def _no_layer(self, layer: str) -> KeyError:
        return KeyError(f"no layer {layer!r} in this bank: it has {some(self.widths)}")


def _restore(widths, capacity: int, group_size: int, compact: bool, by_name, rows: Tensor, packed=None):
    """The bank whose __reduce__ gave these. What comes from a file is checked."""
    tables = {"compact": compact, "packed": packed, "device": rows.device, "dtype": rows.dtype}
    bank = AdapterBank(widths, capacity, group_size=group_size, **tables)
    slots = list(by_name.values())
    if len(set(slots)) < len(slots) or not set(slots) <= set(range(capacity)):
        raise ValueError(f"a bank of {capacity} slots cannot hold adapters in the slots {slots}")
    bank._store.restore(slots, rows)
    bank._slots.restore(by_name)
    return bank


# Unpickling them calls _restore and the constructor of BankLayer, which check and run nothing else.
torch.serialization.add_safe_globals([_restore])
