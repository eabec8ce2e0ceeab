"""Tokens recovered from small BERT and GPT-2 shapes at three cuts: without noise, with it, and with noise and CEM.

    python benchmarks/tokens.py

Texts are made, not collected: a text of one of two classes draws a third of its tokens from the class's own ten. The
noise's standard deviation is half that of the feature before training, the clip its mean norm.
"""

import argparse

import torch
import transformers
from torch.nn.functional import cross_entropy

import sfumato
from sfumato.attacks.tokens import token_recovery

VOCABULARY, LENGTH, WIDTH, OWN = 100, 12, 24, 10
NAMES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def bert():
    """BERT's shape and its cuts."""
    config = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * WIDTH, **NAMES
    )
    cuts = ("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1")
    return transformers.BertForSequenceClassification(config), cuts


def gpt2():
    """GPT-2's shape and its cuts; the class is read at the last token."""
    config = transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, **NAMES)
    return transformers.GPT2LMHeadModel(config), ("transformer.drop", "transformer.h.0", "transformer.h.1")


def texts(count, seed):
    """Tokens (N, L) and classes (N,)."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=random)
    ids = torch.randint(2 * OWN, VOCABULARY, (count, LENGTH), generator=random)
    own = torch.randint(OWN, (count, LENGTH), generator=random) + OWN * labels[:, None]
    return torch.where(torch.rand(count, LENGTH, generator=random) < 1 / 3, own, ids), labels


def answers(logits):
    """(N, 2), whether the model gives them for the text or for each token."""
    return logits[:, :2] if logits.ndim == 2 else logits[:, -1, :2]


def measured(make, cut, noise, lam, steps):
    """Accuracy and tokens recovered of one setting."""
    torch.manual_seed(0)
    model, _ = make()
    ids, labels = texts(2000, 1)
    edge, cloud = sfumato.split_at(model, cut, ids[:2])
    with torch.no_grad():
        feature = edge.eval()(ids[:256])
    sigma = noise * float(feature.std())
    channel = sfumato.Channel(noise_std=sigma, clip_norm=float(feature.flatten(1).norm(dim=1).mean()))
    split = sfumato.SplitModel(edge, channel, cloud).train()
    cem = sfumato.CEM(num_classes=2, clusters_per_class=1, noise_std=sigma, update="steps") if lam else None
    optimizer = torch.optim.Adam(split.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.randint(len(ids), (64,), generator=torch.Generator().manual_seed(step))
        out = split.outputs(ids[rows])
        loss = task = cross_entropy(answers(out.logits), labels[rows])
        if cem is not None:
            loss = loss + lam * cem(out.features.flatten(1), labels[rows], task.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    split.eval()
    new, classes = texts(500, 2)
    with torch.no_grad():
        accuracy = float((answers(split(new)).argmax(1) == classes).float().mean())
    return accuracy, token_recovery(split, ids, new)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--lam", type=float, default=1.0, help="lambda of CEM")
    parsed = parser.parse_args()
    print("| shape | cut behind | nothing | noise | noise + CEM |\n|---|---|---|---|---|")
    for name, make in (("BERT", bert), ("GPT-2", gpt2)):
        for cut in make()[1]:
            cells = []
            for noise, lam, steps in ((0.0, 0.0, 0), (0.5, 0.0, parsed.steps), (0.5, parsed.lam, parsed.steps)):
                accuracy, found = measured(make, cut, noise, lam, steps)
                told = f"{found.recovered:.1%} ± {found.standard_error:.1%}"
                cells.append(told if not steps else f"{told}, accuracy {accuracy:.0%}")
            print(f"| {name} | `{cut}` | {' | '.join(cells)} |", flush=True)
    print(f"\nChance is {found.chance:.1%}.")


if __name__ == "__main__":
    main()
