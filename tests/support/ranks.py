"""Processes of a gloo group that run the same function, as the ranks of a distributed program do."""

import datetime
import functools
import multiprocessing
import os
import tempfile
import traceback

TIME_LIMIT = 60  # seconds for one function; a rank that waits for one that has failed would never end


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
        self.ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        file = tempfile.mktemp(prefix="road_kernels_ranks_")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, file, theirs), daemon=True)
            process.start()
            theirs.close()
            self.ranks.append((process, ours))

    def _answer(self, rank: int):
        _, connection = self.ranks[rank]
        try:
            if connection.poll(TIME_LIMIT):
                return connection.recv()
            return f"no answer after {TIME_LIMIT} s", None
        except EOFError:
            return "the process died", None


def _serve(rank: int, size: int, file: str, connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=TIME_LIMIT)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size, timeout=limit)
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
