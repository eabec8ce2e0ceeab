"""Networks of Hugging Face's transformers, tiny and with random weights: a table, and what its rows do not show."""

import pytest
import torch

from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel, cuts, split_at

transformers = pytest.importorskip("transformers")
T = transformers

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
WORDS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
PATCHES = {**SMALL, "image_size": 32, "patch_size": 8}
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 4, **WORDS}
SOUND = {
    **SMALL, "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [8, 8], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
}  # fmt: skip
SHAPES = {"words": (2, 7), "image": (2, 3, 32, 32), "sound": (2, 400), "mel": (2, 8, 20)}
RANDOM = "decides by random numbers .*; cut at '.*feature_projection' before it"

# class, config class, settings, kind of input, two layers, what a refusal says (None: both are cut)
ARCHITECTURES = {
    "BERT": (
        "BertForSequenceClassification",
        "BertConfig",
        {**SMALL, **WORDS},
        "words",
        ("bert.encoder.layer.0", "bert.encoder.layer.1"),
        None,
    ),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 32, **WORDS},
        "words",
        ("distilbert.transformer.layer.0", "distilbert.transformer.layer.1"),
        None,
    ),
    "RoBERTa": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {**SMALL, **WORDS, "pad_token_id": 1, "max_position_embeddings": 40},
        "words",
        ("roberta.encoder.layer.0", "roberta.encoder.layer.1"),
        None,
    ),
    "ALBERT": (
        "AlbertForSequenceClassification",
        "AlbertConfig",
        {**SMALL, **WORDS, "embedding_size": 8},
        "words",
        ("albert.encoder.albert_layer_groups.0.albert_layers.0", "albert.encoder.albert_layer_groups.0"),
        "calls it 3 times, and a layer to cut at has to run exactly once; .* 'albert.encoder' behind it",
    ),
    "ELECTRA": (
        "ElectraForSequenceClassification",
        "ElectraConfig",
        {**SMALL, **WORDS, "embedding_size": 8},
        "words",
        ("electra.encoder.layer.0", "electra.encoder.layer.1"),
        None,
    ),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT, "words", ("transformer.h.0", "transformer.h.1"), None),
    "Llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SMALL, **WORDS},
        "words",
        ("model.layers.0", "model.layers.1"),
        None,
    ),
    "T5": (
        "T5EncoderModel",
        "T5Config",
        {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 3, "num_heads": 4, "vocab_size": 50},
        "words",
        ("encoder.block.0", "encoder.block.1"),
        "gives a tuple of which 2 tensors are used, and only one can cross; cut at 'encoder.embed_tokens' before it",
    ),
    "CLIP, text": (
        "CLIPTextModel",
        "CLIPTextConfig",
        {**SMALL, **WORDS, "max_position_embeddings": 16},
        "words",
        ("encoder.layers.0", "encoder.layers.1"),
        "another tensor crosses there",
    ),
    "CLIP, image": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        PATCHES,
        "image",
        ("encoder.layers.0", "encoder.layers.1"),
        None,
    ),
    "ViT": ("ViTForImageClassification", "ViTConfig", PATCHES, "image", ("vit.layers.0", "vit.layers.1"), None),
    "DeiT": ("DeiTForImageClassification", "DeiTConfig", PATCHES, "image", ("deit.layers.0", "deit.layers.1"), None),
    "BEiT": ("BeitForImageClassification", "BeitConfig", PATCHES, "image", ("beit.layers.0", "beit.layers.1"), None),
    "DINOv2": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        PATCHES,
        "image",
        ("dinov2.encoder.layer.0", "dinov2.encoder.layer.1"),
        None,
    ),
    "ResNet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "image",
        ("resnet.embedder", "resnet.encoder.stages.0"),
        None,
    ),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
        "image",
        ("convnext.encoder.stages.0", "convnext.encoder.stages.1"),
        None,
    ),
    "Swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1, 1],
            "num_heads": [2, 2, 2],
            "window_size": 4,
        },
        "image",
        ("swin.encoder.layers.0", "swin.encoder.layers.1"),
        None,
    ),
    "MobileNetV2": (
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": 32},
        "image",
        ("mobilenet_v2.layer.0", "mobilenet_v2.layer.14"),
        None,
    ),
    "SegFormer": (
        "SegformerForImageClassification",
        "SegformerConfig",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
        "image",
        ("segformer.stages.0.blocks.0", "segformer.stages.2.blocks.0"),
        None,
    ),
    "Wav2Vec2": (
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        {**SOUND, "apply_spec_augment": False},
        "sound",
        ("wav2vec2.encoder.layers.0", "wav2vec2.encoder.layers.1"),
        RANDOM,
    ),
    "Data2Vec": (
        "Data2VecAudioForSequenceClassification",
        "Data2VecAudioConfig",
        {**SOUND, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2, "apply_spec_augment": False},
        "sound",
        ("data2vec_audio.encoder.layers.0", "data2vec_audio.encoder.layers.1"),
        RANDOM,
    ),
    "Whisper": (
        "WhisperForAudioClassification",
        "WhisperConfig",
        {
            "d_model": 16,
            "encoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "classifier_proj_size": 8,
            **WORDS,
            "decoder_start_token_id": 1,
        },
        "mel",
        ("encoder.layers.0", "encoder.layers.1"),
        None,
    ),
}


def batch(kind, rows, seed):
    random = torch.Generator().manual_seed(seed)
    shape = (rows, *SHAPES[kind][1:])
    return torch.randint(3, 50, shape, generator=random) if kind == "words" else torch.rand(shape, generator=random)


def made(name, **more):
    model, config, settings, kind, layers, refusal = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(T, model)(getattr(T, config)(**settings, **more)).eval(), kind, layers, refusal


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_cuts_of_each_architecture(name):
    """Bit for bit what the model gives, on other inputs in a batch of another size; or a sentence."""
    torch.manual_seed(0)  # a layer that is left out at random is recorded, or is not
    model, kind, layers, refusal = made(name)
    other = batch(kind, 3, 1)
    with torch.no_grad():
        answer = model(other)
    for layer in layers:
        if refusal is not None:
            with pytest.raises(ConfigError, match=f"there is no cut at '{layer}': .*{refusal}"):
                split_at(model, layer, batch(kind, 2, 0))
            continue
        part = None if "logits" in answer else "pooler_output"
        edge, cloud = split_at(model, layer, batch(kind, 2, 0), answer=part)
        with torch.no_grad():
            assert torch.equal(cloud(edge(other)), answer[part or "logits"])


def test_what_is_listed_and_what_a_split_model_makes_of_it():
    model, kind, layers, _ = made("ViT")
    possible = {cut.layer for cut in cuts(model, batch(kind, 2, 0)) if cut.possible}
    assert {*layers, "vit.layernorm", "classifier"} <= possible
    assert not any(name.startswith(f"{layers[0]}.attention") for name in possible)  # a skip leads around it
    edge, cloud = split_at(model, layers[0], batch(kind, 2, 0))
    split = SplitModel(edge, Channel(clip_norm=5.0, noise_std=0.1), cloud)
    assert split(batch(kind, 2, 0)).shape == (2, 2)


def test_it_trains_as_the_model_does():
    model, kind, layers, _ = made("ViT")
    x = batch(kind, 2, 0)
    edge, cloud = split_at(model, layers[0], x)
    gradients = []
    for forward in (lambda x: model(x).logits, lambda x: cloud(edge(x))):
        for part in (model, edge, cloud):
            part.train()
        model.zero_grad()
        torch.manual_seed(0)
        forward(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "causal"), [("BERT", False), ("Llama", True)])
def test_an_attention_mask_is_given_to_both_halves(name, causal):
    model, kind, layers, _ = made(name)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    full = mask[:, None, None, :].bool().expand(-1, -1, 7, -1)
    full = full.tril() if causal else full
    ids = batch(kind, 3, 0)
    edge, cloud = split_at(model, layers[1], {"input_ids": ids[:2], "attention_mask": full[:2]})
    found = SplitModel(edge, Channel(), cloud)(ids, attention_mask=full)
    expected = model(ids, attention_mask=full).logits
    assert torch.equal(found, expected)
    torch.testing.assert_close(found[mask[:, : found.shape[1]].bool()] if causal else found,
                               model(ids, attention_mask=mask).logits[mask.bool()] if causal else
                               model(ids, attention_mask=mask).logits)  # fmt: skip
    with pytest.raises(ConfigError, match=r"looks at values of the other inputs .*give the full form"):
        split_at(model, layers[1], ids, {"attention_mask": mask})


def test_a_part_of_the_answer():
    model, kind, _, _ = made("CLIP, text")
    ids = batch(kind, 2, 0)
    edge, cloud = split_at(model, "final_layer_norm", ids, answer=0)
    assert torch.equal(cloud(edge(ids)), model(ids)[0])
    with pytest.raises(ConfigError, match="answer has no part 'logits'; choose one of .*'last_hidden_state'"):
        split_at(model, "final_layer_norm", ids, answer="logits")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, kind, layers, _ = made("BERT")
    model, ids = model.to(dtype), batch(kind, 2, 0)
    edge, cloud = split_at(model, layers[0], ids)
    assert torch.equal(cloud(edge(ids)), model(ids).logits)
    split = SplitModel(edge, Channel(noise_std=0.1), cloud)
    assert (split.encode(ids).dtype, split(ids).dtype) == (torch.float32, dtype)
