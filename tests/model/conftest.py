"""What the tests of models share."""

import pytest


@pytest.fixture(scope="module")
def transformers():
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # of two they wait for each other longer than they compute
    library.utils.logging.disable_progress_bar()
    return library


@pytest.fixture(scope="module")
def peft(transformers):
    return pytest.importorskip("peft")
