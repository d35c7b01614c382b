# usage: group.sh GROUP PACKAGE MARKER
# Runs the tests of a dependency group that is kept out of the default one for its size.
set -eu
group=$1 package=$2 marker=$3
if ! .venv/bin/python -c "import $package" 2>/dev/null; then
    echo "$group: the package $package is missing; install it with:" >&2
    echo "    .venv/bin/python -m pip install --group $group" >&2
    exit 1
fi
.venv/bin/python -m pytest -q -m "$marker"
