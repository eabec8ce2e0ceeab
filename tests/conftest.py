"""Options for every test.

`--bf16 on` and `--bf16 off` pretend that the CPU multiplies bfloat16 natively, or that it does not, whatever it does:
`pytest --bf16 on tests/attacks tests/audit tests/training` is how the other kind of machine sees these rooms. Where the
hardware lacks it PyTorch emulates it, so that both work everywhere.
"""

import pytest
import torch

# Two test processes on two cores would otherwise fight for them; the suite's tensors are small.
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bf16", choices=("on", "off"), help="pretend that the CPU has bfloat16, or that it has not")


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory):
    """The secret that marks folders of `save_split` is the test run's own, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _bf16(request):
    """Set for the whole session, so that fixtures of modules see it too."""
    chosen = request.config.getoption("--bf16")
    with pytest.MonkeyPatch.context() as patch:
        if chosen is not None:
            patch.setattr("sfumato.compute.cpu_has_bf16", lambda: chosen == "on")
            patch.setattr("sfumato.compute._WORTH_BF16", 0 if chosen == "on" else float("inf"))
        yield
