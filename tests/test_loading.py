"""A data set by its name: a function, an object, or a folder of images read as the model's own transform says."""

import pytest
import torch
from torch.utils.data import TensorDataset

import forethought as ft
from forethought.errors import DataError, ModelError
from forethought.loading import load_dataset, load_model

SCRIPT = """
import torch
from torch.utils.data import TensorDataset

held = TensorDataset(torch.arange(3.0))
pair = (torch.zeros(5, 2), torch.arange(5))


def made():
    return held


def needs(this):
    return held


def fails():
    raise RuntimeError("no data today")
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize(("name", "length"), [("made", 3), ("held", 3)])
def test_load_dataset_calls_a_function_and_takes_an_object(script, name, length):
    """Whatever extract takes."""
    data = load_dataset(f"{script}:{name}")
    assert (type(data), len(data)) == (TensorDataset, length)


def test_load_dataset_gives_a_tuple_as_it_is(script):
    """A data set of tensors is a tuple, and not (model, args)."""
    inputs, targets = load_dataset(f"{script}:pair")
    assert (inputs.shape, targets.tolist()) == ((5, 2), [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "got neither"),
        ("nowhere.py:made", "no 'nowhere.py'"),
        ("no_such_module:made", "no_such_module"),
        ("{script}:mad", "made"),
        ("{script}:needs", "needs this"),
        ("{script}:fails", "no data today"),
        ("{script}:", "got neither"),
        ("photos", "got neither"),
    ],
)
def test_load_dataset_says_what_is_missing(script, name, says):
    """An error of data, in the words of data."""
    with pytest.raises(DataError, match=says) as caught:
        load_dataset(name.format(script=script))
    assert "model" not in str(caught.value).replace("module", "")


def test_load_model_needs_no_inputs(tmp_path):
    """It is run on a data set."""
    (tmp_path / "m.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 3)\n")
    assert isinstance(load_model(f"{tmp_path / 'm.py'}:make"), torch.nn.Linear)
    assert ft.ForethoughtError in ModelError.__mro__
