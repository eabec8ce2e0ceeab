"""A generation: everything that its workers are made of, read from the disk at one moment and never changed."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.errors import ConfigError
from sfumato.serve.access import Tokens
from sfumato.serve.settings import ServeConfig
from sfumato.serve.tls import tls_context

__all__ = ["Bundle", "Generation"]


@dataclass(frozen=True)
class Bundle:
    """What a server needs of a bundle.

    Attributes:
        folder: where it was read, for messages.
        manifest: verified.
        decoder: the bytes that were hashed; they are what is run, whatever happens to the file.
    """

    folder: Path
    manifest: Manifest
    decoder: bytes


@dataclass(frozen=True, eq=False)
class Generation:
    """The input of workers. A worker that dies is replaced by one of the same generation.

    Attributes:
        number: 1 at the start, one more with each reload.
        bundles: what is served.
        tokens: who may ask.
        tls: certificate and authority, or None.
    """

    number: int
    bundles: tuple[Bundle, ...]
    tokens: Tokens
    tls: ssl.SSLContext | None

    @classmethod
    def read(cls, config: ServeConfig, number: int = 1) -> Self:
        """Read and verify everything.

        Raises:
            SfumatoError: a bundle, the tokens or a certificate is not good.
        """
        bundles: dict[tuple[str, str], Bundle] = {}
        for folder in config.bundles:
            manifest = Manifest.load(folder, require_signature=config.require_signature, files=())
            if other := bundles.get((manifest.name, manifest.version)):
                raise ConfigError(
                    f"{other.folder} and {folder} are both {manifest.name} version {manifest.version}; export one of "
                    "them with another --name or --version"
                )
            bundle = Bundle(folder, manifest, manifest.read_file(folder, DECODER))
            bundles[manifest.name, manifest.version] = bundle
        return cls(number, tuple(bundles.values()), Tokens(config.token_file), tls_context(config))
