package worker

import (
	"context"
	"net/netip"
	"sync"

	"nemoclaw/egress/control"
)

// asker asks the monitor which process opened a connection, for rules that
// depend on it. Records need not ask: the monitor knows what it writes down.
type asker struct {
	conn    *control.Conn
	mu      sync.Mutex
	n       uint64
	waiting map[uint64]chan *control.Whois
}

func newAsker(conn *control.Conn) *asker {
	return &asker{conn: conn, waiting: map[uint64]chan *control.Whois{}}
}

// ask returns what the monitor knows of who connected src to dst; nothing, if it
// does not answer within whoTime.
func (a *asker) ask(ctx context.Context, src, dst netip.AddrPort) control.Whois {
	ctx, cancel := context.WithTimeout(ctx, whoTime)
	defer cancel()
	answer := make(chan *control.Whois, 1)
	a.mu.Lock()
	a.n++
	n := a.n
	a.waiting[n] = answer
	a.mu.Unlock()
	defer a.forget(n)
	if err := a.conn.Send(control.ToMonitorFromWorker{Who: &control.Who{N: n, Src: src, Dst: dst}}); err != nil {
		return control.Whois{}
	}
	select {
	case w := <-answer:
		return *w
	case <-ctx.Done():
		return control.Whois{}
	}
}

func (a *asker) answer(w *control.Whois) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if answer := a.waiting[w.N]; answer != nil {
		delete(a.waiting, w.N)
		answer <- w
	}
}

func (a *asker) forget(n uint64) {
	a.mu.Lock()
	delete(a.waiting, n)
	a.mu.Unlock()
}
