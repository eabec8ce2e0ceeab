"""Signatures: made by us, verified by openssl's rules, broken by any change."""

import base64
import json
import os
import shutil

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from edge_support import make_bundle

from sfumato.deploy import Manifest
from sfumato.deploy.device_key import load_device_key
from sfumato.deploy.signing import fingerprint, new_key, private_key, public_keys, sign
from sfumato.errors import BundleError, ConfigError, StorageError


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    new_key(folder / "a.pem")
    new_key(folder / "b.pem")
    return folder


@pytest.fixture
def signed(tmp_path, keys):
    folder = make_bundle(tmp_path / "bundle")
    sign(folder, private_key(keys / "a.pem"))
    return folder


def test_a_key_pair_is_private_and_is_never_overwritten(keys):
    assert os.stat(keys / "a.pem").st_mode & 0o777 == 0o600
    before = (keys / "a.pem").read_bytes()
    with pytest.raises(StorageError, match="never overwritten"):
        new_key(keys / "a.pem")
    assert (keys / "a.pem").read_bytes() == before
    assert before != (keys / "b.pem").read_bytes()


def test_the_signature_is_ed25519_of_the_documented_bytes(signed, keys):
    """As docs/wire.md says, checked without our code."""
    value = json.loads((signed / "manifest.sig").read_text())
    content = b"sfumato bundle manifest 2\n" + (signed / "manifest.json").read_bytes()
    key = serialization.load_pem_public_key((keys / "a.pem.pub").read_bytes())
    key.verify(base64.b64decode(value["signature"]), content)
    assert value["key"] == fingerprint(key)


def test_half_a_key_pair_is_never_left_behind(tmp_path, monkeypatch):
    (tmp_path / "key.pem.pub").write_text("of an older key")
    with pytest.raises(StorageError, match="key.pem.pub: File exists"):
        new_key(tmp_path / "key.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem.pub"]

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for make in (lambda: new_key(tmp_path / "new.pem"), lambda: load_device_key(tmp_path / "device.key")):
        with pytest.raises(StorageError, match="No space left"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem.pub"]


@pytest.mark.parametrize("form", ["path", "text", "bytes", "object"])
def test_a_signed_bundle_is_accepted(signed, keys, form):
    path = keys / "a.pem.pub"
    given = {"path": path, "text": str(path), "bytes": path.read_bytes(), "object": public_keys(path)[0]}[form]
    assert Manifest.load(signed, require_signature=given).name == "small"


def test_any_one_of_several_trusted_keys_suffices(signed, keys, tmp_path):
    """While a key is exchanged, devices trust the old one and the new one."""
    both = [keys / "b.pem.pub", keys / "a.pem.pub"]
    Manifest.load(signed, require_signature=both)
    (tmp_path / "both.pem").write_bytes(b"the old one\n" + both[0].read_bytes() + both[1].read_bytes())
    Manifest.load(signed, require_signature=tmp_path / "both.pem")
    with pytest.raises(BundleError, match="the trusted keys are"):
        Manifest.load(signed, require_signature=[both[0], both[0].read_bytes()])
    for none in ([], [both[0], "none.pem"]):
        with pytest.raises(ConfigError):
            Manifest.load(signed, require_signature=none)


def test_the_very_bytes_are_signed(signed, keys):
    path = signed / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value))
    assert Manifest.load(signed).as_dict() == value
    with pytest.raises(BundleError, match="has been changed since it was signed"):
        Manifest.load(signed, require_signature=keys / "a.pem.pub")


def test_nothing_is_read_before_the_signature_holds(signed, keys):
    (signed / "manifest.json").write_bytes(b"\xff{{{")
    with pytest.raises(BundleError, match="has been changed since it was signed"):
        Manifest.load(signed, require_signature=keys / "a.pem.pub")


def test_another_signer_and_no_signer(signed, keys):
    with pytest.raises(BundleError, match="was signed by the key .* trusted keys are"):
        Manifest.load(signed, require_signature=keys / "b.pem.pub")
    (signed / "manifest.sig").unlink()
    with pytest.raises(BundleError, match="is not signed and a signature is required"):
        Manifest.load(signed, require_signature=keys / "a.pem.pub")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"signature": "!!", "key": "a"}', '{"signature": "", "key": "a"}', '{"signature": 3, "key": 4}'],
)
def test_a_damaged_signature_is_refused(signed, keys, text):
    (signed / "manifest.sig").write_text(text)
    with pytest.raises(BundleError):
        Manifest.load(signed, require_signature=keys / "a.pem.pub")


def test_a_signature_does_not_fit_another_bundle(signed, keys, tmp_path):
    other = make_bundle(tmp_path / "other", seed=1)
    shutil.copy(signed / "manifest.sig", other)
    with pytest.raises(BundleError, match="changed since it was signed"):
        Manifest.load(other, require_signature=keys / "a.pem.pub")


def test_a_new_network_under_the_old_manifest_is_found_by_its_hash(signed, keys, tmp_path):
    other = make_bundle(tmp_path / "other", seed=1)
    shutil.copy(other / "encoder.onnx", signed)
    with pytest.raises(BundleError, match="encoder.onnx is not the file that was exported"):
        Manifest.load(signed, require_signature=keys / "a.pem.pub")


def test_keys_of_other_kinds_are_refused_in_one_sentence(tmp_path, keys):
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    curve = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec.pem").write_bytes(curve.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"x"))
    (tmp_path / "locked.pem").write_bytes(locked)
    (tmp_path / "text.pem").write_text("hello")
    for name in ("ec.pem", "locked.pem", "text.pem"):
        (tmp_path / name).chmod(0o600)
    (tmp_path / "open.pem").write_bytes((keys / "a.pem").read_bytes())
    (tmp_path / "open.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it; run `chmod 600"):
        private_key(tmp_path / "open.pem")
    for name in ("ec.pem", "locked.pem", "text.pem", "none.pem"):
        with pytest.raises(ConfigError) as caught:
            private_key(tmp_path / name)
        assert "\n" not in str(caught.value)
    for source in (tmp_path / "text.pem", tmp_path / "none.pem", keys / "a.pem", b"hello"):
        with pytest.raises(ConfigError, match="public key"):
            public_keys(source)
