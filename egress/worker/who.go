package worker

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"nemoclaw/egress/control"
)

// asker asks the monitor which process opened a connection.
type asker struct {
	conn    *control.Conn
	mu      sync.Mutex
	n       uint64
	waiting map[uint64]chan *control.Process
}

func newAsker(conn *control.Conn) *asker {
	return &asker{conn: conn, waiting: map[uint64]chan *control.Process{}}
}

// question is one that was asked.
type question struct {
	a      *asker
	n      uint64
	answer chan *control.Process
}

// ask asks; the answer is awaited later, so that it costs no time of its own.
func (a *asker) ask(src, dst netip.AddrPort) question {
	q := question{a: a, answer: make(chan *control.Process, 1)}
	a.mu.Lock()
	a.n++
	q.n = a.n
	a.waiting[q.n] = q.answer
	a.mu.Unlock()
	if err := a.conn.Send(control.ToMonitorFromWorker{Who: &control.Who{N: q.n, Src: src, Dst: dst}}); err != nil {
		a.answer(&control.Whois{N: q.n}) // the conversation is over, and so are we soon
	}
	return q
}

func (a *asker) answer(w *control.Whois) {
	a.mu.Lock()
	ch := a.waiting[w.N]
	delete(a.waiting, w.N)
	a.mu.Unlock()
	if ch != nil {
		ch <- w.Process
	}
}

// wait returns the process, or nil if the monitor does not know it in time.
func (q question) wait(ctx context.Context) *control.Process {
	select {
	case p := <-q.answer: // mostly it is there by now
		return p
	default:
	}
	timer := time.NewTimer(whoTime)
	defer timer.Stop()
	select {
	case p := <-q.answer:
		return p
	case <-timer.C:
	case <-ctx.Done():
	}
	q.a.mu.Lock()
	delete(q.a.waiting, q.n)
	q.a.mu.Unlock()
	return nil
}
