"""Rows as text."""

from support.records import record, rows_of, speed, sweep

from toolkit.present.tables import markdown_table, printed_cells, text_table


def test_tables_align() -> None:
    assert text_table(["a", "bb"], [["long", "1"], ["x", "22"]]) == "a     bb\nlong   1\nx     22"


def test_names_from_files_stay_text() -> None:
    table = markdown_table(["run", "x"], [["</script><script>alert(1)</script> | $x_ \\", "1"]])
    assert "<script" not in table
    assert "\\|" in table


def test_only_columns_that_tell_something_are_printed() -> None:
    header, lines = printed_cells(rows_of(sweep()))
    assert "batch" not in header  # the same everywhere
    assert "teacher" not in header  # in the page only
    assert lines[0][0] == "demo 12 layers dense *"  # on the front
    assert lines[0][header.index("zeros")] == "0.0%"
    both = [record(speeds=(speed("sparse", 1.0), speed("sparse", 2.0, batch_size=1)))]
    assert "batch" in printed_cells(rows_of(both))[0]
    assert "score %" not in printed_cells(rows_of(both))[0]
