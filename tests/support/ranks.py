"""Processes of a gloo group that run the same function, as the ranks of a distributed program do."""

import datetime
import functools
import multiprocessing
import os
import tempfile
import traceback

# Seconds for one function, as a rank that waits for one that has failed would never end; and for processes to start.
TIME_LIMIT, START_LIMIT = 60, 240


class Ranks:
    """``size`` processes, started once: run(f, ...) calls f(rank, ...) in each, f being a function of tests/support.

    A rank that raises or does not answer in time fails the test, and the processes are started anew for the next.
    """

    def __init__(self, size: int):
        self.size, self.ranks = size, []

    def run(self, function, *args, **kwargs) -> list:
        """What each rank returned."""
        if not self.ranks:
            self._start()
        for _, connection in self.ranks:
            connection.send(functools.partial(function, *args, **kwargs))
        answers = [self._answer(rank) for rank in range(self.size)]
        if failed := [(rank, text) for rank, (text, _) in enumerate(answers) if text]:
            self.stop()
            raise AssertionError("\n".join(f"rank {rank} of {self.size}: {text}" for rank, text in failed))
        return [result for _, result in answers]

    def stop(self) -> None:
        for process, _ in self.ranks:
            process.kill()
            process.join()
        if self.ranks:
            self.folder.cleanup()
        self.ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory(prefix="road_kernels_ranks_")
        file = os.path.join(self.folder.name, "store")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, file, theirs), daemon=True)
            process.start()
            theirs.close()
            self.ranks.append((process, ours))
        for rank in range(self.size):
            if text := self._answer(rank, START_LIMIT)[0]:
                self.stop()
                raise AssertionError(f"rank {rank} of {self.size} has not started: {text}")

    def _answer(self, rank: int, limit: float = TIME_LIMIT):
        _, connection = self.ranks[rank]
        try:
            if connection.poll(limit):
                return connection.recv()
            return f"no answer after {limit} s", None
        except EOFError:
            return "the process died", None


def _serve(rank: int, size: int, file: str, connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=START_LIMIT)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size, timeout=limit)
    connection.send((None, None))
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            connection.send((None, call.func(rank, *call.args, **call.keywords)))
        except Exception:
            connection.send((traceback.format_exc(), None))
