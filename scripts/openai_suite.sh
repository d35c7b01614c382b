# Fetches openai-python's own tests and runs them against a pool (tests/openai_suite/run.py).
# Nothing of them is kept in the project: they lie in .venv-openai, which git ignores.
set -eu
venv=.venv-openai sources=.venv-openai/sources lock=requirements/openai-suite.txt
if [ ! "$venv/.ready" -nt "$lock" ]; then
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
        --requirement "$lock"
    rm -rf "$sources" && mkdir "$sources"
    # The one package of the lock that is taken as its sources; its hash is in the lock as well.
    sed -n '/^openai==/,/[0-9a-f]$/p' "$lock" >"$sources/openai.txt"
    "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --require-hashes \
        --no-deps --no-binary openai --no-build-isolation --dest "$sources" \
        --requirement "$sources/openai.txt"
    tar -xzf "$sources"/openai-*.tar.gz -C "$sources" --strip-components 1
    touch "$venv/.ready"
fi
.venv/bin/python tests/openai_suite/run.py "$sources" "$venv/bin/python" "$@"
