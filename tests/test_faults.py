"""Each known fault still applies. Whether the tests catch it is for `python -m tests.faults.run`."""

from pathlib import Path

import pytest
from faults.run import Fault, main, read_faults

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("fault", read_faults(), ids=lambda fault: fault.name)
def test_a_fault_applies_and_its_tests_are_there(fault: Fault) -> None:
    assert fault.problem(ROOT) is None
    assert fault.new != fault.old and fault.what and fault.tests


def test_faults_that_do_not_apply_are_told(tmp_path: Path) -> None:
    (tmp_path / "vlm_vision").mkdir()
    (tmp_path / "vlm_vision" / "code.py").write_text("a = 1\na = 1\n")
    fault = Fault("twice", "", "vlm_vision/code.py", "a = 1", "a = 2", ("tests/test_code.py::test_a",))
    assert "holds its old text 2 times" in str(fault.problem(tmp_path))
    (tmp_path / "vlm_vision" / "code.py").write_text("a = 1\n")
    assert "no test file tests/test_code.py" in str(fault.problem(tmp_path))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_code.py").write_text("def test_ab():\n    pass\n")
    assert "has no test test_a" in str(fault.problem(tmp_path))
    (tmp_path / "tests" / "test_code.py").write_text("def test_a():\n    pass\n")
    assert fault.problem(tmp_path) is None
    moved = Fault("moved", "", "vlm_vision/other.py", "a = 1", "a = 2", fault.tests)
    assert "is not there, expected once; the text is in vlm_vision/code.py" in str(moved.problem(tmp_path))


def test_an_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["no_such_fault"])
    assert ended.value.code == 2
    assert "there is no fault no_such_fault" in capsys.readouterr().err
