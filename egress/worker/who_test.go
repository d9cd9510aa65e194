package worker

import (
	"context"
	"testing"

	"nemoclaw/egress/control"
)

// A rule that depends on the owner of a connection gets the monitor's answer to
// its own question; a monitor that keeps silent is an owner unknown.
func TestOwnerIsAsked(t *testing.T) {
	ours, theirs, err := control.Pair()
	check(t, err)
	defer ours.Close()
	monitor, err := control.FromFile(theirs)
	check(t, err)
	s := &server{ctx: t.Context(), asked: newAsker(ours)}
	asked := make(chan control.Who, 2)
	go func() {
		var m control.ToMonitorFromWorker
		for range 2 {
			if _, err := monitor.Recv(&m); err != nil || m.Who == nil {
				t.Errorf("the monitor heard %+v, %v", m, err)
				return
			}
			asked <- *m.Who
		}
	}()
	answers := make(chan *control.Process)
	for range 2 {
		go func() { answers <- (&flow{s: s}).owner() }()
	}
	for range 2 {
		w := <-asked
		s.asked.answer(&control.Whois{N: w.N + 100, Process: &control.Process{PID: 1}}) // to nobody
		s.asked.answer(&control.Whois{N: w.N, Process: &control.Process{PID: 42}})
		s.asked.answer(&control.Whois{N: w.N, Process: &control.Process{PID: 1}}) // a second time
		if p := <-answers; p == nil || p.PID != 42 {
			t.Errorf("the owner is %+v", p)
		}
	}

	silent, cancel := context.WithCancel(t.Context())
	s.ctx = silent
	go cancel()
	if p := (&flow{s: s}).owner(); p != nil {
		t.Errorf("the owner is %+v", p)
	}
	if len(s.asked.waiting) != 0 {
		t.Errorf("%d questions are kept", len(s.asked.waiting))
	}
}
