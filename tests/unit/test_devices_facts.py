"""Facts read from devices: known formats are understood, hostile ones are harmless."""

from __future__ import annotations

import random

from edgekit.benchmarks.devices.facts import device_info

PHONE = """abi=aarch64
kernel=Linux 5.10.149-android13
boot_id=0aa0b8b8-3f3c-4a9d-a3c5-7d6f6f1d2a11
cpuinfo=Hardware\t: Qualcomm Technologies, Inc SM8550
cpuinfo=Features\t: fp asimd evtstrm aes asimddp i8mm bf16 sve2
cores=8
mem=MemTotal:       11534336 kB
max_khz.0=2016000
max_khz.1=2016000
max_khz.2=2016000
max_khz.3=2803200
max_khz.4=2803200
max_khz.5=2803200
max_khz.6=2803200
max_khz.7=3187200
governor.0=walt
governor.7=walt
prop.ro.serialno=R5CT30ABCDE
prop.ro.product.manufacturer=samsung
prop.ro.product.model=SM-S918B
prop.ro.soc.model=SM8550
prop.ro.build.version.release=14
prop.ro.build.version.sdk=34
"""


def test_a_phones_facts_are_understood() -> None:
    """Android properties, big.LITTLE clusters by maximum clock, and the kernel-deciding features only."""
    info = device_info(PHONE, spec="adb:R5CT30ABCDE", kind="adb")
    assert (info.serial, info.model, info.soc) == ("R5CT30ABCDE", "samsung SM-S918B", "SM8550")
    assert (info.os, info.android_api, info.libc) == ("Android 14", 34, "bionic")
    assert [(c.cores, c.max_khz) for c in info.clusters] == [
        ((0, 1, 2), 2016000),
        ((3, 4, 5, 6), 2803200),
        ((7,), 3187200),
    ]
    assert info.cpu_features == ("asimd", "asimddp", "bf16", "i8mm", "sve2")
    assert (info.cores, info.ram_bytes, info.governor) == (8, 11534336 * 1024, "walt")
    assert info.python is None
    assert not info.emulated


def test_an_emulator_says_so() -> None:
    """A latency measured on an emulator is never taken for a phone's."""
    info = device_info(PHONE + "prop.ro.boot.qemu=1\n", spec="adb:emulator-5554", kind="adb")
    assert info.emulated
    assert info.emulation


def test_boards_with_copied_cards_are_two_devices() -> None:
    """A board's own serial number goes before the machine id, which a copied SD card shares; zeros are no number."""
    for serial, expected in (("10000000abcdef01", "10000000abcdef01"), ("0000000000000000", "m"), ("", "m")):
        assert device_info(f"dt_serial={serial}\nmachine_id=m\n", spec="ssh:pi", kind="ssh").serial == expected


def test_absent_facts_are_none() -> None:
    """Nothing said is nothing known; the serial falls back to what the user typed."""
    info = device_info("", spec="adb:x", kind="adb")
    assert info.serial == "adb:x"
    assert (info.cores, info.ram_bytes, info.os, info.libc, info.python, info.clusters) == (None,) * 5 + ((),)


def test_values_are_cut_and_cleaned() -> None:
    """Control characters, terminal escapes and endless values do not get through."""
    text = f"prop.ro.product.model=\x1b[31mred\x07\x00 phone{'x' * 9999}\nabi=a\u202eb\ncores=99999999999999999999\n"
    info = device_info(text, spec="adb:x", kind="adb")
    assert info.model is not None
    assert len(info.model) <= 200
    assert info.model.isprintable()
    assert info.abi == "ab"
    assert info.cores is None


def test_any_text_is_survived() -> None:
    """Ten thousand mutations of a phone's answer give a DeviceInfo each time, never an exception."""
    rng = random.Random(0)
    for _ in range(10_000):
        data = list(PHONE)
        for _ in range(rng.randrange(1, 12)):
            data[rng.randrange(len(data))] = chr(
                rng.choice([rng.randrange(32), rng.randrange(256), 0x2028, 0xD800, 61])
            )
        info = device_info("".join(data)[: rng.randrange(len(data))], spec="adb:x", kind="adb")
        assert info.spec == "adb:x"
