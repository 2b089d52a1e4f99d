"""The forms that training rows come in, one file each.

Each file has `NAME`; `recognise(row)`, the reason why the row is one of this family or None; and `read(row)`,
the record in it, which raises `RowProblem` for a malformed row.
"""
