"""The writes of an AdapterBank, one at a time: which slot, in which order, and what an error leaves behind."""

import logging
import os
import threading
from collections.abc import Mapping, Sequence

from torch import Tensor

from .adapter import Adapter
from .bank_rows import Rows
from .bank_tables import BankTables
from .slots import Slots

logger = logging.getLogger(__name__)


class BankFullError(RuntimeError):
    """No slot is free: evict an adapter, or wait for the batches that still hold evicted ones."""


class BankWriter:
    """What AdapterBank writes: load, replace, update and evict. Only slots that nobody has pinned are written."""

    def __init__(self, store: BankTables, capacity: int):
        self.capacity = capacity
        self._store, self._slots = store, Slots(capacity)
        self._lock = threading.Lock()

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
        with self._lock:
            if name in self._slots.by_name:
                raise ValueError(f"an adapter named {name!r} is loaded: use replace, or evict it first")
            return self._fill_a_slot(name, self._rows_of(adapter, partial))

    def replace(self, name: str, adapter: Adapter | str | os.PathLike, *, partial: bool = False) -> int:
        """Gives a loaded name another adapter and returns its new slot. Arguments and errors as in ``load``.

        The new adapter is written to a free slot, then the name is moved, then the old slot is freed: a lookup of the
        name gives the old adapter or the new one, never a mixture. In a full bank: evict, then load.

        Raises KeyError if no adapter of that name is loaded.
        """
        with self._lock:
            self._slots.look_up((name,))
            return self._fill_a_slot(name, self._rows_of(adapter, partial))

    def update(
        self,
        name: str,
        layers: Mapping[str, tuple[Tensor, Tensor]] | Adapter,
        *,
        form: str | None = None,
        partial: bool = False,
    ) -> int:
        """Gives a loaded adapter new values, in its slot, and returns the slot: what a trainer sends every step.

        All layers are computed and checked, then written at once: between two steps of the calling thread, or beside
        other threads. A ``hold`` that opens during the write waits for its end. Where one is open on the adapter, it
        keeps the old values; the new ones go to a free slot, and the name moves there, as in ``replace``.

        Args:
            layers: layer name -> (theta, alpha), or (r1, r2), with names as in ``load``; or an Adapter. Tensors on the
                bank's device are used there, with one synchronisation; others go through the CPU. They must not change
                during the call.
            form: what ``layers`` hold: "road_1" (the default), "road_2" or "road_4" of the bank's group_size, or
                "table": [D/2] or, for a bank that is not compact, [D]. Of an Adapter it is the variant.
            partial: allow layers of the bank to be absent: they keep their values.

        Raises:
            KeyError: no adapter of that name is loaded.
            BankFullError: a running batch holds the adapter, and no slot is free for a second version.
            ValueError, TypeError: as in ``load``. The bank is unchanged after each of these.
        """
        with self._lock:
            before = self._slots.look_up((name,))[0]
            rows = self._store.rows.of_update(layers, form, partial)
            with self._slots.rewrite(name) as slot:
                if slot is not None:
                    self._write_whole(slot, rows)
                    logger.debug("updated %r in slot %d", name, slot)
                    return slot
            # A running batch holds the slot: the new version gets another one, with the layers that did not change.
            below = None if len(rows.layers) == len(self._store.widths) else self._store.read_slot(before)
            return self._fill_a_slot(name, rows, below, "a running batch holds its old values")

    def evict(self, name: str) -> None:
        """Removes an adapter. Its slot becomes the identity and free, at once or when the last ``hold`` on it ends.

        Raises KeyError if no adapter of that name is loaded.
        """
        with self._lock:
            self._clear(self._slots.remove(name))
        logger.debug("evicted %r", name)

    def _clear(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._store.clear(slot)
            self._slots.give_back(slot)

    def _rows_of(self, adapter, partial: bool) -> Rows:
        if isinstance(adapter, (str, os.PathLike)):
            adapter = Adapter.from_peft(adapter)
        elif not isinstance(adapter, Adapter):
            raise TypeError(f"adapter must be an Adapter or the path of a checkpoint, got {type(adapter).__name__}")
        return self._store.rows.of_adapter(adapter, partial)

    def _write_whole(self, slot: int, rows: Rows) -> None:
        try:
            self._store.write(slot, rows)
        except BaseException:  # an interrupt: written to the end, so that no half of an adapter is served
            self._store.write(slot, rows)
            raise

    def _fill_a_slot(self, name: str, rows: Rows, below: Rows | None = None, needs: str = "") -> int:
        """Writes ``rows``, over ``below`` where given, to a free slot and moves the name there."""
        slot = self._slots.take()
        if slot is None:
            held = len(self._slots.retired)
            raise BankFullError(
                f"no slot of {self.capacity} is free for {name!r}"
                + (f" ({needs})" if needs else "")
                + (f": {held} of them evicted but still held" if held else "")
            )
        try:
            if below is not None:
                self._store.write(slot, below)
            self._store.write(slot, rows)
        except BaseException:
            self._clear([slot])
            raise
        self._clear(self._slots.publish(name, slot))
        logger.debug("wrote %r to slot %d, %d of %d are free", name, slot, len(self._slots.free), self.capacity)
        return slot
