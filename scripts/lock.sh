# Resolves requirements/*.txt from pyproject.toml: hashes, no addresses, one file for every platform.
# The runtime file is resolved under the test file's versions, so that both agree.
set -eu
compile="uv pip compile --quiet --universal --generate-hashes --no-header --extra all --group build pyproject.toml"
$compile --group test --output-file requirements/test.txt
$compile --constraint requirements/test.txt --output-file requirements/runtime.txt
uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
    --group openai-suite --output-file requirements/openai-suite.txt
uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
    --group clients --output-file requirements/clients.txt
! grep -nE '^--|https?:' requirements/*.txt
