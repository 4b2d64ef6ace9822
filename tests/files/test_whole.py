import pytest

from versatune_plugin.files.whole import replacing, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "file"
    write_whole(file, "old and long\n")
    write_whole(file, "néw\n")
    assert file.read_bytes() == "néw\n".encode()
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "file"
    write_whole(file, "old")
    with pytest.raises(TypeError), replacing(file) as new:
        new.writelines([b"half of the new one", None])
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_in_the_way_of_the_new_file_is_left_alone(tmp_path):
    (tmp_path / "file.tmp").mkdir()
    with pytest.raises(OSError, match=r"file\.tmp"):
        write_whole(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.tmp"]
