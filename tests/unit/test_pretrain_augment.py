"""Augmentations: shapes and dtypes kept, seeded, each sample for itself, and each does what its name says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from edgekit.errors import UserError, WorkloadError
from edgekit.pretrain import augment as a
from edgekit.pretrain.options import AUGMENTATION_NAMES, Modality, PretrainOptions

IMAGE_NAMES = AUGMENTATION_NAMES[:6]
SIGNAL_NAMES = AUGMENTATION_NAMES[6:]


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def batch_for(name: str) -> Tensor:
    shape = (6, 3, 12, 10) if name in IMAGE_NAMES else (6, 3, 40)
    return torch.randn(shape, generator=seeded(9))


def test_a_recipe_knows_the_names_that_exist() -> None:
    """The names options check by, before torch is loaded, are those of the table."""
    assert tuple(a.AUGMENTATIONS) == AUGMENTATION_NAMES


@pytest.mark.parametrize("name", AUGMENTATION_NAMES)
def test_every_augmentation_is_seeded_and_keeps_the_batch(name: str) -> None:
    """Same seed, same bits; another seed, others; shape, dtype and the input itself stay as they were."""
    x = batch_for(name)
    before = x.clone()
    change = a.augmentation_named(name)
    one, same, other = change(x, seeded(1)), change(x, seeded(1)), change(x, seeded(2))
    assert one.shape == x.shape
    assert one.dtype == x.dtype
    assert torch.equal(x, before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    drawn = change(x)
    torch.manual_seed(5)
    assert torch.equal(drawn, change(x))


@pytest.mark.parametrize("name", AUGMENTATION_NAMES)
def test_every_augmentation_draws_each_sample_for_itself(name: str) -> None:
    """A batch of one sample repeated does not come out as one sample repeated."""
    x = batch_for(name)[:1].repeat(64, *[1] * (batch_for(name).ndim - 1))
    changed = a.augmentation_named(name)(x, seeded(0))
    assert len(torch.unique(changed.flatten(1), dim=0)) > 1


@pytest.mark.parametrize(("modality", "shape"), [
    (Modality.IMAGE, (4, 3, 16, 16)), (Modality.IMAGE, (4, 1, 9, 14)), (Modality.AUDIO, (4, 200)),
    (Modality.SPECTROGRAM, (4, 1, 20, 30)), (Modality.SPECTROGRAM, (4, 20, 30)), (Modality.SENSOR, (4, 6, 50)),
])  # fmt: skip
def test_every_modality_has_a_set_of_its_own(modality: Modality, shape: tuple[int, ...]) -> None:
    """Two views of a batch differ from it and from each other, and hold finite numbers."""
    views = a.augmentation_for(modality)
    x = torch.randn(shape, generator=seeded())
    first, second = views(x, seeded(1)), views(x, seeded(2))
    assert first.shape == x.shape
    assert bool(torch.isfinite(first).all())
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, x)


def test_the_whole_image_as_crop_is_the_image() -> None:
    """A crop of all the area at the image's own ratio gives the pixels back (the sampling grid is not shifted)."""
    x = torch.rand(3, 2, 8, 8, generator=seeded())
    crop = a.RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert torch.allclose(crop(x, seeded()), x, atol=1e-5)


def test_a_crop_shows_a_part_at_the_same_values() -> None:
    """Crops of an image that is its own column number hold a narrower range of columns, within the image's."""
    x = torch.arange(32.0).expand(50, 1, 32, 32).contiguous()
    cropped = a.RandomResizedCrop(scale=(0.25, 0.25), ratio=(1.0, 1.0))(x, seeded())
    spans = cropped.flatten(1).amax(1) - cropped.flatten(1).amin(1)
    assert bool((spans < 17).all())
    assert bool((spans > 14).all())  # half the width, less the pixel at each border
    assert cropped.min() >= 0
    assert cropped.max() <= 31


def test_an_affine_change_of_nothing_is_nothing() -> None:
    """At 0 degrees and no shift the pixels come back; a shift alone moves a pixel by at most its share."""
    x = torch.rand(3, 1, 10, 12, generator=seeded())
    assert torch.allclose(a.RandomAffine(degrees=0, translate=0)(x, seeded()), x, atol=1e-5)
    dot = torch.zeros(200, 1, 21, 21)
    dot[..., 10, 10] = 1
    moved = a.RandomAffine(degrees=0, translate=0.1)(dot, seeded())
    weights = moved / moved.sum(dim=(2, 3), keepdim=True)
    places = (weights * torch.arange(21.0)).sum(dim=(1, 2, 3)) - 10
    assert float(places.abs().max()) <= 2.1 + 1e-3
    assert float(places.abs().max()) > 1.5
    turned = a.RandomAffine(degrees=30, translate=0)(dot, seeded())
    assert torch.allclose(turned[..., 10, 10], torch.ones(200, 1), atol=1e-5)  # the centre stays


def test_flips_are_the_share_asked_for() -> None:
    """With p = 0.3 about 30 % are mirrored, and mirrored they are exactly."""
    x = torch.randn(2000, 1, 1, 4, generator=seeded())
    y = a.HorizontalFlip(p=0.3)(x, seeded())
    flipped = (y == x.flip(-1)).flatten(1).all(1)
    assert bool((flipped | (y == x).flatten(1).all(1)).all())
    assert abs(float(flipped.float().mean()) - 0.3) < 4 * math.sqrt(0.21 / 2000)  # four standard errors


def test_colours_turn_about_gray() -> None:
    """Hue and saturation leave luminance and gray pixels as they are, and change colours."""
    x = torch.rand(8, 3, 5, 5, generator=seeded())
    jitter = a.ColorJitter(brightness=0, contrast=0, saturation=0.5, hue=0.5, p=1)
    luma = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    y = jitter(x, seeded())
    assert torch.allclose((y * luma).sum(1), (x * luma).sum(1), atol=1e-5)
    assert not torch.allclose(y, x, atol=0.05)
    gray = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(jitter(gray, seeded()), gray, atol=2e-3)  # YIQ's printed coefficients have three digits


def test_a_blur_keeps_constants_and_smooths_noise() -> None:
    """The weights sum to one, and what varies from pixel to pixel varies less."""
    blur = a.GaussianBlur(sigma=(1.0, 1.0), p=1)
    flat = torch.full((2, 3, 30, 30), 0.7)
    assert torch.allclose(blur(flat, seeded()), flat, atol=1e-6)
    noise = torch.randn(4, 1, 40, 40, generator=seeded())
    assert float(blur(noise, seeded()).std()) < 0.6 * float(noise.std())
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[..., 20, 20] = 1
    spread = blur(impulse, seeded())[0, 0]
    assert torch.allclose(spread, spread.T, atol=1e-7)
    assert torch.allclose(spread, spread.flip(0), atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), segments=st.integers(1, 8), steps=st.integers(2, 40))
def test_a_permutation_loses_no_time_step(seed: int, segments: int, steps: int) -> None:
    """Each sample's values are the same multiset, whole columns move, and pieces keep their inner order."""
    x = torch.stack([torch.arange(steps), 100 + torch.arange(steps)]).float().expand(4, 2, steps)
    y = a.Permutation(segments=segments)(x, seeded(seed))
    assert torch.equal(y.sort(dim=-1).values, x)
    assert torch.equal(y[:, 1] - y[:, 0], torch.full((4, steps), 100.0))
    breaks = (y[:, 0].diff(dim=-1) != 1).sum(dim=-1)
    assert int(breaks.max()) <= segments - 1


def test_a_shift_is_a_roll_within_reach() -> None:
    """Every sample is its signal rolled by at most the share, and all channels by the same number of steps."""
    x = torch.arange(20.0).expand(200, 2, 20)
    y = a.TimeShift(share=0.25)(x, seeded())
    by = y[:, 0].argmin(dim=1)
    for sample in range(200):
        assert torch.equal(y[sample, 0], x[0, 0].roll(int(by[sample])))
    assert torch.equal(y[:, 0], y[:, 1])
    assert set(by.tolist()) == {*range(6), *range(15, 20)}


def test_time_is_where_it_is_said_to_be() -> None:
    """`[B, T, C]` with time_axis 1 is changed as `[B, C, T]` is with the last axis."""
    x = torch.randn(5, 3, 40, generator=seeded())
    for name in ("time_shift", "time_crop", "time_mask", "permutation", "scaling", "channel_drop"):
        last = a.augmentation_named(name)(x, seeded(3))
        turned = a.augmentation_named(name, time_axis=1)(x.transpose(1, 2), seeded(3))
        assert torch.equal(turned.transpose(1, 2), last), name


def test_noise_has_the_power_asked_for() -> None:
    """At 20 dB the added noise has a hundredth of the signal's power, whatever the signal's units."""
    x = 50 * torch.randn(20, 5000, generator=seeded())
    added = a.Noise(snr_db=(20.0, 20.0))(x, seeded()) - x
    ratio = 10 * torch.log10(x.var(dim=1) / added.var(dim=1))
    assert bool(((ratio - 20).abs() < 0.5).all())  # var of 5000 draws: 2 % of one, 0.1 dB


def test_masks_cover_whole_steps_and_bins() -> None:
    """A time mask hides whole columns, a frequency mask whole rows, at the sample's mean and no more than the share."""
    x = torch.randn(50, 1, 20, 40, generator=seeded())
    mean = x.flatten(1).mean(1).reshape(-1, 1, 1, 1)
    for mask, axis, size in ((a.TimeMask(share=0.2, count=1), 2, 40), (a.FrequencyMask(share=0.2, count=1), 3, 20)):
        hidden = mask(x, seeded()) == mean
        lines = hidden.all(dim=axis).flatten(1)
        assert torch.equal(hidden.sum(), lines.sum() * (20 * 40 // size))
        assert int(lines.sum(1).max()) == round(0.2 * size)


def test_a_channel_always_stays() -> None:
    """Even at p = 1 one channel of each sample is left."""
    x = torch.ones(30, 4, 7)
    left = a.ChannelDrop(p=1.0)(x, seeded())[:, :, 0].sum(1)
    assert torch.equal(left, torch.ones(30))


def test_gains_are_decibels() -> None:
    """6 dB is a factor of two of amplitude at most, either way."""
    by = a.Gain(decibels=6.0)(torch.ones(500, 3), seeded())[:, 0]
    assert 1.9 < float(by.max()) <= 10 ** (6 / 20)
    assert 10 ** (-6 / 20) <= float(by.min()) < 0.53


@pytest.mark.parametrize(("name", "given", "says"), [
    ("blurr", {}, "unknown augmentation 'blurr'"),
    ("gaussian_blur", {"sigmas": [1, 2]}, "did you mean 'sigma'"),
    ("gaussian_blur", {"sigma": [2, 1]}, "in order"),
    ("gaussian_blur", {"sigma": 1}, "not its parameters"),
    ("random_resized_crop", {"scale": [0.5, 1.5]}, "between 0 and 1"),
    ("horizontal_flip", {"p": 2}, "between 0 and 1"),
    ("permutation", {"segments": 0}, "at least 1"),
    ("noise", {"p": -1}, "between 0 and 1"),
])  # fmt: skip
def test_a_wrong_augmentation_says_what_is_wrong(name: str, given: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        a.augmentation_named(name, given)


def test_an_unknown_name_in_a_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'time_shift'"):
        PretrainOptions(augmentations=("time_shif",))


def test_augmentations_refuse_what_they_cannot_change() -> None:
    """Images for image augmentations, floats for all, three axes for channels, an axis that exists."""
    with pytest.raises(WorkloadError, match=r"changes images.*float32 \[4, 3, 10\]"):
        a.HorizontalFlip()(torch.zeros(4, 3, 10))
    with pytest.raises(WorkloadError, match=r"changes images.*uint8"):
        a.GaussianBlur()(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(WorkloadError, match=r"changes signals.*int64"):
        a.Jitter()(torch.zeros(4, 10, dtype=torch.int64))
    with pytest.raises(WorkloadError, match="batch, channels, time"):
        a.ChannelDrop()(torch.zeros(4, 10))
    with pytest.raises(WorkloadError, match="time_axis is 3"):
        a.TimeShift(time_axis=3)(torch.zeros(4, 3, 10))
    with pytest.raises(WorkloadError, match="bins, time"):
        a.FrequencyMask()(torch.zeros(4, 10))
