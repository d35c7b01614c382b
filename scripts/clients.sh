# Runs clients that nobody here wrote against a pool (tests/clients/run.py): openai-node, litellm,
# llm, and Schemathesis with OpenAI's specification and with ours. They lie in .venv-clients.
set -eu
venv=.venv-clients lock=requirements/clients.txt node=tests/clients/node
if [ ! "$venv/.ready" -nt "$lock" ] || [ ! "$venv/.ready" -nt "$node/package-lock.json" ]; then
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python "$venv/bin/python" --require-hashes --requirement "$lock"
    else
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
            --requirement "$lock"
    fi
    mkdir -p "$venv/node" && cp "$node/package.json" "$node/package-lock.json" "$venv/node"
    PATH="$PWD/$venv/bin:$PATH" npm ci --silent --no-audit --no-fund --ignore-scripts \
        --prefix "$venv/node"
    touch "$venv/.ready"
fi
.venv/bin/python tests/clients/run.py "$venv" "$@"
