package monitor

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// What an allowed connection becomes, its end included, is counted once: a
// program cannot make connections seem open that are not, and the sandbox's end
// wait for them.
func TestOpenConnections(t *testing.T) {
	s, w := up(t)
	say := func(v control.Verdict, request string) {
		w.record(control.Record{Verdict: v, Host: "api.example.org", Port: 443, Request: request})
	}
	for _, step := range []struct {
		verdict control.Verdict
		request string
		open    int
	}{
		{control.Allow, "1", 1},
		{control.Refuse, "1", 0}, // allowed by its name and refused by its address
		{control.Refuse, "2", 0},
		{control.Allow, "3", 1},
		{control.Allow, "4", 2},
		{control.End, "3", 1},
		{control.End, "3", 1},
		{control.Cut, "4", 0},
		{control.Allow, "5", 1},
		{control.Fail, "5", 0},
	} {
		say(step.verdict, step.request)
		if got := s.status().Open; got != step.open {
			t.Errorf("after %s of %s: %d open, want %d", step.verdict, step.request, got, step.open)
		}
	}
}

// What a worker says is kept in bounds, whatever it says.
func TestWorkersWordsAreBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	var p pendings
	p.add(&control.Record{Host: long, Port: 1, Reason: "not-listed", Request: long, Process: &control.Process{
		Name: long, Exe: long, Args: []string{long}, Ancestors: strings.Split(strings.Repeat(long+" ", 20), " "),
	}}, "not-listed", time.Now())
	if n := len(fmt.Sprint(p.list[0], *p.list[0].Process)); n > 8<<10 {
		t.Errorf("a pending decision takes %d bytes", n)
	}
	var w worker
	for i := range 2 * maxOpen {
		w.opened(fmt.Sprint(i), nil)
	}
	if len(w.open) != maxOpen {
		t.Errorf("%d connections are kept in mind", len(w.open))
	}
}

// Another file that is renamed while ours is half written does not have it read
// by halves, without the deny rules that stand at its end.
func TestEventsOfOtherFiles(t *testing.T) {
	event := func(mask uint32, name string) []byte {
		b := make([]byte, unix.SizeofInotifyEvent, 64)
		binary.NativeEndian.PutUint32(b[4:], mask)
		if name != "" {
			binary.NativeEndian.PutUint32(b[12:], 32)
			b = append(b, append([]byte(name), make([]byte, 32-len(name))...)...)
		}
		return b
	}
	for _, tc := range []struct {
		what   string
		events [][]byte
		whole  bool
		other  bool
	}{
		{"the file renamed into place", [][]byte{event(unix.IN_MOVED_TO, "policy.yaml")}, true, false},
		{"the file closed", [][]byte{event(unix.IN_CLOSE_WRITE, "policy.yaml")}, true, false},
		{"half of the file written", [][]byte{event(unix.IN_MODIFY, "policy.yaml")}, false, true},
		{"another renamed meanwhile", [][]byte{event(unix.IN_MODIFY, "policy.yaml"), event(unix.IN_MOVED_TO, "policy.yaml.bak")}, false, true},
		{"a ConfigMap's link", [][]byte{event(unix.IN_MOVED_TO, "..data")}, false, true},
		{"the directory gone", [][]byte{event(unix.IN_MOVE_SELF, "")}, false, true},
		{"too many to tell", [][]byte{event(unix.IN_Q_OVERFLOW, "")}, false, true},
		{"both", [][]byte{event(unix.IN_MOVED_TO, "other"), event(unix.IN_CLOSE_WRITE, "policy.yaml")}, true, true},
	} {
		at, beside := events(slices.Concat(tc.events...), "policy.yaml")
		if whole, other := at&wholeEvents != 0, at&(otherEvents|goneEvents)|beside != 0; whole != tc.whole || other != tc.other {
			t.Errorf("%s: whole %v, other %v", tc.what, whole, other)
		}
	}
	// What the kernel never writes is no reason to fall over.
	events([]byte(strings.Repeat("\xff", 100)), "policy.yaml")
}
