# usage: setup.sh PYTHON VENV REQUIREMENTS
# Installs hashed requirements and this package into a virtual environment.
set -eu
python=$1 venv=$2 requirements=$3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" --require-hashes --requirement "$requirements"
else
    echo "installing $(grep -c '==' "$requirements") packages, about a minute" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --require-hashes --requirement "$requirements"
fi
# The package itself, by the build backend that was just installed: nothing more is fetched.
if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps --no-build-isolation --editable .
fi
