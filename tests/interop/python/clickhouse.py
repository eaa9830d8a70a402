"""Reads and writes the embedded engine with clickhouse-connect, ClickHouse's own client for Python.

Usage: clickhouse.py HOST PORT. Exits with 0 when every promise holds; else prints which one did not.
"""

import logging
import sys
import time
from datetime import datetime, timezone
from uuid import UUID

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

DATABASE = "interop"
# Everything that this client can compress with; it takes the first that the server has for True.
COMPRESSIONS = [False, True, "gzip", "lz4", "zstd"]
HOSTILE = "it's \\ a 'device'\n\t{x:String} \u00fc \u20ac"
ROWS = 50_000
# A few megabytes: the answer is streamed, and its end is not known when it begins.
STREAMED = 1_000_000


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


def refused(what, run):
    """The error of a call that must fail."""
    try:
        run()
    except ClickHouseError as error:
        return error
    raise AssertionError(f"{what} was served")


def a_select_gives_pythons_types(client):
    expect(client.server_version and client.server_tz is not None, "version and time zone of the server")
    result = client.query(
        "SELECT 1 AS n, 'x' AS s, toDateTime64('2026-01-02 03:04:05.678', 3, 'UTC') AS t, [1, 2] AS a, map('k', 1.5) AS m,"
        " toNullable(NULL) AS z, toUUID('00000000-0000-0000-0000-000000000001') AS u, toLowCardinality('lc') AS lc,"
        " (1, 'x') AS p"
    )
    moment = datetime(2026, 1, 2, 3, 4, 5, 678000)
    row = (1, "x", moment, [1, 2], {"k": 1.5}, None, UUID(int=1), "lc", (1, "x"))
    expect(result.column_names == ("n", "s", "t", "a", "m", "z", "u", "lc", "p"), result.column_names)
    got = tuple(value.replace(tzinfo=None) if isinstance(value, datetime) else value for value in result.first_row)
    expect(got == row, f"{got} in place of {row}")
    expect(client.query("SELECT number FROM numbers(0)").result_rows == [], "no rows are no rows")


def values_are_bound(client):
    parameters = {"text": HOSTILE, "n": 7, "list": ["q'", "b\\"], "at": datetime(2026, 1, 1)}
    statement = "SELECT {text:String}, {n:UInt8}, {list:Array(String)}, {at:DateTime64(3)}"
    row = client.query(statement, parameters=parameters).first_row
    expect(tuple(row[:3]) == (HOSTILE, 7, ["q'", "b\\"]), row)
    long = "x" * 100_000
    expect(client.query("SELECT {text:String}", parameters={"text": long}).first_row == (long,), "a long value")
    # Which this client puts into the text itself.
    expect(client.query("SELECT %(text)s", parameters={"text": HOSTILE}).first_row == (HOSTILE,), "quoted by the client")


def rows_are_inserted_and_read_back(client):
    client.command("CREATE OR REPLACE TABLE t (id UInt64, name String, value Nullable(Float64), at DateTime64(3, 'UTC'),"
                   " metrics Map(LowCardinality(String), Float64), kind LowCardinality(String)) ENGINE = MergeTree ORDER BY id")
    at = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc)
    rows = [[n, f"{HOSTILE} {n}", None if n % 3 == 0 else n / 2, at, {"a": float(n)}, f"k{n % 5}"] for n in range(ROWS)]
    summary = client.insert("t", rows, column_names=["id", "name", "value", "at", "metrics", "kind"])
    expect(summary.written_rows == ROWS, summary.summary)
    counted = client.query("SELECT count(), uniqExact(id), countIf(value IS NULL), sum(metrics['a']) FROM t").first_row
    expect(counted == (ROWS, ROWS, (ROWS + 2) // 3, ROWS * (ROWS - 1) / 2), counted)
    back = client.query("SELECT * FROM t WHERE id IN (0, 42) ORDER BY id").result_rows
    expect([list(row[:3]) + list(row[4:]) for row in back] == [rows[n][:3] + rows[n][4:] for n in (0, 42)], back)
    raw = client.raw_insert("t", ["id", "name"], b"900001\ta\n900002\tb\n", fmt="TSV")
    expect(raw.written_rows == 2, raw.summary)
    text = client.raw_query("SELECT name FROM t WHERE id > 900000 ORDER BY id", fmt="JSONEachRow")
    expect(text == b'{"name":"a"}\n{"name":"b"}\n', text)


def long_answers_stream(client):
    with client.query_rows_stream("SELECT number, toString(number) FROM numbers({n:UInt64})", parameters={"n": STREAMED}) as rows:
        expect(sum(number for number, _ in rows) == STREAMED * (STREAMED - 1) // 2, "every row, once")
    with client.query_row_block_stream("SELECT * FROM t", settings={"max_block_size": 5_000}) as blocks:
        lengths = [len(block) for block in blocks]
    expect(sum(lengths) == ROWS + 2 and len(lengths) > 1, lengths)


def errors_carry_clickhouses_codes(client):
    for code, statement in [(60, "SELECT * FROM nowhere"), (62, "SELEC 1"), (395, "SELECT throwIf(1, 'no')"), (47, "SELECT missing")]:
        error = refused(statement, lambda: client.query(statement))
        expect(isinstance(error, DatabaseError) and error.code == code, f"{statement}: {error.code} {error}")
        expect(f"Code: {code}. DB::Exception: " in str(error), error)
    error = refused("an unknown setting", lambda: client.query("SELECT 1", settings={"max_execution_time": "soon"}))
    expect(isinstance(error, DatabaseError), error)

    def late():
        statement = f"SELECT number, throwIf(number = {STREAMED}, 'too far') FROM numbers({2 * STREAMED})"
        with client.query_rows_stream(statement, settings={"max_block_size": 10_000}) as rows:
            for _ in rows:
                pass

    error = refused("a statement that fails late", late)
    expect("too far" in str(error), error)
    expect(client.query("SELECT 1").first_row == (1,), "the client goes on after an error")


def main(host, port):
    started = time.monotonic()
    # Errors are what is tested; the client would log each.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    admin = clickhouse_connect.get_client(host=host, port=int(port))
    admin.command(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    for compress in COMPRESSIONS:
        with clickhouse_connect.get_client(host=host, port=int(port), database=DATABASE, compress=compress) as client:
            expect(client.ping(), "it answers")
            try:
                a_select_gives_pythons_types(client)
                values_are_bound(client)
                rows_are_inserted_and_read_back(client)
                long_answers_stream(client)
                errors_carry_clickhouses_codes(client)
            except Exception as error:
                raise AssertionError(f"with compress={compress!r}") from error
    print(f"clickhouse-connect: every promise held, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
