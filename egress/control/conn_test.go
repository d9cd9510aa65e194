package control

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// A peer that does not read holds nobody up for ever: a worker that was taken
// over could keep its monitor from ever cutting a connection.
func TestSendToWhoeverDoesNotRead(t *testing.T) {
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	text := FromMonitor{Fault: strings.Repeat("x", 1<<20)}
	for range 10 * MaxMessage >> 20 {
		if err = ours.Send(text); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after %d MiB: %v", 10*MaxMessage>>20, err)
	}
}

// pair returns both ends of a conversation, which end with the test.
func pair(t *testing.T) (ours, theirs *Conn) {
	t.Helper()
	ours, f, err := Pair()
	check(t, err)
	theirs, err = FromFile(f)
	check(t, err)
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

func openNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
