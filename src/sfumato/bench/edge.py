"""What the device's noise, levels and bytes cost beside the encoder's run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sfumato.bench.timing import Ratio, take_turns
from sfumato.deploy.connection import http_query
from sfumato.deploy.edge import EdgeClient
from sfumato.deploy.graph import session_of
from sfumato.deploy.manifest import ENCODER, NOISE
from sfumato.deploy.noise import Stream, channel_identity, memoised_key
from sfumato.deploy.preprocess import prepare
from sfumato.deploy.release import Release, noise_shape

__all__ = ["edge_rows"]

_KEY = bytes(range(32))


def edge_rows(bundle: Path, *, blocks: int = 9, calls: int = 100) -> list[Ratio]:
    """The device's side of a bundle with levels and memoised noise, on one thread.

    Blocks of calls take turns; a figure is the median over the blocks, so that neither an interrupted call nor a slow
    phase of the machine moves it.
    """
    with EdgeClient(bundle, "http://127.0.0.1:1", device_key=_KEY) as client:
        variants = {name: partial(_block, call, calls) for name, call in _variants(client, bundle).items()}
        seconds, ratio = take_turns(variants, rounds=blocks)
    us = {name: 1e6 * value / calls for name, value in seconds.items()}
    rows = (
        ("noise", f"memoised noise of {np.prod(client.manifest.feature.shape)} values, key included", 0.15),
        ("encoder to bytes", "encoder, noise, levels and bytes", 1.2),
        ("client", "a whole query of the client, from 8-bit pixels to bytes", None),
    )
    end = f"us against {us['encoder']:.0f} us, {blocks} blocks of {calls}"
    over = "one run of VGG11's encoder"
    return [
        Ratio(what, ratio(name, "encoder"), over, most, detail=f"{us[name]:.1f} {end}") for name, what, most in rows
    ]


def _variants(client: EdgeClient, bundle: Path) -> dict[str, Callable[[], object]]:
    manifest = client.manifest
    channels, height, width = manifest.input.shape
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    image = prepare(pixels, manifest.input)
    session = session_of(manifest, manifest.read_file(bundle, ENCODER), ENCODER)
    outputs, fixed = [manifest.feature.name], {manifest.input.name: image}
    channel = Release(manifest, noise_shape(bundle, manifest))
    own = (manifest.files[ENCODER], manifest.noise.std, manifest.clip_norm, manifest.files.get(NOISE, ""))
    identity = channel_identity(*own)

    def noise() -> object:
        return Stream(memoised_key(_KEY, identity, image.data)).normals(channel.draws)

    def to_bytes() -> object:
        drawn = Stream(memoised_key(_KEY, identity, image.data)).normals(channel.draws)
        return http_query(manifest, channel(session.run(outputs, fixed)[0], drawn))

    return {
        "encoder": lambda: session.run(outputs, fixed),
        "noise": noise,
        "encoder to bytes": to_bytes,
        "client": lambda: http_query(manifest, client.release([pixels])),
    }


def _block(call: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        call()
