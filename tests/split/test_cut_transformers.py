"""Networks of Hugging Face's transformers, tiny and with random weights."""

import pytest
import torch

from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel, cuts, split_at

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}


@pytest.fixture(scope="module")
def vit():
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.ViTForImageClassification(config).eval(), torch.rand(2, 3, 16, 16)


@pytest.fixture(scope="module")
def bert():
    config = transformers.BertConfig(**SMALL, vocab_size=50, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).eval(), torch.randint(0, 50, (2, 7))


def layers(model, ending):
    """Names of the repeated layers, which differ between versions of transformers."""
    return [name for name, part in model.named_modules() if type(part).__name__ == ending]


def test_an_image_transformer(vit):
    model, x = vit
    names = layers(model, "ViTLayer")
    assert len(names) == 3
    other = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for name in names:
        edge, cloud = split_at(model, name, x)
        assert torch.equal(cloud(edge(other)), model(other).logits)
        assert edge(other).shape == (5, 17, 16)
    possible = {cut.layer for cut in cuts(model, x) if cut.possible}
    assert {*names, "vit.layernorm", "classifier"} <= possible
    assert not any(name.startswith(f"{names[0]}.attention") for name in possible)  # a skip leads around it


def test_it_trains_as_the_model_does(vit):
    model, x = vit
    edge, cloud = split_at(model, layers(model, "ViTLayer")[0], x)
    gradients = []
    for forward in (lambda x: model(x).logits, lambda x: cloud(edge(x))):
        model.train()
        edge.train()
        cloud.train()
        model.zero_grad()
        torch.manual_seed(0)
        forward(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    model.eval()
    assert len(gradients[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    split = SplitModel(edge, Channel(clip_norm=5.0, noise_std=0.1), cloud)
    assert split(x).shape == (2, 5)


def test_a_text_transformer(bert):
    model, tokens = bert
    for name in layers(model, "BertLayer"):
        edge, cloud = split_at(model, name, tokens)
        other = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(1))
        assert torch.equal(cloud(edge(other)), model(other).logits)


def test_a_mask_that_every_layer_needs_is_refused(bert):
    model, tokens = bert

    class Masked(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens, attention_mask=(tokens != 0).long()).logits

    with pytest.raises(ConfigError, match=r"looks at values of the data|another tensor crosses there"):
        split_at(Masked(model), f"model.{layers(model, 'BertLayer')[0]}", tokens)
