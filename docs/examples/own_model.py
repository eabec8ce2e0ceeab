"""Your own network in your own loop: cut it, protect it, save it for audit, export and serving."""

import sys

import torch
from torch import nn

import sfumato

sets = sfumato.data.load("digits")  # your own: x (N, C, H, W) in [0, 1], y (N,)
x, y = sets.train.float(), sets.train.labels

torch.manual_seed(0)
encoder = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, 2, 1), nn.Sigmoid())
classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
network = nn.Sequential(encoder, classifier)  # any nn.Module

edge, cloud = sfumato.split_at(network, "0", x[:2])
model = sfumato.SplitModel(edge, sfumato.Channel(noise_std=0.1), cloud)
cem = sfumato.CEM(num_classes=10, noise_std=0.1, update="steps")
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

model.train()
for _ in range(12):
    for i in torch.randperm(len(x)).split(64):
        z_hat, z, logits = model.outputs(x[i])
        task_loss = nn.functional.cross_entropy(logits, y[i])
        loss = task_loss + 0.5 * cem(z_hat, y[i], task_loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

right = model.eval()(sets.test.float()).argmax(1) == sets.test.labels
print(f"accuracy {right.float().mean():.1%}", sfumato.attacks.measure_leakage(model, sets.test, seed=0).sentence)
folder = sys.argv[1] if len(sys.argv) > 1 else "runs/own"
sfumato.save_split(model, folder, example_input=x[:1], class_names=sets.train.classes)
