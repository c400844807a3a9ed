"""The writes of an AdapterBank, one at a time: which slot, in which order, and what an error leaves behind."""

import logging
import os
import threading
from collections.abc import Sequence

from .adapter import Adapter
from .bank_rows import Rows
from .bank_tables import BankTables
from .slots import Slots

logger = logging.getLogger(__name__)


class BankFullError(RuntimeError):
    """No slot is free: evict an adapter, or wait for the batches that still hold evicted ones."""


class BankWriter:
    """load, replace, update and evict as in AdapterBank. Only slots that nobody has pinned are written."""

    def __init__(self, store: BankTables, slots: Slots, capacity: int):
        self._store, self._slots, self._capacity = store, slots, capacity
        self.lock = threading.Lock()

    def load(self, name: str, adapter, partial: bool) -> int:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {type(name).__name__}")
        with self.lock:
            if name in self._slots.by_name:
                raise ValueError(f"an adapter named {name!r} is loaded: use replace, or evict it first")
            return self._fill_a_slot(name, self._rows_of(adapter, partial))

    def replace(self, name: str, adapter, partial: bool) -> int:
        with self.lock:
            self._slots.look_up((name,))
            return self._fill_a_slot(name, self._rows_of(adapter, partial))

    def update(self, name: str, layers, form: str | None, partial: bool) -> int:
        with self.lock:
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
        with self.lock:
            self.clear(self._slots.remove(name))
        logger.debug("evicted %r", name)

    def clear(self, slots: Sequence[int]) -> None:
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
                f"no slot of {self._capacity} is free for {name!r}"
                + (f" ({needs})" if needs else "")
                + (f": {held} of them evicted but still held" if held else "")
            )
        try:
            if below is not None:
                self._store.write(slot, below)
            self._store.write(slot, rows)
        except BaseException:
            self.clear([slot])
            raise
        self.clear(self._slots.publish(name, slot))
        logger.debug("wrote %r to slot %d, %d of %d are free", name, slot, len(self._slots.free), self._capacity)
        return slot
