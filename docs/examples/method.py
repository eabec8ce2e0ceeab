"""The whole method in one file: cut, noise, refresh, loss, attack, certificate. On handwritten digits, in seconds.

    python docs/examples/method.py

A network is cut in two. The device computes the first half and sends its feature z = z_hat + noise; a server computes
the rest. Whoever sees z may try to reconstruct the image. Conditional entropy maximization (CEM) trains the first half
so that z tells little more about the image than the server needs to know about the class.
"""

import torch
from torch import nn

import sfumato
from sfumato import attacks, bounds, data, metrics

torch.manual_seed(0)
SIGMA, LAMBDA, EPOCHS = 0.4, 0.3, 15

# The data: 8x8 images in [0, 1] and their classes; `test` is never trained on.
sets = data.load("digits")
x, y = sets.train.float(), sets.train.labels

# 1. Cut. Any network will do; this one is cut behind its sigmoid, which keeps the feature in (0, 1): without a bound
#    the encoder could outgrow the noise.
network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 4, 3, stride=2, padding=1),
    nn.Sigmoid(),
    nn.Flatten(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
edge, cloud = sfumato.split_at(network, "3", x[:2])

# 2. Noise. The channel is what happens to the feature on its way out; `model.encode` is the only way to what is sent.
model = sfumato.SplitModel(edge, sfumato.defense(f"noise({SIGMA})").channel(), cloud)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

# 3. Refresh. Theorem 2 bounds what z tells about the image by the clusters of z_hat, here one in each class:
#    I(z; z_hat) <= sum_j pi_j (-log pi_j + 1/2 log |Sigma_j + sigma^2| / |sigma^2|).
#    Their moments are refreshed from the features of every step; `update="epoch"` and `cem.refresh(features, labels)`
#    once an epoch is the other way.
cem = sfumato.CEM(num_classes=10, noise_std=SIGMA, update="steps")

model.train()
for _ in range(EPOCHS):
    for batch in torch.randperm(len(x)).split(64):
        z_hat, z, logits = model.outputs(x[batch])
        # 4. Loss. L = L_D + lambda L_C: recognise the class, and pull every feature to the centre of its cluster. Given
        #    the task loss, the penalty waits until the classifier has learned something.
        task_loss = nn.functional.cross_entropy(logits, y[batch])
        loss = task_loss + LAMBDA * cem(z_hat, y[batch], task_loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval()
images, labels = sets.test.float(), sets.test.labels
with torch.no_grad():
    accuracy = (model(images).argmax(1) == labels).float().mean()
    features = model.features(images)
print(f"accuracy on unseen digits     {accuracy:.1%}")

# 5. Attack. The attacker has the whole model and the training set, and learns from what the device sends: here the best
#    linear map. Its error is compared with that of answering with the mean image.
attack = attacks.RidgeAttack(attacks.RidgeConfig()).fit(attacks.Observer(model, sets.train))
with torch.no_grad():
    sent = model.encode(images, generator=torch.Generator().manual_seed(1))
    reconstructed = attack.reconstruct(sent)
error, guess = metrics.mse(images, reconstructed).mean(), metrics.mse(images, x.mean(0).expand_as(images)).mean()
leakage = attacks.measure_leakage(model, sets.test, seed=0)
print(f"error of the linear attack    {error:.4f} (mean image: {guess:.4f})")
print(f"images identified             {leakage.identified:.1%} of {leakage.candidates}")

# 6. Certificate. What crosses the wire, measured on features that no estimate has seen, limits every attacker: one that
#    guesses right with probability kappa beforehand succeeds at most with p where KL(p || kappa) <= I.
information = sfumato.held_out_information(features, labels, noise_std=SIGMA, seed=0)
certificate = bounds.success_at_most(1e-6, information.at_most)
print(f"information on the wire       {information.value:.1f} ± {information.standard_error:.1f} nats")
print(f"of a million images, no attack identifies more than {float(certificate):.1%}")
