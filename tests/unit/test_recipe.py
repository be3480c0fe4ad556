"""Recipes: what is wrong is said with its line and the nearest known name."""

from pathlib import Path

import pytest

from edgekit.artifact import Scheme
from edgekit.errors import RecipeError
from edgekit.recipe import Recipe, load_recipe

GOOD = """\
schema_version: 1
name: fashion
workload: workload.py:workload
teacher: {train: {epochs: 3}}
student:
  - prune: {macs_ratio: 0.4}
  - distill: {}
convert: {to: [tflite, onnx], schemes: [fp32, static_w8a8]}
devices: [local, {spec: "board:amd64", required: false}]
gates: {max_accuracy_drop_pp: 2.0}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_good_recipe_has_its_defaults_resolved(tmp_path: Path) -> None:
    """What is left out is filled in, and a plain device name is a required device."""
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.convert.schemes == (Scheme.FP32, Scheme.STATIC_W8A8)
    assert [(d.spec, d.required) for d in recipe.devices] == [("local", True), ("board:amd64", False)]
    assert [step.kind for step in recipe.student] == ["prune", "distill"]
    assert recipe.plan.min_samples == 200


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gates:", "gate:", r"recipe.yaml:10: gate: unknown key; did you mean 'gates'"),
        ("macs_ratio", "mac_ratio", r":6: student.0.prune.mac_ratio: unknown key; did you mean 'macs_ratio'"),
        ("static_w8a8", "static_w8", r":8: convert.schemes.1: unknown value 'static_w8'; did you mean 'static_w8a8'"),
        ("tflite", "tflight", r"unknown value 'tflight'; did you mean 'tflite'"),
        ("epochs: 3", "epochs: no", r":4: teacher.train.epochs: .*valid integer.*'no'"),
        ("epochs: 3", "epochs: 1:30", r"valid integer.*'1:30'"),
        ("0.4", "1.4", r":6: student.0.prune.macs_ratio: .*less than or equal to 1 \(got 1.4\)"),
        ("name: fashion", "name: ../fashion", r":2: name: must be letters"),
        ("  - distill: {}", "  - {distill: {}, prune: {}}", r":7: student.1: a step is one of"),
        ("  - distill: {}", "  - {}", r":7: student.1: a step is one of"),
        ("[local,", "[local, local,", r"devices: names a device twice"),
        ("schema_version: 1", "schema_version: 2", r":1: schema_version 2; this edgekit reads 1"),
        ("{epochs: 3}}", "{epochs: 3}, weights: x}", r"either 'train' or 'weights'"),
        ("name: fashion", "name: fashion\nname: again", r"line 3: key 'name' stands twice"),
        ("{max_accuracy_drop_pp: 2.0}", "&a {b: *a}", r"line 10: aliases"),
        ("2.0}", "2.0", r"line 1[01]: "),
        ("workload: workload.py:workload\n", "", r"workload: Field required"),
        ("2.0", "!!python/object/apply:os.system ['true']", r"line 10: "),
    ],
)
def test_a_bad_recipe_is_one_clear_error(tmp_path: Path, old: str, new: str, said: str) -> None:
    """Unknown keys and values name the nearest known one; every error names its line."""
    assert old in GOOD
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path, GOOD.replace(old, new, 1)))


def test_depth_size_and_kind_are_bounded(tmp_path: Path) -> None:
    """Deeply nested, huge, binary and non-mapping files are refused before anything walks them."""
    for text, said in (
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50"),
        ("a: " + "x" * (1024 * 1024 + 1), "larger than"),
        ("- a\n- b", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_recipe(write(tmp_path, text))
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_missing_recipe_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    """A path that is not a file says so and offers what was probably meant."""
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is a folder") as caught:
        load_recipe(tmp_path)
    assert "recipe.yaml" in (caught.value.hint or "")


def test_overrides_replace_values_by_place(tmp_path: Path) -> None:
    """`--set` reaches nested values and list items, and is checked like the rest."""
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, overrides={("teacher", "train", "epochs"): 7, ("student", "0", "prune", "round_to"): 4})
    assert recipe.teacher.train is not None
    assert recipe.teacher.train.epochs == 7
    assert recipe.student[0].prune is not None
    assert recipe.student[0].prune.round_to == 4
    with pytest.raises(RecipeError, match="unknown key"):
        load_recipe(path, overrides={("plan", "mins_samples"): 7})
    with pytest.raises(RecipeError, match="no item"):
        load_recipe(path, overrides={("student", "9", "prune"): {}})


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    """What the report stores is a whole recipe: reading it gives an equal one."""
    recipe = load_recipe(write(tmp_path, GOOD))
    values = recipe.model_dump(mode="json", exclude_unset=True)
    assert Recipe.model_validate(values) == recipe
