"""How shapes and layouts are asked for, and what follows for model and samples."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.converters.calibration import input_specs  # noqa: E402
from edgekit.converters.shapes import (  # noqa: E402
    at_other_sizes,
    dynamic_shapes,
    enlarged,
    examples_at,
    input_orders,
    layouts_after,
    parse_dynamic_axis,
    permuted,
    permuting_inputs,
    tensors_permuted,
)
from edgekit.errors import UserError  # noqa: E402
from edgekit.exporting import export_program  # noqa: E402

IMAGE = (torch.arange(1 * 3 * 4 * 5, dtype=torch.float32).reshape(1, 3, 4, 5),)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(
    ("text", "name"), [("0:0=1..8", "batch"), ("1:1=4..128:length", "length"), ("2:3=1..2", "input2_axis3")]
)
def test_a_dynamic_axis_is_read_with_its_name(text: str, name: str) -> None:
    """INPUT:AXIS=MIN..MAX[:NAME]; the batch axis needs no name."""
    axis = parse_dynamic_axis(text)
    assert axis.name == name
    assert f"{axis.input}:{axis.axis}={axis.minimum}..{axis.maximum}" == text.split(":length")[0]


@pytest.mark.parametrize("text", ["", "0=1..8", "0:0=8..1", "0:0=0..4", "0:0=1..8:", "x:0=1..8", "0:0=3..3"])
def test_a_misspelt_dynamic_axis_is_refused(text: str) -> None:
    """Anything else is a UserError that shows the text."""
    with pytest.raises(UserError, match=rf"'{text}'"):
        parse_dynamic_axis(text)


def test_a_free_batch_runs_at_every_size() -> None:
    """Exported from an example of one, the program takes the least, the most and what is between."""
    axes = [parse_dynamic_axis("0:0=1..6")]
    given = enlarged(IMAGE, axes)
    program = export_program(Net(), given, name="net", dynamic_shapes=dynamic_shapes(axes, given))
    (spec,) = input_specs(program)
    assert spec.bounds == {0: (1, 6)}
    for batch in (1, 3, 6):
        assert program.module()(torch.zeros(batch, 3, 4, 5)).shape == (batch, 2)


def test_axes_of_one_name_need_one_range() -> None:
    """Two axes called alike with other bounds are a mistake, and so is an axis that is not there."""
    inputs = (torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(UserError, match="different bounds"):
        dynamic_shapes([parse_dynamic_axis("0:0=1..4"), parse_dynamic_axis("1:0=1..5")], inputs)
    with pytest.raises(UserError, match="2:0 is not there"):
        dynamic_shapes([parse_dynamic_axis("2:0=1..4")], inputs)


def test_samples_at_the_bounds_hold_the_samples_own_values() -> None:
    """The least and the most extent, filled by repeating: no value that the sample does not have."""
    axes = [parse_dynamic_axis("0:1=2..7:n"), parse_dynamic_axis("1:0=2..7:n")]
    sample = (np.arange(4).reshape(1, 4), np.arange(4) + 10)
    least, most = at_other_sizes(sample, axes)
    assert [a.shape for a in least] == [(1, 2), (2,)]
    assert [a.shape for a in most] == [(1, 7), (7,)]
    assert set(most[0].reshape(-1)) <= set(range(4))


def test_an_nhwc_input_gives_what_the_nchw_one_gave() -> None:
    """The exported program takes the camera's layout; samples are permuted to match; names of modules stay."""
    model = Net().eval()
    orders = input_orders("nhwc", IMAGE, ())
    with permuting_inputs(model, orders):
        program = export_program(model, tensors_permuted(IMAGE, orders), name="net")
    (sample,) = permuted([IMAGE[0].numpy()], orders)
    assert sample.shape == (1, 4, 5, 3)
    with torch.no_grad():
        assert torch.allclose(
            program.module()(torch.from_numpy(sample)), model(*IMAGE), rtol=1e-5
        )  # another order of sums
    assert layouts_after(orders, IMAGE, ("NCHW",)) == ("NHWC",)
    assert any("conv" in str(node.meta.get("nn_module_stack")) for node in program.graph.nodes)


def test_a_layout_that_is_there_already_changes_nothing() -> None:
    """Asking for the model's own layout is no permutation; the other way round is one too."""
    assert input_orders("nchw", IMAGE, ()) == (None,)
    assert input_orders("nhwc", IMAGE, ("NHWC",)) == (None,)
    assert input_orders("nchw", IMAGE, ("NHWC",)) == ((0, 2, 3, 1),)


def test_a_layout_without_an_image_is_refused() -> None:
    """Rows have no layout to choose; an unknown name is told."""
    with pytest.raises(UserError, match="no input has a layout"):
        input_orders("nhwc", (torch.zeros(1, 4),), ())
    with pytest.raises(UserError, match="not one of nchw, nhwc"):
        input_orders("nhcw", IMAGE, ())


def test_examples_of_another_signature_keep_indices_valid() -> None:
    """Floats are drawn, integers are the example's own values, so that no index is out of range."""
    inputs = (torch.zeros(1, 3, 4, 4), torch.tensor([[5, 7]]))
    made = examples_at(inputs, {"large": ((1, 3, 8, 8), (1, 5))})["large"]
    assert made[0].shape == (1, 3, 8, 8)
    assert made[0].std() > 0.5
    assert set(made[1].reshape(-1).tolist()) == {5, 7}
    with pytest.raises(UserError, match="one shape for each input"):
        examples_at(inputs, {"large": ((1, 3, 8, 8),)})
