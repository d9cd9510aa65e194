package worker

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// waiting are the connections that wait for the operator. The zero value is
// none.
type waiting struct {
	mu      sync.Mutex
	set     map[string]bool // by request
	changed chan struct{}   // closed when other rules are in force
	begin   *rate.Limiter   // nil: none has begun to wait
}

// enter has a request wait, unless too many do, or came in a short time: each has
// a line in the log when it begins and another when it ends.
func (w *waiting) enter(request string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		w.set, w.begin = map[string]bool{}, rate.NewLimiter(holdsPerSecond, maxHeld)
	}
	if len(w.set) >= maxHeld || !w.begin.Allow() {
		return false
	}
	w.set[request] = true
	return true
}

func (w *waiting) leave(request string) {
	w.mu.Lock()
	delete(w.set, request)
	w.mu.Unlock()
}

func (w *waiting) has(request string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set[request]
}

// wake lets all of them be decided again.
func (w *waiting) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// next returns what is closed by the next wake.
func (w *waiting) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.changed
}

// holdable tells whether an operator's approval would take the reason away.
func holdable(reason policy.Reason) bool {
	return reason == policy.NotListed || reason == policy.DirectAddress || reason == policy.WrongProgram
}

// hold keeps a refused connection for the operator where the policy says so,
// and tells whether it does: it is then decided later.
func (s *server) hold(f *flow) bool {
	patience := f.verdict.rules.policy.Egress.Defaults.Hold
	if patience == 0 || !holdable(f.verdict.reason) || !s.waiting.enter(f.request) {
		return false
	}
	f.waits = true
	s.wg.Go(func() {
		if err := s.records.write(f.record(control.Hold, f.verdict.reason, "for "+patience.String())); err != nil {
			s.decline(f)
			return
		}
		s.conclude(f, f.await(patience))
	})
	return true
}

// await waits until the rules decide otherwise, or patience ends. It tells
// whether there is room for the connection if it is allowed.
func (f *flow) await(patience time.Duration) (known bool) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	left, stop := f.leaving()
	defer stop()
	for {
		changed := f.s.waiting.next()
		known = f.s.enter(f)
		f.decide(time.Now())
		if f.verdict.allow || !holdable(f.verdict.reason) {
			return known
		}
		f.s.flows.remove(f)
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-left:
			f.mu.Lock()
			f.verdict.reason = policy.Cancelled
			f.mu.Unlock()
			return false
		case <-f.s.ctx.Done():
			return false
		}
	}
}

// leaving returns what is closed when nobody holds the program's end of the
// connection any more. Until stop has returned nobody else may read it, and
// nothing is read here: what the program has said stays.
//
// A program that closes and one that only has no more to say look alike from
// here; the kernel on its side can tell, and the monitor asks it.
func (f *flow) leaving() (left <-chan struct{}, stop func()) {
	gone, stopped, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		raw, err := f.c.SyscallConn()
		if err != nil || raw.Read(hasEnd) != nil {
			return
		}
		again := time.NewTicker(leftAgain)
		defer again.Stop()
		for !isReset(f.c) && !f.owner().Gone {
			select {
			case <-again.C:
			case <-stopped:
				return
			}
		}
		close(gone)
	}()
	return gone, func() {
		close(stopped)
		f.c.SetReadDeadline(time.Unix(1, 0))
		<-done
		f.c.SetReadDeadline(time.Time{})
	}
}

// hasEnd tells whether the other side of a connection has ended it, or its half
// (tcp(7), TCP_INFO). As it reads nothing, it is called again whenever something
// comes.
func hasEnd(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State != tcpEstablished
}

// waited lets go of the place of a connection that waited.
func (f *flow) waited() {
	if f.waits {
		f.waits = false
		f.s.waiting.leave(f.request)
	}
}

// spend takes a use of the grant that allows the connection, if that counts
// them, and tells whether there was one. Meanwhile it counts as having one: the
// monitor may say at any time that none is left.
func (f *flow) spend() bool {
	f.mu.Lock()
	f.granted = f.verdict.spends
	f.mu.Unlock()
	ok := f.granted == 0 || f.s.spender.spend(f.granted, f.request)
	f.waited() // only now: the use might be its alone
	return ok
}

// unlisted is the reason for what no rule and no grant allows.
func (t target) unlisted() policy.Reason {
	if t.host == "" {
		return policy.DirectAddress
	}
	return policy.NotListed
}

// spender asks the monitor for uses of counted grants.
type spender struct {
	s       *server
	mu      sync.Mutex
	n       uint64
	waiting map[uint64]chan string
}

// spend takes one use of a grant. It is gone when spend returns true, and was
// nobody else's.
func (p *spender) spend(grant uint64, request string) bool {
	answer := make(chan string, 1)
	p.mu.Lock()
	p.n++
	n := p.n
	if p.waiting == nil {
		p.waiting = map[uint64]chan string{}
	}
	p.waiting[n] = answer
	p.mu.Unlock()
	if err := p.s.conn.Send(control.ToMonitorFromWorker{Use: &control.Use{N: n, Grant: grant, Request: request}}); err != nil {
		return false // the conversation is over, and so are we soon
	}
	select {
	case fault := <-answer:
		return fault == ""
	case <-p.s.ctx.Done():
		return false
	}
}

func (p *spender) answer(u *control.Used) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer := p.waiting[u.N]; answer != nil {
		delete(p.waiting, u.N)
		answer <- u.Fault
	}
}
