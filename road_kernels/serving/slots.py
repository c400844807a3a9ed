"""The slot table of an AdapterBank: which adapter is in which slot. Thread-safe; touches no tensor."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


class Slots:
    """Names, free slots and pins. A slot is free, being filled, named, or retired: without a name but still pinned.

    ``by_name`` is replaced, never modified, so that readers need no lock. The caller serialises writers. A slot that
    ``publish``, ``remove`` or ``release`` returns is unused: the caller clears it and calls ``give_back``.
    """

    def __init__(self, capacity: int):
        self.by_name: dict[str, int] = {}
        # First in, first out: a slot is reused as late as possible.
        self.free = deque(range(capacity))
        self.retired: set[int] = set()
        self._pins = [0] * capacity
        self._lock = threading.Lock()  # never held while tensors are written
        self._rewriting: int | None = None  # the named slot that a writer rewrites, which pin waits for
        self._rewritten = threading.Condition(self._lock)

    def restore(self, by_name: Mapping[str, int]) -> None:
        """Of a new table: takes these names with their slots, which the caller has checked and filled."""
        self.by_name = dict(by_name)
        self.free = deque(slot for slot in self.free if slot not in set(by_name.values()))

    def look_up(self, names: Sequence[str | None]) -> list[int]:
        """One slot per name, -1 for None; all from one state of the table."""
        if isinstance(names, str):
            raise TypeError(f"names must be a sequence of names, got the str {names!r}")
        by_name = self.by_name
        try:
            return [-1 if name is None else by_name[name] for name in names]
        except KeyError as error:
            raise KeyError(f"no adapter named {error.args[0]!r} is loaded") from None

    def pin(self, names: Sequence[str | None]) -> list[int]:
        """As look_up; a pinned slot is neither cleared nor rewritten before it is released."""
        with self._lock:
            slots = self.look_up(names)
            while self._rewriting in slots:
                self._rewritten.wait()
                slots = self.look_up(names)
            for slot in set(slots) - {-1}:
                self._pins[slot] += 1
        return slots

    def release(self, slots: list[int]) -> list[int]:
        """Returns the retired slots that this leaves without a pin."""
        with self._lock:
            for slot in set(slots) - {-1}:
                self._pins[slot] -= 1
            done = [slot for slot in self.retired.intersection(slots) if self._pins[slot] == 0]
            self.retired.difference_update(done)
        return done

    @contextmanager
    def rewrite(self, name: str) -> Iterator[int | None]:
        """The slot of a loaded name, not to be pinned before the block ends; or None: it is pinned already."""
        with self._lock:
            slot = self.look_up((name,))[0]
            if not self._pins[slot]:
                self._rewriting = slot
        try:
            yield self._rewriting
        finally:
            with self._lock:
                self._rewriting = None
                self._rewritten.notify_all()

    def take(self) -> int | None:
        """A free slot for the caller to fill and publish, or None."""
        with self._lock:
            return self.free.popleft() if self.free else None

    def give_back(self, slot: int) -> None:
        with self._lock:
            self.free.append(slot)

    def publish(self, name: str, slot: int) -> list[int]:
        """Maps ``name`` to ``slot``. Returns the slot it was mapped to before, unless that is pinned."""
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
        if self._pins[slot]:
            self.retired.add(slot)
            return []
        return [slot]
