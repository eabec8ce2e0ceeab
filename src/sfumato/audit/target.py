"""From the words on the command line to a split model: what TARGET may be, and nothing about what is done with it.

A `.pt2`, `.pt` or `.onnx` file is a program, and auditing it means running it, by PyTorch or ONNX Runtime, neither of
which is a sandbox.
"""

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.audit.inputs import Described, InputDescription
from sfumato.audit.onnx_gradient import OnnxGradient
from sfumato.audit.subject import ChannelOptions, Kind, Subject, encoder_only
from sfumato.errors import CheckpointError, ConfigError, first_line
from sfumato.files import sha256_of
from sfumato.importing import call_named, is_own_code
from sfumato.split import SplitModel
from sfumato.split.programs import Foreign, load_program, require
from sfumato.split.saved import SPLIT, made_here
from sfumato.training import load_trained

FORMS = (
    "a run folder of `sfumato train`, a folder of sfumato.save_split, encoder.pt2 or encoder.pt2,decoder.pt2 "
    "(torch.export), encoder.pt or encoder.pt,decoder.pt (TorchScript), encoder.onnx, or package.module:function "
    "returning an encoder"
)
_SUFFIXES: dict[str, Kind] = {".pt2": "exported", ".pt": "torchscript", ".pth": "torchscript", ".onnx": "onnx"}


def load_target(
    target: str,
    options: ChannelOptions | None = None,
    *,
    device: torch.device | str = "cpu",
    trust: bool = False,
    given: InputDescription | None = None,
) -> Subject:
    """The split model that TARGET names.

    Exported programs, TorchScript, saved splits and functions are code, and opening them runs it. Without `trust` they
    are opened only where this user made them on this machine: a folder that `save_split` wrote here, or a function of
    an installed package or in a file of this user's. Run folders and ONNX files hold data and need no trust.

    Args:
        target: see `FORMS`.
        options: the channel, for targets that are encoders alone.
        device: where the model shall run.
        trust: whether code of others may run.
        given: what the encoder takes, where neither its file nor the default, (N, C, H, W) in [0, 1], says it.

    Raises:
        ConfigError: TARGET is none of the forms, it is code that nobody trusts, or the options contradict a target that
            has a channel, or the description what the file declares.
        CheckpointError: a file or folder is missing, damaged, or not finished.
    """
    options = options or ChannelOptions()
    if Path(target).is_dir():
        if (Path(target) / SPLIT).exists():
            need_trust(target, trust or made_here(target))
        subject = _folder(target, options)
    elif _suffix(target) is not None:
        subject = _files(target, options, trust)
    elif ":" in target and not target.startswith(("/", ".")):
        need_trust(target, trust or is_own_code(target))
        subject = _function(target, options)
    else:
        raise ConfigError(f"there is no {target}; TARGET is {FORMS}")
    if given is not None or subject.kind in ("exported", "torchscript", "onnx"):
        subject = _described(subject, given)
    subject.model.to(device)
    return subject


def _described(subject: Subject, given: InputDescription | None) -> Subject:
    """The subject taking images in [0, 1], whatever its encoder takes."""
    edge = Described(subject.model.edge, given)
    digest = f"{subject.digest}{edge.as_dict()}" if given is not None and subject.digest else subject.digest
    model = SplitModel(edge, subject.model.channel, subject.model.cloud)
    return replace(subject, model=model, digest=digest, input_shape=edge.shape or subject.input_shape)


def need_trust(target: str, given: bool) -> None:
    """ConfigError unless code that is not known to be the user's own may run."""
    if not given:
        raise ConfigError(
            f"{target} is a program, and opening it runs it; if you trust whoever made it, give --trust (trust=True); "
            "take encoders of strangers as ONNX files"
        )


def _folder(target: str, options: ChannelOptions) -> Subject:
    found = load_trained(Path(target))
    _refuse(options, f"the {'run folder' if found.kind == 'run' else 'saved split'} says what happens on the wire")
    return Subject(**{one.name: getattr(found, one.name) for one in fields(Subject) if hasattr(found, one.name)})


def _suffix(target: str) -> str | None:
    """The suffix that all files of TARGET have; None where they are no model files."""
    found = {Path(part).suffix.lower() for part in target.split(",")}
    (one,) = found if len(found) == 1 else (None,)
    return one if one in _SUFFIXES else None


def _files(target: str, options: ChannelOptions, trust: bool) -> Subject:
    paths = [Path(part) for part in target.split(",")]
    if len(paths) > 2:
        raise ConfigError(f"{target} names {len(paths)} files; give an encoder, or an encoder and a decoder")
    kind = _SUFFIXES[str(_suffix(target))]
    for path in paths:
        require(path)
    need_trust(target, trust or kind == "onnx")
    load = {"exported": load_program, "torchscript": _load_script, "onnx": _load_onnx}[kind]
    halves = [load(path) for path in paths]
    return Subject(
        name=paths[0].name,
        model=SplitModel(halves[0], options.channel(), halves[1])
        if len(halves) == 2
        else encoder_only(halves[0], options),
        kind=kind,
        classifies=len(halves) == 2,
        digest=_digest_of_files(*paths) + str(options.given()),
        setting=f"σ {options.channel().noise_std:g}",
    )


def _function(target: str, options: ChannelOptions) -> Subject:
    made = call_named(target)
    name = target.partition(":")[2]
    if isinstance(made, Subject):
        _refuse(options, f"{target} says what happens on the wire")
        return made
    if isinstance(made, SplitModel):
        _refuse(options, f"{target} returns a SplitModel, which says what happens on the wire")
        return Subject(name=name, model=made)
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise ConfigError(f"{target} returned a {kind}; return an encoder (torch.nn.Module) or a SplitModel")
    noise = f"σ {options.channel().noise_std:g}"
    return Subject(name=name, model=encoder_only(made, options), classifies=False, setting=noise)


def _refuse(options: ChannelOptions, reason: str) -> None:
    if given := options.given():
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{reason}; leave {names} out")


def _digest_of_files(*paths: Path) -> str:
    """SHA-256 over the files, and over what lies beside an ONNX file and is named in it: its external weights."""
    digest = hashlib.sha256()
    for path in paths:
        data = path.read_bytes()
        beside = sorted(other for other in path.parent.iterdir() if other != path and other.is_file())
        external = [other for other in beside if path.suffix == ".onnx" and other.name.encode() in data]
        for part in (path, *external):
            digest.update(bytes.fromhex(sha256_of(part)))
    return digest.hexdigest()


def _load_script(path: Path) -> nn.Module:
    """A module that `torch.jit.save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or not TorchScript.
    """
    require(path)
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file ({first_line(error)}); weights alone are no encoder: export the whole "
            "module with torch.export.save or torch.jit.save"
        ) from error
    return Foreign(module.eval())


def _load_onnx(path: Path) -> nn.Module:
    """An ONNX encoder under ONNX Runtime; it passes gradients where `OnnxGradient` knows its operators.

    Raises:
        ConfigError: ONNX Runtime is missing.
        CheckpointError: the file is missing, damaged, or has several inputs.
    """
    require(path)
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "auditing an ONNX encoder needs ONNX Runtime: pip install 'sfumato[audit]', or export with torch.export"
        ) from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path} is not an ONNX model that runs here ({first_line(error)})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise CheckpointError(f"{path} has {len(inputs)} inputs ({names}); an encoder takes the image alone")
    batch = inputs[0].shape[0]
    try:
        twin = OnnxGradient(path)
    except NotImplementedError:
        twin = None
    return Foreign(_Session(session, inputs[0].name, twin), batch if isinstance(batch, int) else None)


class _Session(nn.Module):
    """Values are those of ONNX Runtime, which is what leaves the device; only slopes are PyTorch's."""

    def __init__(self, session: Any, name: str, twin: OnnxGradient | None) -> None:
        super().__init__()
        self.session, self.name = session, name
        self._twin, self._compared = twin, False

    def forward(self, x: Tensor) -> Any:
        found = self.session.run(None, {self.name: x.detach().cpu().numpy()})
        tensors = [torch.from_numpy(np.asarray(value)).to(x.device) for value in found]
        if len(tensors) > 1:
            return tuple(tensors)
        (value,) = tensors
        if not (x.requires_grad and torch.is_grad_enabled()) or self._twin is None:
            return value
        if not self._compared:
            self._compared = True
            if not self._twin.agrees(x.detach().cpu(), value.cpu()):
                self._twin = None
                return value
        made = self._twin(x.cpu()).to(x.device)
        return value + (made - made.detach())
