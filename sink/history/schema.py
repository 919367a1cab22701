"""What SQL can ask: the views, their columns, and what these mean (`sink.history.meanings`)."""

from typing import Any

from sink.history.meanings import VIEWS, meaning
from sink.history.reading import Reading


def schema(reading: Reading) -> dict[str, Any]:
    """http.Schema."""
    columns: dict[str, list[dict[str, str]]] = {view: [] for view in VIEWS}
    for view, name, kind in reading.rows(
        """SELECT table_name, column_name, data_type FROM duckdb_columns()
        WHERE schema_name = 'main' AND NOT internal ORDER BY table_name, column_index"""
    ):
        columns.setdefault(view, []).append({"name": name, "type": kind, "doc": meaning(view, name)})
    return {"views": [{"name": view, "doc": VIEWS.get(view, ""), "columns": of_it} for view, of_it in columns.items()]}
