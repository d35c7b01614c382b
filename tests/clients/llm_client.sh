# simonw/llm as its users run it: an OpenAI-compatible server is a few lines of YAML.
set -eu
export LLM_USER_PATH="$SCRATCH"
cat >"$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- model_id: pool
  model_name: smollm2-135m-instruct
  api_base: $GATEWAY_URL/v1
  api_key_name: pool
  supports_schema: true
YAML
llm keys set pool --value "$GATEWAY_KEY" >/dev/null
for how in "" --no-stream; do
    answer=$(llm -m pool -o temperature 0 -o max_tokens 24 $how \
        "What is the capital of France? Answer in one word.")
    case $answer in *Paris*) echo "llm$how: $answer" ;; *) echo "llm$how: $answer" && exit 1 ;; esac
done
# What it kept of the two answers: both the same, with the tokens that were billed.
llm logs --json -n 2 | python -c '
import json, sys
first, second = json.load(sys.stdin)
assert first["response"] == second["response"], "streamed and whole differ"
assert first["output_tokens"] and first["output_tokens"] == second["output_tokens"], first
print("llm: its log has", first["input_tokens"], "tokens in,", first["output_tokens"], "out")'
llm -m pool --no-stream -o max_tokens 120 --schema 'city, country' "Where is Paris?" |
    python -c '
import json, sys
print("llm: by a schema,", sorted(json.load(sys.stdin)))'
if llm -m pool -o max_tokens 2000000 "Hello" 2>"$SCRATCH/refused"; then
    echo "llm: more tokens than there can be were taken" && exit 1
fi
grep -q "max_tokens must be an integer" "$SCRATCH/refused"
echo "llm: $(cat "$SCRATCH/refused")"
