"""The planted faults: each can be planted, and a sample is seen; `python proofs/mutations.py` tries all of them."""

from pathlib import Path

import pytest

from proofs import mutations
from proofs.faults import FAULTS, PIPELINE, Fault

# Of several rooms, and with tests of a few seconds.
SAMPLE = (
    "images are flipped upside down",
    "pictures are not turned as EXIF says",
    "equal probabilities stand in reverse",
    "black stands behind what is transparent",
    "too few images are flipped",
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault: Fault, tmp_path: Path) -> None:
    (tmp_path / fault.file).parent.mkdir(parents=True)
    (tmp_path / fault.file).write_text((mutations.ROOT / fault.file).read_text())
    mutations.plant(fault, tmp_path)
    assert all((mutations.ROOT / test).is_file() for test in fault.tests)
    compile((tmp_path / fault.file).read_text(), fault.file, "exec")


def test_there_are_enough_and_no_two_have_one_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30


def test_a_text_that_is_not_found_once_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\na = 1\n")
    for text, times in (("a = 1", 2), ("b = 1", 0)):
        with pytest.raises(ValueError, match=f"found it {times} times"):
            mutations.plant(Fault("x", "code.py", text, "", ()), tmp_path)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(
        mutations,
        "try_fault",
        lambda fault: tried.append(fault.name) or {"seen_by": "t", "seconds": 1},
    )
    mutations.run(FAULTS[:2], tmp_path / "state.json", jobs=2)
    assert sorted(tried) == sorted(fault.name for fault in FAULTS[:2])
    mutations.run(FAULTS[:3], tmp_path / "state.json", jobs=2)
    assert tried[2:] == [FAULTS[2].name]
    changed = FAULTS[0]._replace(replacement="something else")
    mutations.run([changed], tmp_path / "state.json", jobs=1)
    assert tried[3:] == [changed.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_planted_fault_is_seen(name: str) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    assert mutations.try_fault(fault)["seen_by"]


@pytest.mark.slow
def test_a_fault_that_no_test_sees_is_alive() -> None:
    harmless = Fault(
        "harmless",
        PIPELINE,
        "CROP_TRIES = 10",
        "CROP_TRIES = 5 + 5",
        ("tests/data/test_preprocessing.py",),
    )
    assert mutations.try_fault(harmless)["seen_by"] is None
