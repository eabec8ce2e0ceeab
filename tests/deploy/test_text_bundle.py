"""A model of texts of BERT's shape: cut, saved, audited, exported, served and asked, in one process."""

import json

import numpy as np
import pytest
import torch
from serve_support import running
from torch import nn

import sfumato
from sfumato.cli.main import main
from sfumato.deploy.edge import EdgeClient
from sfumato.deploy.manifest import Manifest
from sfumato.errors import DataError

VOCABULARY, LENGTH, WIDTH = 30, 6, 8


class Bert(nn.Module):
    """Tokens and positions, normalised; layers of attention; a class from the first token."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True, activation="gelu") for _ in range(1))
        )
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids):
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        return self.head(self.layers(x)[:, 0])


def ids(count, seed):
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The bundle; beside it the saved split, its audit and texts."""
    home = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    edge, cloud = sfumato.split_at(Bert(), "norm", ids(2, 0))
    model = sfumato.SplitModel(edge, sfumato.Channel(noise_std=0.1, clip_norm=8.0), cloud)
    sfumato.save_split(model, home / "split", example_input=ids(2, 0), class_names=("a", "b", "c"))
    np.savez(home / "texts.npz", train=ids(300, 1).numpy(), test=ids(100, 2).numpy())
    data = ["--data", str(home / "texts.npz"), "--device", "cpu", "--out", str(home / "audit-split")]
    assert main(["audit", str(home / "split"), *data]) == 0
    assert main(["export", str(home / "split"), "--out", str(home / "bundle")]) == 0
    return home / "bundle"


def test_the_bundle_takes_tokens_and_carries_its_audit(bundle):
    manifest = Manifest.load(bundle)
    assert manifest.as_dict()["input"] == {"name": "ids", "shape": [LENGTH], "resize": "exact", "tokens": VOCABULARY}
    found = json.loads((bundle.parent / "audit-split" / "audit.json").read_text())
    assert manifest.audit.strongest["tokens"] == found["tokens"]["recovered"] > 0.5
    card = (bundle / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "are recovered" in card
    assert main(["verify", str(bundle)]) == 0


def test_a_served_answer_is_the_split_models(bundle, tmp_path, capsys):
    model, texts = sfumato.load_split(bundle.parent / "split"), ids(20, 3).numpy()
    with torch.no_grad():
        clear = model.cloud(model.features(torch.from_numpy(texts))).softmax(1).numpy()
    paths = [str(tmp_path / f"{index}.npy") for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        np.save(path, text)
    with running(bundle) as server:
        words = [
            "--url",
            f"http://{server.rest}",
            "--device-key",
            str(tmp_path / "key"),
            "--json",
            str(tmp_path / "found.json"),
        ]
        assert main(["query", str(bundle), *paths, *words]) == 0
    answers = json.loads((tmp_path / "found.json").read_text())["answers"]
    shares = np.array([[one["probabilities"][name] for name in "abc"] for one in answers])
    assert shares == pytest.approx(clear, abs=0.2)  # up to the noise
    assert np.abs(shares - clear).max() > 0


def test_noise_repeats_for_a_text_and_differs_between_texts(bundle):
    text = ids(1, 3)[0].tolist()
    other = [*text[:-1], (text[-1] + 1) % VOCABULARY]
    with EdgeClient(bundle, device_key=bytes(range(32))) as client:
        sent = client.release([text, np.array(text, np.int32), torch.tensor([text]), other])
        assert client.predict(text).label in "abc"
    clean = sfumato.load_split(bundle.parent / "split").features(torch.tensor([text, other])).detach()
    levels = Manifest.load(bundle).quantization
    noise = sent[[0, 3]] * levels.width + levels.low - clean.numpy()
    assert np.array_equal(sent[0], sent[1])
    assert np.array_equal(sent[0], sent[2])
    assert noise.std() == pytest.approx(0.1, rel=0.3)
    assert abs(np.corrcoef(noise.reshape(2, -1))[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ([1, 2], "shape .2,.; the encoder takes 6 whole numbers"),
        ([0.5] * LENGTH, "float64"),
        ([VOCABULARY] * LENGTH, "knows 0 to 29"),
        ([-1] * LENGTH, "run from -1"),
        ([[1, 2], [3]], "cannot read the tokens"),
        ("nowhere.npy", "there is no text nowhere.npy"),
    ],
)
def test_what_is_no_text_sends_nothing(bundle, text, words):
    with EdgeClient(bundle, device_key=bytes(range(32))) as client, pytest.raises(DataError, match=words):
        client.predict(text)
