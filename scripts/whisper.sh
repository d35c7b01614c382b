# Runs the tests that need the extras `whisper` and `video`, which are kept out for their size.
set -eu
if ! .venv/bin/python -c "import faster_whisper, av" 2>/dev/null; then
    echo "test-whisper: the extras are missing; install them with:" >&2
    echo "    .venv/bin/python -m pip install --editable '.[whisper,video]'" >&2
    exit 1
fi
.venv/bin/python -m pytest -q tests/engines/test_whole_engines.py \
    tests/node_api/test_transcriptions.py tests/recipes/test_transcribe.py \
    tests/engines/test_audio.py tests/recipes/test_video.py
