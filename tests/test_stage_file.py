"""The file of a stage that is gone on with where it was broken off."""

from pathlib import Path

import pytest

from zerosearch.errors import UserError
from zerosearch.report.files import JsonLines
from zerosearch.report.stage_file import StageFile


def test_a_stage_that_is_broken_off_in_its_first_part_is_gone_on_with(tmp_path: Path) -> None:
    path, settings = tmp_path / "rows.jsonl", {"samples": 1}
    StageFile(path, settings)
    JsonLines(path).append({"row": 1})  # and then its process was killed
    again = StageFile(path, settings)
    assert (again.done, again.rows()) == (0, [])
    again.add([{"row": 1}, {"row": 2}], 1, figure=0.5)
    assert (StageFile(path, settings).done, StageFile(path, settings).rows()) == (1, [{"row": 1}, {"row": 2}])
    with pytest.raises(UserError, match="begun with another samples"):
        StageFile(path, {"samples": 2})


@pytest.mark.parametrize("name", [".", "rows.txt"])
def test_a_stage_is_kept_in_json_lines(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"ends in \.jsonl"):
        StageFile(tmp_path / name, {})


def test_rows_of_another_hand_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match="no unfinished stage wrote it"):
        StageFile(path, {})
