# Runs the book's tests against a real PostgreSQL, which they start in a folder of their own.
# Its programs are looked for on PATH, then where Debian's package `postgresql` puts them.
set -eu
found=${INFERPOOL_TEST_POSTGRESQL:-}
if [ -z "$found" ]; then
    for each in $(command -v initdb || true) /usr/lib/postgresql/*/bin/initdb; do
        if [ -x "$each" ]; then found=$(dirname "$each"); fi
    done
fi
if [ -z "$found" ] || ! [ -x "$found/initdb" ]; then
    echo "test-postgres: the programs of a PostgreSQL server are missing; install them with:" >&2
    echo "    apt-get install postgresql" >&2
    exit 1
fi
INFERPOOL_TEST_POSTGRESQL="$found" .venv/bin/python -m pytest -q -m postgres tests/database
