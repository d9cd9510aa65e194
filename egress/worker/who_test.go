package worker

import (
	"context"
	"testing"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
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
		go func() { answers <- (&flow{s: s}).owner().Process }()
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
	if p := (&flow{s: s}).owner().Process; p != nil {
		t.Errorf("the owner is %+v", p)
	}
	if len(s.asked.waiting) != 0 {
		t.Errorf("%d questions are kept", len(s.asked.waiting))
	}
}

// A connection that is decided twice, before its owner is known and after, has
// one context: none is left behind to be kept until the worker's end.
func TestOneContextForAConnection(t *testing.T) {
	r, err := newRules(&control.Rules{Generation: 1, File: "policy.yaml", Policy: []byte("egress:\n  rules:\n" +
		"    - {host: a.example.org, port: 443, binaries: [/usr/bin/git]}\n    - {host: a.example.org, port: 443}\n")})
	check(t, err)
	s := &server{ctx: t.Context()}
	s.rules.Store(r)
	f := &flow{s: s, target: target{host: "a.example.org", port: 443}}
	f.decide(time.Now())
	first := f.ctx
	if !f.verdict.allow || !f.verdict.asks || first == nil {
		t.Fatalf("at first it is decided %+v", f.verdict)
	}
	f.by.Exe = "/usr/bin/git"
	if f.decide(time.Now()); f.ctx != first || first.Err() != nil {
		t.Error("decided again, it has another context")
	}
	s.rules.Store(&rules{policy: new(policy.Policy)})
	if f.decide(time.Now()); f.verdict.allow || first.Err() == nil {
		t.Error("refused, its context goes on")
	}
}
