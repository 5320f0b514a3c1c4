"""What the machine says of itself, from files as the kernel writes them; and that a hot one gets less to do."""

import threading

import pytest

from edgefer import heat, machine, service
from edgefer.heat import HOT_FPS, Thermostat
from edgefer.machine import MachineState

MEMINFO = "MemTotal:        1880000 kB\nMemFree:          100000 kB\nMemAvailable:     500000 kB\n"


@pytest.fixture
def root(tmp_path):
    """A machine that can be changed: `root(path, text)` writes one of its files."""

    def write(path: str, text: str) -> None:
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, errors="surrogateescape")

    write.path = tmp_path / "root"
    write.temperature = lambda degrees: write("sys/class/thermal/thermal_zone0/temp", f"{degrees * 1000:.0f}\n")
    return write


def test_this_machine_tells_what_it_can(tmp_path):
    state = machine.read_state(tmp_path)
    assert 5 < state.memory_mb < 10000
    assert isinstance(state.clock_synced, bool)
    assert state.temperature_c is None or -50 < state.temperature_c < 150
    assert state.free_memory_mb > 1
    assert state.free_disk_mb > 1


def test_a_machine_that_tells_nothing(root, tmp_path):
    state = machine.read_state(tmp_path, root.path)
    assert (state.temperature_c, state.throttled, state.free_memory_mb) == (None, None, None)


@pytest.mark.parametrize(("text", "throttled"), [("0\n", False), ("50000", False), ("50005", True), ("1", True)])
def test_a_pis_flags_for_now_count_and_those_of_the_past_do_not(root, text, throttled):
    root("sys/devices/platform/soc/soc:firmware/get_throttled", text)
    assert machine.is_throttled(root.path) is throttled


def test_a_pi_5_has_its_flags_elsewhere(root):
    root("sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "50005\n")
    assert machine.is_throttled(root.path) is True


@pytest.mark.parametrize(("alarm", "throttled"), [("0\n", False), ("1\n", True), ("", None)])
def test_a_kernel_without_the_flags_tells_of_the_power_supply(root, alarm, throttled):
    root("sys/class/hwmon/hwmon0/name", "cpu_thermal\n")
    root("sys/class/hwmon/hwmon2/name", "rpi_volt\n")
    root("sys/class/hwmon/hwmon2/in0_lcrit_alarm", alarm)
    assert machine.is_throttled(root.path) is throttled


def test_heat_is_in_degrees_and_the_hottest_zone_counts(root):
    root.temperature(61.234)
    assert machine.temperature_c(root.path) == pytest.approx(61.234)
    root("sys/class/thermal/thermal_zone1/temp", "58000\n")
    root("sys/class/thermal/thermal_zone10/temp", "71000\n")
    # A sensor that is off, and one of a Jetson that isn't a sensor.
    root("sys/class/thermal/thermal_zone3/temp", "-274000\n")
    root("sys/class/thermal/thermal_zone4/temp", "100000\n")
    root("sys/class/thermal/thermal_zone4/type", "PMIC-Die\n")
    assert machine.temperature_c(root.path) == 71


@pytest.mark.parametrize("odd", ["", "\n", "N/A", "0x", "-", "max", "\0", "\udcff", "0.5", "1 z", "z" * 5000])
def test_whatever_the_kernel_says_nothing_fails(root, tmp_path, odd):
    for path in (
        "sys/class/thermal/thermal_zone0/temp",
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/class/hwmon/hwmon0/in0_lcrit_alarm",
        "sys/fs/cgroup/edgefer/memory.max",
        "sys/fs/cgroup/edgefer/memory.current",
    ):
        root(path, odd)
    root("sys/class/hwmon/hwmon0/name", "rpi_volt\n")
    root("proc/self/cgroup", "0::/edgefer\n")
    root("proc/meminfo", f"MemAvailable: {odd}\nMemAvailable: {'9' * 5000}\nMemAvailable:\n\n")
    root("sys/fs/cgroup/edgefer/memory.stat", f"inactive_file {odd}\n")
    state = machine.read_state(tmp_path, root.path)
    assert (state.temperature_c, state.throttled) == (None, None)
    assert state.free_memory_mb == (pytest.approx(0.001024) if odd == "1 z" else None)


def test_free_memory_is_the_machines_or_the_services_own_where_that_is_less(root):
    root("proc/meminfo", MEMINFO)
    assert machine.free_memory_mb(root.path) == pytest.approx(512)
    group = "sys/fs/cgroup/system.slice/edgefer.service"
    root("proc/self/cgroup", "0::/system.slice/edgefer.service\n")
    root(f"{group}/memory.max", "max\n")
    root(f"{group}/memory.high", "max\n")
    root(f"{group}/memory.current", "180000000\n")
    root(f"{group}/memory.stat", "anon 100000000\ninactive_file 60000000\n")
    assert machine.free_memory_mb(root.path) == pytest.approx(512)
    root(f"{group}/memory.max", "200000000\n")
    assert machine.free_memory_mb(root.path) == pytest.approx(80)
    root(f"{group}/memory.high", "150000000\n")
    assert machine.free_memory_mb(root.path) == pytest.approx(30)


def test_the_disk_is_that_of_the_state_folder_even_before_it_is_there(tmp_path):
    there, not_yet = (machine.free_disk_mb(folder) for folder in (tmp_path, tmp_path / "state" / "edgefer"))
    assert there == pytest.approx(not_yet, rel=0.05)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(heat.time, "monotonic", lambda: Clock.now)
    return Clock


def at(degrees: float | None, *, throttled: bool | None = None) -> MachineState:
    return MachineState(degrees, throttled, 90.0, None, None, clock_synced=True)


def test_a_cool_machine_waits_for_nothing(clock):
    thermostat = Thermostat()
    thermostat.note(at(79.9))
    assert (thermostat.cause, thermostat.pause_s()) == (None, 0)


@pytest.mark.parametrize(
    ("state", "cause"),
    [(at(80.0), "hot"), (at(60.0, throttled=True), "throttled"), (at(None, throttled=True), "throttled")],
)
def test_a_hot_or_throttled_machine_looks_at_fewer_frames(clock, caplog, state, cause):
    thermostat = Thermostat()
    thermostat.pause_s()
    thermostat.note(state)
    assert thermostat.cause == cause
    assert thermostat.pause_s() == pytest.approx(1 / HOT_FPS)
    clock.now += 1 / HOT_FPS + 0.05
    assert thermostat.pause_s() == pytest.approx(1 / HOT_FPS - 0.05)  # the time that a frame took counts
    assert "looking at 5 frames a second until that is over" in caplog.text
    thermostat.note(state)
    assert len(caplog.records) == 1


def test_it_goes_on_as_before_once_it_is_cool_for_a_while_and_not_before(clock):
    thermostat = Thermostat()
    causes = []
    for degrees, seconds in ((85, 10), (75, 100), (71, 29), (73, 10), (71, 29), (71, 2), (79, 10)):
        thermostat.note(at(degrees))
        clock.now += seconds
        thermostat.note(at(degrees))
        causes.append(thermostat.cause)
    assert causes == ["hot", "hot", "hot", "hot", "hot", None, None]


def test_one_power_dip_of_a_warm_machine_is_over_after_a_while(clock, caplog):
    caplog.set_level("INFO")
    thermostat = Thermostat()
    thermostat.note(at(74, throttled=True))
    for _ in range(2):
        thermostat.note(at(74))
        clock.now += 31
    thermostat.note(at(74))
    assert thermostat.cause is None
    assert "neither hot nor throttled any more: looking at every frame" in caplog.text


def test_the_daemon_slows_down_on_a_hot_machine_says_so_and_comes_back(
    root, mosquitto, subscribe, monkeypatch, tmp_path
):
    monkeypatch.setattr(heat, "CALM_S", 0.0)
    monkeypatch.setattr(service, "LOOK_EVERY_S", 0.1)
    root.temperature(85)
    state_dir = tmp_path / "state"
    settings = mosquitto.settings().model_copy(update={"camera": "synthetic://?fps=20", "state_dir": state_dir})
    subscriber = subscribe(mosquitto)
    stop = service.Stop()
    daemon = threading.Thread(target=service.run, args=(settings, stop, root.path))
    daemon.start()

    def codes(health: dict) -> set[str]:
        return {problem["code"] for problem in health["problems"] if problem["part"] == "machine"} - {"clock"}

    try:
        hot = subscriber.wait_for_payload("/health", lambda health: codes(health) == {"hot"})
        assert (hot["status"], hot["temperature_c"]) == ("degraded", 85)
        root.temperature(50)
        cool = subscriber.wait_for_payload(
            "/health", lambda health: codes(health) == set() and health["time"] > hot["time"]
        )
        assert cool["status"] == "ok"
    finally:
        stop.asked_by = "the test"
        daemon.join(30)
