# Names the test groups that `make test` leaves out, so that none is skipped in silence.
for group in browser ray anvil postgres whisper x402-npm; do
    echo "not run here: test-$group (make test-$group)"
done
echo "not run here: test-nat (make test-nat, as root)"
