"""The examples: their data, how they split it, what they measure, and both programs from end to end."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from examples import reporting
from examples.composition import halves
from examples.composition import report as composition_report
from examples.sentiment import data, fetch, memory, train
from examples.sentiment import report as sentiment_report

ROOT = Path(__file__).parents[2]


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sdist_of(files, folder):
    inner = tar_of({f"hutto_ICWSM_2014/{name}": content for name, content in files.items()})
    path = folder / "sdist.tar.gz"
    path.write_bytes(tar_of({f"vaderSentiment-3.3.2/{data.ARCHIVE}": inner}))
    return path


GOOD = {
    name: b"1_1\t-0.9\tno picture.\r\n\r\n1_2\t0.1\t'' .\r\n2_1\t1.5\ta  fine caf\xc3\xa9 \r\n"
    for name in data.FILES.values()
}


def test_reads_the_files_out_of_the_nested_archive(tmp_path):
    snippets = data.read(sdist_of(GOOD, tmp_path))
    assert tuple(snippets) == data.DOMAINS
    want = [data.Snippet("no picture.", -0.9, "1"), data.Snippet("a  fine café", 1.5, "2")]
    assert snippets["news"] == want  # the snippet without words is left out


def test_refuses_an_archive_with_a_file_missing(tmp_path):
    files = {name: content for name, content in GOOD.items() if not name.startswith("nyt")}
    with pytest.raises(ValueError, match="has no nytEditorialSnippets_GroundTruth"):
        data.read(sdist_of(files, tmp_path))


@pytest.mark.parametrize("line", ["2\tgood", "2\tgood\ttext", "2\t0.5\ttext\tmore"])
def test_refuses_a_line_by_its_number(line):
    with pytest.raises(ValueError, match="tweets, line 2: needs id, rating and text with tabs, got '2"):
        data.parse(f"1\t0.5\ttext\n{line}", "tweets")


def reviews(count):
    words = [f"w{k}" for k in range(40)]
    generator = torch.Generator().manual_seed(0)
    for review in range(count):
        for _ in range(1 + review % 5):
            chosen = torch.randperm(len(words), generator=generator)[:8]
            yield data.Snippet(" ".join(words[k] for k in chosen), 0.0, str(review))


def parts_of(snippets):
    split = data.split(snippets, 10**6, 10**6, 10**6)
    return split.train, split.validation, split.test


def test_split_keeps_a_review_in_one_part():
    parts = parts_of(list(reviews(200)))
    groups = [{s.group for s in part} for part in parts]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert all(len(part) > 20 for part in parts) and len(parts[0]) > 2 * len(parts[2]) > 2 * len(parts[1])


def test_part_of_a_review_depends_on_no_other_review():
    snippets = list(reviews(200))

    def places(of):
        return {s.group: k for k, part in enumerate(parts_of(of)) for s in part}

    whole, fewer = places(snippets), places(snippets[::-1][:150])
    assert len(fewer) > 30 and all(whole[group] == place for group, place in fewer.items() if group in whole)


def test_split_takes_other_spellings_of_held_out_snippets_out_of_training():
    spellings = [
        "Yay. Another good phone interview.",
        "YAY!! Another good phone interview!!",
        "yay another GOOD interview",
    ]
    snippets = list(reviews(50))
    held = data.split(snippets, 999, 999, 999).test[0].group
    copies = [data.Snippet(text, 1.0, f"copy {k}") for k, text in enumerate(spellings)]
    snippets += [data.Snippet(spellings[0], 1.0, held), *copies, data.Snippet("Yay, another dull day.", 1.0, "other")]
    train_part, validation, test = parts_of(snippets)
    texts = [s.text for s in train_part + validation]
    assert spellings[0] in [s.text for s in test]
    assert not set(texts) & set(spellings)
    assert "Yay, another dull day." in texts + [s.text for s in test]


def test_near_copies_are_counted_over_the_union_of_words():
    held = [data.Snippet("a b c d e", 0.0, "1")]
    keep, drop = data.Snippet("a b c x y", 0.0, "2"), data.Snippet("a b c d", 0.0, "3")  # 3 of 7 and 4 of 5 words
    assert data.without_near_copies([keep, drop], held) == [keep]


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / fetch.SDIST).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is not the archive that this example was written for: sha256"):
        fetch.sdist(tmp_path)


def test_without_a_network_it_says_so_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(SystemExit, match=r"(?s)pip could not download.*is there a network.*vaderSentiment==3\.3\.2"):
        fetch.sdist(tmp_path)
    assert not list(tmp_path.iterdir())


def test_ridge_finds_a_linear_map():
    x, held = torch.randn(200, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    w = torch.randn(6, 3, dtype=torch.float64)
    head = train.ridge(x, x @ w + 2, held, held @ w + 2)
    torch.testing.assert_close(head(held.float()), (held @ w + 2).float(), rtol=1e-3, atol=1e-3)


def test_ridge_is_chosen_on_the_held_out_rows():
    x, held = torch.randn(20, 20), torch.randn(500, 20)
    noise = torch.randn(20, 1)  # nothing to learn: the strongest shrinkage is best
    head = train.ridge(x, noise, held, torch.zeros(500, 1))
    assert head.weight.norm() < 0.5 * torch.linalg.lstsq(x, noise).solution.norm()


def test_quality_by_hand():
    ratings = torch.tensor([-2.0, -0.1, 0.2, 1.0, 3.0])
    predicted = torch.tensor([-1.0, 9.0, 10.0, -1.5, 20.0])
    got = train.quality(predicted, ratings)
    assert got["sign"] == pytest.approx(2 / 3)  # of -2, 1 and 3: the near-neutral ones do not count
    assert got["spearman"] == pytest.approx(0.4)  # ranks 2 3 4 1 5 against 1 2 3 4 5: 1 - 6 * 12 / 120
    assert got["pearson"] == pytest.approx(torch.corrcoef(torch.stack([predicted, ratings]))[0, 1].item(), abs=1e-6)


def test_kept_for_backward_counts_each_storage_once_and_no_parameter():
    layer = torch.nn.Linear(256, 256, bias=False)
    x = torch.randn(1024, 256, requires_grad=True)  # 1 MiB; the layer keeps it and its weight, the square keeps y
    assert memory.kept_for_backward(lambda: layer(x).square(), [layer]) == pytest.approx(2.0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says the peak of a process")
def test_peak_memory_sees_what_was_freed_again():
    with memory.PeakMemory() as peak:
        torch.ones(64 * 2**18).sum()  # 64 MiB
    assert 60 < peak.peak_mib < 100


def tiny_halves():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    model = halves.Halves(BertModel(config, add_pooling_layer=False).eval())
    for p in model.adapters():
        torch.nn.init.normal_(p, 1.0, 0.3)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0], [5, 6, 7, 8], [9, 8, 7, 6]])
    return model, {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_rows_of_a_batch_use_their_own_half():
    model, batch = tiny_halves()
    uses = torch.tensor([halves.A, halves.B, halves.BOTH, halves.NONE])
    mixed = model(batch, uses)[-1]
    for row, use in enumerate(uses):
        alone = model({k: t[row : row + 1, : [4, 3, 4, 4][row]] for k, t in batch.items()}, use.reshape(1))[-1]
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    plain = model(batch, None)[-1]
    assert torch.equal(mixed[3], plain[3])
    assert all(not torch.allclose(mixed[row], plain[row], atol=1e-2) for row in range(3))


@pytest.mark.parametrize("task", [halves.A, halves.B])
def test_only_the_half_in_use_learns(task):
    model, batch = tiny_halves()
    model(batch, torch.full((4,), task))[-1].sin().sum().backward()
    for grad in (p.grad for p in model.adapters()):
        middle = grad.shape[1] // 2
        own = grad[task, :middle] if task == halves.A else grad[task, middle:]
        assert own.count_nonzero() == grad.count_nonzero() > 0


def test_positions_get_the_id_of_their_row():
    got = halves.at_position(torch.tensor([2, -1, 0]), torch.tensor([3, 2, 0]), 4)
    assert got.tolist() == [[-1, -1, -1, 2], [-1] * 4, [0, -1, -1, -1]]


def quick(example, out):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"examples.{example}", "--quick", "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    (path,) = out.glob("*.json")
    assert path.with_suffix(".png").stat().st_size > 5000
    return run.stdout, json.loads(path.read_text())


@pytest.mark.slow
def test_sentiment_runs(tmp_path):
    printed, result = quick("sentiment", tmp_path)
    assert sentiment_report.text(result) in printed
    parameters = {name: m["parameters"] for name, m in result["methods"].items()}
    assert parameters["RoAd1"] == 6 * (5 * 384 + 1536) and parameters["frozen"] == 0
    assert parameters["RoAd4"] == 2 * parameters["RoAd2"] == 4 * parameters["RoAd1"]
    assert all(len(m["domains"]) == 4 for m in result["methods"].values())
    serving = result["serving"]
    assert serving["requests"] == dict.fromkeys([*data.DOMAINS, "__base__"], 2)
    assert all(way["difference"] < 1e-4 for way in serving["ways"].values())
    assert serving["without_adapters"] > 1e-2
    kept = {way: step["kept_mib"] for way, step in result["step"].items()}
    assert kept["RoAd1 on our kernels, in place"] < kept["RoAd1 on our kernels"] < kept["RoAd1, PEFT's own code"]


@pytest.mark.slow
def test_composition_runs(tmp_path):
    printed, result = quick("composition", tmp_path)
    assert composition_report.text(result) in printed
    assert all(list(uses) == list(halves.USES) for uses in result["mixes"].values())
    assert len(result["measures"]["both halves"]["magnitude_change"]) == 7
    assert len(result["checks"]) == 3


@pytest.mark.parametrize("name, report", [("sentiment", sentiment_report), ("composition", composition_report)])
def test_readme_holds_the_newest_results(name, report):
    text = report.text(json.loads(reporting.newest(report.RESULTS).read_text()))
    assert f"<!-- {name} -->\n{text}\n<!-- /{name} -->" in reporting.README.read_text()


@pytest.mark.slow
def test_served_llama_runs(tmp_path):
    command = [sys.executable, ROOT / "examples" / "served_llama.py", "--quick"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "10 of 10 adapters" in run.stdout and "in a ServedLlama that shares the model's weights" in run.stdout
    assert "14 requests equal the model with their adapter merged, token by token" in run.stdout
    assert not list(tmp_path.iterdir())
