"""Who is in which slot of a bank, safely for threads. No tensor is touched here."""

import threading
from collections import deque
from collections.abc import Sequence


class Slots:
    """Names, free slots and holds. A slot is free, being filled, named, or retired: without a name but still held.

    ``by_name`` is never changed, only replaced, so that readers need no lock. One writer at a time: the caller's
    duty. A slot that ``publish``, ``remove`` or ``release`` returns is nobody's any more: the caller clears it and
    then gives it back.
    """

    def __init__(self, capacity: int):
        self.by_name: dict[str, int] = {}
        # First in, first out: a slot is filled again as late as possible.
        self.free = deque(range(capacity))
        self.retired: set[int] = set()
        self._holds = [0] * capacity
        self._lock = threading.Lock()  # held for moments, never while tensors are written

    def look_up(self, names: Sequence[str | None]) -> list[int]:
        """One slot per name, -1 for None. All from one state of the bank."""
        if isinstance(names, str):
            raise TypeError(f"names must be a sequence of names, got the str {names!r}")
        by_name = self.by_name
        try:
            return [-1 if name is None else by_name[name] for name in names]
        except KeyError as error:
            raise KeyError(f"no adapter named {error.args[0]!r} is loaded") from None

    def hold(self, names: Sequence[str | None]) -> list[int]:
        with self._lock:
            slots = self.look_up(names)
            for slot in set(slots) - {-1}:
                self._holds[slot] += 1
        return slots

    def release(self, slots: list[int]) -> list[int]:
        """Returns those that were retired and that nobody holds any more."""
        with self._lock:
            for slot in set(slots) - {-1}:
                self._holds[slot] -= 1
            done = [slot for slot in self.retired.intersection(slots) if self._holds[slot] == 0]
            self.retired.difference_update(done)
        return done

    def take(self) -> int | None:
        """A free slot, for the caller to fill and to publish; None if there is none."""
        with self._lock:
            return self.free.popleft() if self.free else None

    def give_back(self, slot: int) -> None:
        with self._lock:
            self.free.append(slot)

    def publish(self, name: str, slot: int) -> list[int]:
        """From now on ``name`` means ``slot``. Returns the slot it meant before, unless that is held."""
        with self._lock:
            before = self.by_name.get(name)
            self.by_name = {**self.by_name, name: slot}
            return self._retire(before)

    def remove(self, name: str) -> list[int]:
        with self._lock:
            slot = self.look_up((name,))[0]
            self.by_name = {other: s for other, s in self.by_name.items() if other != name}
            return self._retire(slot)

    def _retire(self, slot: int | None) -> list[int]:
        if slot is None:
            return []
        if self._holds[slot]:
            self.retired.add(slot)
            return []
        return [slot]
