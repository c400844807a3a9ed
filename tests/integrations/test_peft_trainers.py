"""Training loops of other libraries on PEFT models with the kernels: the losses are those of PEFT alone."""

import pytest
import torch
from peft import PeftModel, RoadConfig, get_peft_model
from support.peft_models import layers
from support.tiny_llama import adapter, tiny_llama
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from road_kernels.integrations import peft as road_peft

STEPS = 4


def rows() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 64, (4 * STEPS, 12), generator=generator, device="cpu").tolist()
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in tokens]


def settings(folder, **kwargs) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        **kwargs,
    }


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def both(run):
    """run() by PEFT's own code and then on the kernels."""
    torch.manual_seed(0)
    theirs = run()
    with road_peft.enabled():
        torch.manual_seed(0)
        ours = run()
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=2e-4)
    assert ours[0] != ours[-1]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "bf16": True}], ids=["plain", "bf16"])
def test_trainer(tmp_path, options):
    def run():
        model = get_peft_model(tiny_llama(), adapter("road_1", 16))
        trainer = Trainer(model, TrainingArguments(**settings(tmp_path, **options)), train_dataset=rows())
        losses = losses_of(trainer)
        trainer.save_model(str(tmp_path / "saved"))
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "saved")
        for (_, got), (_, want) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
            assert torch.equal(got, want)
        return losses

    if not options:
        return both(run)
    # Rounding in bfloat16 differs from PEFT's, which is in the dtype of the adapter.
    theirs = run()
    with road_peft.enabled():
        assert run() == pytest.approx(theirs, rel=1e-2)


def test_accelerate():
    """Accumulated and clipped gradients, a prepared optimizer and loader."""
    accelerate = pytest.importorskip("accelerate")

    def run():
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = get_peft_model(tiny_llama(), adapter("road_2", 2))
        data = torch.tensor([row["input_ids"] for row in rows()])
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=4)
        trained = [p for p in model.parameters() if p.requires_grad]
        model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(trained, lr=1e-2), loader)
        losses = []
        for (batch,) in loader:
            with accelerator.accumulate(model):
                loss = model(input_ids=batch, labels=batch).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        assert len(layers(accelerator.unwrap_model(model))) == 14
        return losses

    both(run)


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{k}": k for k in range(62)} | {"<eos>": 62, "<pad>": 63}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


def test_sft_trainer(tmp_path):
    """TRL makes the PEFT model itself, from the configuration."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets")
    texts = [{"text": " ".join(f"w{token % 62}" for token in row["input_ids"])} for row in rows()]

    def run():
        trainer = trl.SFTTrainer(
            tiny_llama(),
            args=trl.SFTConfig(**settings(tmp_path, max_length=16, bf16=False)),
            train_dataset=datasets.Dataset.from_list(texts),
            processing_class=tokenizer(),
            peft_config=RoadConfig(group_size=16, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
        assert len(layers(trainer.model)) == 4
        return losses_of(trainer)

    both(run)
