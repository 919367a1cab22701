"""Ways out of reading the history that somebody may try: each is refused, or ends without harm; by what it is after."""

REFUSED = {
    "write": """
        DELETE FROM store.verdicts
        INSERT INTO store.gaps VALUES (1, 2, 3, now(), '')
        UPDATE store.rings SET node = 'x'
        MERGE INTO store.rings USING store.gaps ON false WHEN NOT MATCHED THEN INSERT VALUES (1, 'a', 'b', 1, now())
        TRUNCATE store.verdicts
        WITH d AS (DELETE FROM store.verdicts RETURNING *) SELECT * FROM d
        WITH i AS (INSERT INTO store.gaps VALUES (1, 2, 3, now(), '') RETURNING *) SELECT * FROM i
        WITH u AS (UPDATE store.rings SET node = 'x' RETURNING *) SELECT * FROM u
        WITH a AS (SELECT 1), d AS MATERIALIZED (DELETE FROM store.rings RETURNING *) FROM a
        DROP VIEW verdicts
        DROP TABLE store.verdicts CASCADE
        DROP SCHEMA store CASCADE
        CREATE TABLE t (a INT)
        CREATE TEMP TABLE t (a INT)
        CREATE TEMP TABLE t AS SELECT range FROM range(1000000000)
        CREATE OR REPLACE VIEW verdicts AS SELECT 1
        CREATE OR REPLACE MACRO ip(x) AS 1
        CREATE SEQUENCE s
        CREATE TYPE t AS ENUM ('a')
        CREATE INDEX i ON store.rings (id)
        ALTER TABLE store.rings ADD COLUMN x INT
        COMMENT ON TABLE store.rings IS 'x'
        SELECT nextval('s')
        SELECT * FROM checkpoint()
        SELECT * FROM force_checkpoint()
        CHECKPOINT
        FORCE CHECKPOINT
        VACUUM
        ANALYZE
    """,
    "explained": """
        EXPLAIN DELETE FROM store.verdicts
        EXPLAIN ANALYZE DELETE FROM store.verdicts
        EXPLAIN ANALYZE INSERT INTO store.gaps VALUES (1, 2, 3, now(), '')
        EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1
        EXPLAIN ANALYZE COPY (SELECT 1) TO '{dir}/new.parquet'
        EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)
        EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)
        EXPLAIN (FORMAT json) COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)
        EXPLAIN /* SELECT */ ANALYZE COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)
        EXPLAIN ANALYZE CALL enable_logging(storage='file', storage_path='{dir}')
        EXPLAIN ANALYZE EXPLAIN ANALYZE DELETE FROM store.rings
        EXPLAIN ANALYZE
    """,
    "files": """
        COPY store.verdicts TO '{dir}/x.csv'
        COPY (SELECT 1) TO '{dir}/x.parquet'
        COPY (SELECT 1) TO '{file}'
        COPY store.gaps FROM '/etc/passwd'
        COPY FROM DATABASE memory TO other
        WITH c AS (COPY store.verdicts TO '{dir}/x.csv') SELECT * FROM c
        EXPORT DATABASE '{dir}/all'
        IMPORT DATABASE '{dir}/all'
        ATTACH '{dir}/x.duckdb'
        ATTACH '{dir}/x.duckdb' AS other (READ_ONLY)
        ATTACH ':memory:' AS other
        DETACH z
        USE other
        SELECT * FROM read_csv('/etc/passwd')
        SELECT * FROM read_csv_auto('/etc/passwd')
        SELECT * FROM sniff_csv('/etc/passwd')
        SELECT * FROM read_text('/etc/passwd')
        SELECT * FROM read_text('{dir}/*')
        SELECT * FROM read_blob('/proc/self/environ')
        SELECT * FROM read_json('/etc/passwd')
        SELECT * FROM read_ndjson('/etc/passwd')
        SELECT * FROM read_json_objects('/etc/passwd')
        SELECT * FROM read_parquet('{other}')
        SELECT * FROM parquet_scan('{other}')
        SELECT * FROM parquet_metadata('{other}')
        SELECT * FROM parquet_schema('{other}')
        SELECT * FROM parquet_kv_metadata('{other}')
        SELECT * FROM read_duckdb('{dir}/x.duckdb')
        SELECT * FROM glob('/etc/*')
        SELECT * FROM glob('{dir}/*')
        SELECT * FROM '/etc/passwd'
        SELECT * FROM '{other}'
        SELECT * FROM '{dir}/../other.parquet'
        SELECT (SELECT content FROM read_text('/etc/passwd'))
        SELECT * FROM sqlite_scan('{dir}/x.db', 't')
    """,
    "network": """
        SELECT * FROM 'https://example.invalid/x.csv'
        SELECT * FROM read_parquet('s3://bucket/x.parquet')
        SELECT * FROM read_text('http://127.0.0.1:1/x')
        COPY store.verdicts TO 's3://bucket/x.parquet'
        ATTACH 'https://example.invalid/x.duckdb' AS other
        ATTACH 'host=127.0.0.1' AS other (TYPE postgres)
    """,
    "code": """
        INSTALL httpfs
        FORCE INSTALL icu
        INSTALL spatial FROM community
        LOAD '/tmp/x.duckdb_extension'
        LOAD httpfs
        UPDATE EXTENSIONS
        SELECT * FROM secret_of_python
        SELECT * FROM pandas_scan(1)
        SELECT * FROM arrow_scan(1, 2, 3)
        SELECT * FROM python_map_function(1)
        SELECT * FROM query('DELETE FROM store.verdicts')
        SELECT * FROM query('SELECT * FROM enable_' || 'logging()')
        SELECT * FROM "query" ('SELECT 1')
        SELECT * FROM query_table('store.rings')
        SELECT * FROM json_execute_serialized_sql('x')
        SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))
    """,
    "settings": """
        SET memory_limit = '100GB'
        RESET memory_limit
        SET enable_external_access = true
        SET lock_configuration = false
        SET allowed_paths = ['/etc/passwd']
        SET allowed_directories = ['/']
        RESET allowed_paths
        SET temp_directory = '{dir}'
        SET max_temp_directory_size = '1TB'
        SET GLOBAL threads = 1
        SET SESSION search_path = 'store'
        SET VARIABLE a = 1
        PRAGMA memory_limit = '100GB'
        PRAGMA enable_checkpoint_on_shutdown
        PRAGMA enable_profiling
        CALL pragma_version()
        CALL enable_logging()
        CALL truncate_duckdb_logs()
        SELECT * FROM enable_logging('QueryLog')
        SELECT * FROM enable_logging(storage='file', storage_path='{dir}')
        SELECT * FROM "Enable_Logging" /* */ ('QueryLog')
        SELECT * FROM system.main.enable_logging('QueryLog')
        SELECT * FROM disable_logging()
        SELECT write_log('x')
        CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')
        DROP SECRET s
        SELECT * FROM duckdb_secrets()
        SELECT * FROM which_secret('s3://x', 's3')
        SELECT getenv('HOME')
    """,
    "statements": """
        SELECT 1; DELETE FROM store.verdicts
        SELECT 1; SELECT 2
        COMMIT; DELETE FROM store.verdicts
        ROLLBACK; DROP TABLE store.rings
        SELECT 1 /* ; */ ; /* ; */ SELECT 2
        BEGIN
        BEGIN TRANSACTION READ WRITE
        COMMIT
        ROLLBACK
        PREPARE x AS DELETE FROM store.verdicts
        EXECUTE x
        DEALLOCATE x
        ;
        -- nothing
    """,
}
"""{dir}: the database's directory, {file}: a file of it, {other}: a Parquet file beside it."""

ENDLESS = {
    "recursion": "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r) SELECT count(*) FROM r",
    "product": "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b",
    "counting": "SELECT count(*) FROM range(1000000000000000000)",
    "rows": "SELECT count(*) FROM repeat_row(1, num_rows = 1000000000000000)",
    "sort": "SELECT max(r) FROM (SELECT row_number() OVER (ORDER BY hash(range)) AS r FROM range(30000000000))",
    "store": "SELECT count(*) FROM verdicts a, verdicts b, verdicts c, verdicts d WHERE a.src < b.dst OR c.src < d.dst",
}
"""Ended by the time-out."""

LARGE = {
    "list": "SELECT list(range) FROM range(1000000000)",
    "text": "SELECT string_agg(repeat('x', 1000), '') FROM range(100000000)",
    "one text": "SELECT repeat('x', 4000000000)",
    "padded": "SELECT length(printf('%2000000000d', 1))",
    "doubled": """WITH RECURSIVE r AS (SELECT 'x' AS s UNION ALL SELECT s || s FROM r WHERE length(s) < 3000000000)
        SELECT max(length(s)) FROM r""",
}
"""Ended by DuckDB's memory limit or that of the process."""

LATE = {
    "padding": "SELECT length(lpad('x', 400000000, 'y'))",
    "distance": "SELECT levenshtein(repeat('x', 30000), repeat('y', 30000))",
}
"""Ended by the time-out or the memory of the process, but nothing stops the one call of a function while it works: no
macro in a function's place can, as `system.main.lpad` is the function itself, and small texts are enough."""

CLUMSY = {
    "string": "SELECT repeat('x', 1000000000000)",
    "range": "SELECT unnest(range(1000000000000))",
    "resize": "SELECT list_resize([1], 100000000000)",
    "json": "SELECT json_structure(repeat('[', 1000000))",
    "pattern": "SELECT regexp_matches('x', '((a{{1,100}}){{1,100}}){{1,100}}')",
    "depth": "SELECT " + "+".join(["1"] * 100_000),
}
"""Refused because of their sheer size."""

HARMLESS = {
    "backtracking": "SELECT regexp_matches(repeat('a', 1000000), '(a*)*b')",
    "alternatives": "SELECT 'x' SIMILAR TO repeat('(a|b)*', 10000)",
    "parentheses": f"SELECT {'(' * 500}1{')' * 500}",
    "logs": "FROM duckdb_logs()",
    "settings": "SELECT * FROM duckdb_settings()",
    "variable": "SELECT getvariable('x')",
}
"""Answered: nothing is changed or told by it."""


def refused() -> list[str]:
    """All of REFUSED, one after the other."""
    return [line.strip() for lines in REFUSED.values() for line in lines.strip().splitlines()]
