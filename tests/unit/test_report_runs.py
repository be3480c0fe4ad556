"""What the report says of one run beyond its latencies."""

from __future__ import annotations

from support.report_fixture import example_report

from edgekit.benchmarks.values import Block, Conditions, Energy, Memory, Operator, Run, RuntimeFacts
from edgekit.report.html import render_page
from edgekit.report.model import Report
from edgekit.report.runs import energy_text, operator_rows, run_pairs

MIB = 1 << 20


def conditions(at: int, celsius: float, mhz: int, load: float) -> Conditions:
    zones = {"skin": 30_000, "cpu": round(celsius * 1000)}
    clocks = {"cpu0": 300_000, "cpu4": mhz * 1000}
    return Conditions(monotonic_ns=at, load_average_1m=load, temperature_milli_c=zones, cpu_khz=clocks)


def operators(count: int) -> tuple[Operator, ...]:
    """`count` operators, each of 20 calls, the first the shortest: 1, 2, 3, … ms in all."""
    return tuple(Operator(name=f"n{i}", type="Conv", calls=20, total_ns=i * 1_000_000) for i in range(1, count + 1))


ENERGY = Energy(
    source="BAT0",
    idle_mw=2100,
    busy_mw=3200,
    idle_error_mw=5,
    busy_error_mw=6,
    inferences=1000,
    seconds=10,
    mj_per_inference=11.0,
    error_mj=0.08,
)


def report_with(**changes: object) -> tuple[Report, Run]:
    """The example report, its first run changed."""
    report = example_report(samples=20)
    row = next(r for r in report.rows if r.run)
    assert row.run is not None
    run = row.run.model_copy(update=changes)
    rows = tuple(r.model_copy(update={"run": run}) if r is row else r for r in report.rows)
    return report.model_copy(update={"rows": rows}), run


def full() -> tuple[Report, Run]:
    facts = RuntimeFacts(name="onnxruntime", version="1.27", threads=1, interface="run_with_iobinding")
    return report_with(
        runtime=facts,
        calls_per_sample=25,
        sampled_every=4,
        before=conditions(0, 38, 600, 0.4),
        blocks=tuple(Block(samples=4, waited_ns=6 * 10**9, state=conditions(i, 40 + i, 2400, 0.9)) for i in (1, 2)),
        after=conditions(9, 41, 2400, 1.0),
        memory=Memory(
            baseline_rss_bytes=40 * MIB,
            baseline_pss_bytes=35 * MIB,
            loaded_rss_bytes=50 * MIB,
            peak_rss_bytes=64 * MIB,
            pss_bytes=55 * MIB,
        ),
        energy=ENERGY,
        operators=operators(12),
    )


def test_a_run_tells_the_device_its_memory_and_energy() -> None:
    """Each with its unit; the hottest zone alone; the runtime's memory apart from the model's."""
    _, run = full()
    assert dict(run_pairs(run)) == {
        "Timed": "run_with_iobinding; 25 calls a sample; one sample in 4 kept; 2 blocks",
        "Temperature": "38.0 to 42.0 °C (cpu)",
        "Clocks": "600 to 2400 MHz, the fastest core",
        "Load": "0.40 to 1.00",
        "Waited for the plan's conditions": "12.0 s",
        "Memory": "40.0 MiB with the runtime imported; peak 64.0 MiB; the model's own 24.0 MiB; "
        "proportional 55.0 MiB with the model, 35.0 MiB before it",
        "Energy": energy_text(ENERGY),
    }
    assert energy_text(ENERGY) == "11 ± 0.08 mJ per inference above idle (BAT0: 3200 mW busy, 2100 mW idle)"


def test_what_a_run_does_not_tell_is_left_out() -> None:
    """A device without sensors, a run without memory, energy, operators: no line, no row, no zero."""
    _, run = report_with(runtime=None, before=None, after=None, memory=None)
    assert run_pairs(run) == ()
    assert operator_rows(run) == ()


def test_the_longest_operators_come_first_and_the_rest_as_one() -> None:
    """Twelve operators of 1 to 12 ms over 20 runs: ten rows, then the two shortest together; shares of 78 ms."""
    _, run = full()
    rows = operator_rows(run)
    assert rows[0] == ("n12", "Conv", "600 µs", "15.4%")
    assert [row[0] for row in rows[1:10]] == [f"n{i}" for i in range(11, 2, -1)]
    assert rows[10] == ("2 more", "", "150 µs", "3.8%")


def test_the_page_shows_them_and_escapes_what_the_device_named() -> None:
    """An operator's name and a sensor's come from the device: no markup of theirs gets into the page."""
    hostile = "<img src=x onerror=alert(1)>"
    report, _ = report_with(
        operators=(Operator(name=hostile, type=hostile, calls=1, total_ns=5),),
        energy=ENERGY.model_copy(update={"source": hostile}),
    )
    page = render_page(report, "")
    assert hostile not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 3
    assert "Longest operators" in page
    plain, _ = report_with()
    assert "Longest operators" not in render_page(plain, "")
