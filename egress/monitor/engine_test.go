package monitor

import (
	"errors"
	"os"
	"testing"

	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
)

// A connection to the engine's resolver is handed to the worker, or why there is
// none; what is too much at once is refused and not queued.
func TestDials(t *testing.T) {
	ours, theirs, err := control.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	worker, err := control.FromFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	hear := func() (control.Dialed, int) {
		t.Helper()
		var m control.ToWorker
		files, err := worker.Recv(&m)
		control.CloseAll(files)
		if err != nil || m.Dialed == nil {
			t.Fatalf("the monitor said %+v, %v", m, err)
		}
		return *m.Dialed, len(files)
	}

	var fault error
	gate := make(chan struct{})
	d := (&Monitor{Engine: func(*os.File) (*os.File, error) {
		<-gate
		if fault != nil {
			return nil, fault
		}
		return os.Open("/dev/null")
	}}).newDials(ours)
	for n := range uint64(limits.EngineDials + 1) {
		d.dial(n)
	}
	if m, files := hear(); m.N != limits.EngineDials || m.Fault == "" || files != 0 {
		t.Errorf("one too many: %+v and %d descriptors", m, files)
	}
	close(gate)
	for range limits.EngineDials {
		if m, files := hear(); m.N >= limits.EngineDials || m.Fault != "" || files != 1 {
			t.Errorf("%+v and %d descriptors, want a connection", m, files)
		}
	}
	d.wait()
	fault = errors.New("no engine listens")
	d.dial(77)
	if m, files := hear(); m.N != 77 || m.Fault != "no engine listens" || files != 0 {
		t.Errorf("%+v and %d descriptors, want a fault", m, files)
	}
	d.wait()
}

// A worker that was not told of an engine's resolver gets no connection into the
// sandbox: it is replaced.
func TestEngineIsNotForEveryWorker(t *testing.T) {
	s, w := up(t)
	w.say(control.ToMonitorFromWorker{Engine: &control.Engine{N: 1}})
	s.worker().apply()
	s.awaitLine(`"kind":"worker"`, "the worker said nothing that the monitor understands")
}
