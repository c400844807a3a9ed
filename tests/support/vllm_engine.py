"""An engine of vLLM in this process, with adapters by name, and the comparison with transformers."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from . import vllm_models

# Of the log-probability of a token, in float32; the largest difference seen is 1.1e-5.
TOLERANCE = 2e-5


class Engine:
    """``folder`` is that of vllm_models.make_models; ``options`` are vLLM's own."""

    def __init__(self, folder: Path, **options):
        from vllm import LLM

        self.folder = folder
        self._ids: dict[str, int] = {}
        defaults = {
            "dtype": "float32",
            "max_model_len": 256,
            "max_num_seqs": 8,
            "enable_lora": True,
            # One more than there are adapters: beside LoRA in every slot, vLLM's CPU kernels give a request without an
            # adapter the LoRA of the last one.
            "max_loras": 8,
            "max_lora_rank": 8,
            "skip_tokenizer_init": True,
            "enforce_eager": True,
        }
        self.llm = LLM(str(folder / "base"), **(defaults | options))

    @property
    def manager(self):
        """The worker's manager of adapters."""
        return self.model_runner.lora_manager._adapter_manager

    @property
    def model_runner(self):
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner

    def request(self, name: str | None, **options):
        from vllm.lora.request import LoRARequest

        if name is None:
            return None
        return LoRARequest(name, self._ids.setdefault(name, len(self._ids) + 1), str(self.folder / name), **options)

    def run(self, prompts: Sequence[list[int]], names: Sequence[str | None], count: int, **sampling) -> list:
        """The results of one batch: each prompt continued by ``count`` tokens, greedily unless ``sampling`` differs."""
        return self.llm.generate(
            [{"prompt_token_ids": p} for p in prompts],
            self.sampling(count, **sampling),
            lora_request=[self.request(name) for name in names],
            use_tqdm=False,
        )

    @staticmethod
    def sampling(count: int, **options):
        from vllm import SamplingParams

        defaults = {"temperature": 0, "max_tokens": count, "detokenize": False, "ignore_eos": True, "logprobs": 1}
        return SamplingParams(**(defaults | options))

    def check(self, prompts: Sequence[list[int]], names: Sequence[str | None], count: int) -> None:
        """One batch of greedy requests gives the tokens and log-probabilities of transformers."""
        for prompt, name, result in zip(prompts, names, self.run(prompts, names, count), strict=True):
            check_result(self.folder, prompt, name, result.outputs[0])

    def bits(self, prompts: Sequence[list[int]], names: Sequence[str | None], count: int) -> list:
        """Tokens and log-probabilities as they are, to be compared bit for bit."""
        outputs = [result.outputs[0] for result in self.run(prompts, names, count)]
        return [
            [[token, at[token].logprob] for at, token in zip(o.logprobs, o.token_ids, strict=True)] for o in outputs
        ]


def check_result(folder: Path, prompt: list[int], name: str | None, output, model=None) -> None:
    """``model``: transformers' model with the adapter merged, if it is not the checkpoint of that name."""
    model = model or vllm_models.merged(folder, name)
    tokens, logprobs = vllm_models.continuation(model, prompt, len(output.token_ids))
    assert list(output.token_ids) == tokens, f"{name} after {prompt}"
    got = [at[token].logprob for at, token in zip(output.logprobs, tokens, strict=True)]
    assert got == pytest.approx(logprobs, abs=TOLERANCE), name


@contextlib.contextmanager
def engine(folder: Path, **options) -> Iterator[Engine]:
    made = Engine(folder, **options)
    try:
        yield made
    finally:
        stop(made.llm)


def stop(llm) -> None:
    """Ends an engine of this process, so that another can start."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def without_plugin(folder: Path, options: dict, prompts: Sequence[list[int]], count: int) -> list:
    """Engine(folder, **options).bits of requests without adapters, in a process where vLLM loads no plugins."""
    command = [sys.executable, "-m", "support.vllm_engine", str(folder), json.dumps([options, prompts, count])]
    run = subprocess.run(
        command,
        env=os.environ | {"VLLM_PLUGINS": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def _main() -> None:
    folder, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])
    options, prompts, count = arguments
    with engine(folder, **options) as made:
        assert "Road" not in type(made.manager).__name__
        found = made.bits(prompts, [None] * len(prompts), count)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
