package worker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"nemoclaw/specs/policy"
)

// tally is what goes by one rule that bounds it.
type tally struct {
	open int
	rate *rate.Limiter // nil: as many as come
}

// maxTallies is how many rules with bounds are counted; at the limit those
// without open connections are counted anew.
const maxTallies = 1024

// count enters a flow with the rule that allows it, or says why there is no
// room. remove takes it out again.
func (f *flow) count(now time.Time) (policy.Reason, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counted = true
	return f.s.flows.count(f, f.verdict.rule, now)
}

func (fs *flows) count(f *flow, r *policy.Rule, now time.Time) (policy.Reason, string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	t := fs.tally(r)
	if t == nil {
		return "", ""
	}
	if reason, why := t.full(r); reason != "" {
		return reason, why
	}
	if t.rate != nil && !t.rate.AllowN(now, 1) {
		return policy.TooOften, "rate: " + r.Rate.String()
	}
	t.open++
	f.tally = t
	return "", ""
}

// recount enters an open flow with the rule that allows it now, or says why
// there is no room by that. Having begun not long ago it counts for a rate, and
// is not stopped by one.
func (fs *flows) recount(f *flow, r *policy.Rule, now time.Time) (policy.Reason, string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	t := fs.tally(r)
	if t == f.tally {
		return "", ""
	}
	if f.tally != nil {
		f.tally.open--
		f.tally = nil
	}
	if t == nil {
		return "", ""
	}
	if reason, why := t.full(r); reason != "" {
		return reason, why
	}
	if t.rate != nil && now.Sub(f.started) < r.Rate.Per {
		t.rate.AllowN(now, 1)
	}
	t.open++
	f.tally = t
	return "", ""
}

// full says why no other connection may be open by a rule.
func (t *tally) full(r *policy.Rule) (policy.Reason, string) {
	if r.MaxConnections > 0 && t.open >= r.MaxConnections {
		return policy.TooMany, fmt.Sprintf("max_connections: %d", r.MaxConnections)
	}
	return "", ""
}

// tally returns what is counted for a rule; nil: nothing is. fs.mu is held.
func (fs *flows) tally(r *policy.Rule) *tally {
	if r == nil || r.MaxConnections == 0 && r.Rate.Count == 0 {
		return nil
	}
	key := r.Key()
	if t := fs.tallies[key]; t != nil {
		return t
	}
	if fs.tallies == nil {
		fs.tallies = map[string]*tally{}
	}
	if len(fs.tallies) >= maxTallies {
		for key, t := range fs.tallies {
			if t.open == 0 {
				delete(fs.tallies, key)
			}
		}
	}
	t := new(tally)
	if r.Rate.Count > 0 {
		t.rate = rate.NewLimiter(rate.Every(r.Rate.Per/time.Duration(r.Rate.Count)), r.Rate.Count)
	}
	fs.tallies[key] = t
	return t
}

// meter is the way to the server. It counts what the program sends, and ends the
// flow at the first byte beyond what that may.
type meter struct {
	f    *flow
	to   *net.TCPConn
	sent atomic.Int64

	mu       sync.Mutex
	most     int64 // bytes that the program may send; 0: as many as it likes
	splicing bool  // the kernel moves them: they are counted when it stops
}

var errUploadLimit = errors.New("the program has sent all that it may")

// count adds what was sent, and returns all of it and the bound.
func (m *meter) count(n int64) (sent, most int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sent.Add(n), m.most
}

// limit makes most the bound from now on. f.mu is held.
func (m *meter) limit(most int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.most = most
	switch {
	case most == 0:
	case m.splicing:
		m.f.c.SetReadDeadline(time.Unix(1, 0)) // splice looks again
	case m.sent.Load() > most:
		m.f.endLocked(policy.UploadLimit, uploadDetail(most))
	}
}

func uploadDetail(most int64) string { return fmt.Sprintf("max_upload: %d bytes", most) }

// Write passes what is left of the allowance, which may change meanwhile.
func (m *meter) Write(b []byte) (written int, err error) {
	sent, most := m.count(0)
	for {
		part := b[written:]
		if most > 0 {
			part = part[:min(int64(len(part)), max(0, most-sent))]
		}
		n, err := m.to.Write(part)
		written += n
		sent, most = m.count(int64(n))
		switch {
		case most > 0 && (sent > most || sent == most && written < len(b) && err == nil):
			m.f.end(policy.UploadLimit, uploadDetail(most))
			return written, errUploadLimit
		case err != nil || written == len(b):
			return written, err
		}
	}
}

// ReadFrom has the kernel move the bytes where no bound is in force.
func (m *meter) ReadFrom(r io.Reader) (int64, error) {
	n, bounded, err := m.splice(r)
	if bounded {
		k, err := io.Copy(struct{ io.Writer }{m}, r)
		return n + k, err
	}
	return n, err
}

// splice has the kernel move what the program sends, until its end, or until
// there is a bound.
func (m *meter) splice(r io.Reader) (n int64, bounded bool, err error) {
	m.mu.Lock()
	if m.most > 0 {
		m.mu.Unlock()
		return 0, true, nil
	}
	m.splicing = true
	m.mu.Unlock()
	n, err = m.to.ReadFrom(r)
	m.mu.Lock()
	m.splicing = false
	sent, most := m.sent.Add(n), m.most
	m.f.c.SetReadDeadline(time.Time{})
	m.mu.Unlock()
	if most > 0 && sent > most {
		m.f.end(policy.UploadLimit, uploadDetail(most))
		return n, false, errUploadLimit
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, true, nil
	}
	return n, false, err
}

// carrier carries bytes to one of the two ends.
type carrier interface {
	io.Writer
	io.ReaderFrom
}

// way returns what carries bytes to dst.
func (f *flow) way(dst *net.TCPConn) carrier {
	if dst == f.up {
		return f.meter
	}
	return dst
}

// watchIdle has the flow end once nothing has come from either side for as long
// as the verdict lets it. The kernel knows when something came last, also where
// it moves the bytes itself (tcp(7), TCP_INFO). f.mu is held.
func (f *flow) watchIdle() {
	if f.idle != nil {
		f.idle.Stop()
		f.idle = nil
	}
	if f.served && f.verdict.idles() > 0 {
		f.idle = time.AfterFunc(0, f.checkIdle)
	}
}

func (f *flow) checkIdle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	limit := f.verdict.idles()
	if f.gone || f.idle == nil || limit == 0 {
		return
	}
	idle := sinceReceived(f.c)
	if f.up != nil {
		idle = min(idle, sinceReceived(f.up))
	}
	if idle >= limit {
		f.endLocked(policy.Idle, "idle_timeout: "+limit.String())
		return
	}
	f.idle.Reset(limit - idle)
}

// sinceReceived returns how long ago a connection's peer sent something, or
// connected. A connection that is gone has been silent for ever.
func sinceReceived(c *net.TCPConn) time.Duration {
	const ever = 1 << 62
	raw, err := c.SyscallConn()
	if err != nil {
		return ever
	}
	since := time.Duration(ever)
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			since = time.Duration(info.Last_data_recv) * time.Millisecond
		}
	})
	return since
}
