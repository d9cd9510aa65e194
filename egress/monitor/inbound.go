package monitor

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/limits"
	"nemoclaw/egress/netfilter"
)

// inbound writes down the connections that come in from outside. The kernel
// passes them on by itself, at its own speed, so that unlike outward ones they do
// not wait for their line: it is written when the kernel says that both ends have
// shaken hands, moments after the first byte may have passed. What cannot be
// written down is cut then.
type inbound struct {
	m        *Monitor
	flows    *netfilter.Flows
	refusals *netfilter.Refusals
	readers  sync.WaitGroup

	asking sync.Mutex // one question to the kernel at a time

	mu    sync.Mutex
	again bool // a gateway before this one was lost
	begun bool // once, and not after the end
	ended bool
	book  book
	tick  *time.Timer // nil: nothing is counted that is not written
	lost  uint32      // messages that were not heard, as far as it is written
	gap   bool        // some were, since the last tick
	// uncounted says that only refusals of which the kernel tells are known.
	uncounted bool
}

// inboundRule is what decided about connections from outside.
func inboundRule(ingress string) string { return "network.ingress: " + ingress }

// begin listens. It is called when there is a link by which somebody may come in,
// and does something the first time.
func (in *inbound) begin(m *Monitor) {
	if m.Inbound == nil || !m.attached.OwnUplink {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.begun {
		return
	}
	in.begun = true
	in.m = m
	in.book = newBook(m.attached.ID, inboundRule(m.rules.created.Network.Ingress), m.log.Append)
	var err error
	if in.flows, in.refusals, err = m.Inbound(m.uplink); err != nil {
		m.note(err.Error())
	}
	if in.again {
		_ = m.log.Append(m.change(audit.KindMissed, "connections from outside that began or ended while the gateway was lost are not in the log, but for those that are open now"))
	}
	if in.flows != nil {
		live, err := in.list()
		if err != nil {
			m.note(err.Error())
		}
		for _, f := range live {
			in.book.begin(f, "it was open when the gateway began to listen")
		}
		in.readers.Go(in.read)
	}
	if in.refusals != nil {
		in.readers.Go(in.readRefusals)
	}
	in.later()
}

// list is which connections from outside are open, by what the kernel knows. Of
// those that are over it remembers many more.
func (in *inbound) list() (live []*netfilter.Flow, err error) {
	in.asking.Lock()
	defer in.asking.Unlock()
	err = in.flows.List(func(f netfilter.Flow) {
		if f.Proto == unix.IPPROTO_UDP || f.State.Open() {
			live = append(live, &f)
		}
	})
	return live, err
}

// read writes down what the kernel tells, until the end.
func (in *inbound) read() {
	for {
		var cut []*netfilter.Flow
		err := in.flows.Next(func(f netfilter.Flow) {
			in.mu.Lock()
			defer in.mu.Unlock()
			if in.book.heard(&f) {
				cut = append(cut, &f)
			}
			in.later()
		})
		in.forget(cut)
		if !in.goOn(err) {
			return
		}
	}
}

// forget has the kernel forget connections: it tells their ends then, and lets
// nothing more pass of them.
func (in *inbound) forget(list []*netfilter.Flow) {
	if len(list) == 0 {
		return
	}
	in.asking.Lock()
	defer in.asking.Unlock()
	in.mu.Lock()
	ended := in.ended // and what is asked by is closed, or soon will be
	in.mu.Unlock()
	if ended {
		return
	}
	for _, f := range list {
		if err := in.flows.Forget(f); err != nil {
			in.m.note(err.Error())
			return
		}
	}
}

func (in *inbound) readRefusals() {
	for {
		err := in.refusals.Next(func(p netfilter.Packet) {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.book.refused(&p)
			in.later()
		})
		if errors.Is(err, unix.ENOBUFS) {
			err = nil // the kernel has counted them
		}
		if !in.goOn(err) {
			return
		}
	}
}

// goOn tells whether more can be heard.
func (in *inbound) goOn(err error) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, os.ErrClosed):
		return false
	case errors.Is(err, unix.ENOBUFS):
		in.mu.Lock()
		defer in.mu.Unlock()
		in.gap = true
		in.later()
		return true
	}
	in.m.note("connections from outside are not recorded any more: " + err.Error())
	return false
}

// later has what is counted written down soon. in.mu is held.
func (in *inbound) later() {
	if in.tick == nil && !in.ended && in.book.busy(in.gap) {
		in.tick = time.AfterFunc(limits.InboundTick, in.flush)
	}
}

// flush writes down what was counted.
func (in *inbound) flush() {
	in.mu.Lock()
	gap := in.gap
	over := in.book.leave(time.Now().Add(-limits.InboundLinger))
	in.mu.Unlock()
	in.forget(over)
	var live []*netfilter.Flow
	var err error
	if gap {
		live, err = in.list()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended { // whatever came of it
		return
	}
	in.tick = nil
	if err != nil {
		in.m.note(err.Error())
	}
	if gap {
		in.missed(in.book.compare(live))
	}
	in.book.flush(in.countRefused())
	in.later()
}

// missed writes down that something was not heard, and how many connections are
// open of which no line tells. in.mu is held.
func (in *inbound) missed(unknown int) {
	in.gap = false
	lost := in.flows.Lost()
	n := int(lost - in.lost)
	in.lost = lost
	in.book.lost += uint64(n)
	line := in.m.change(audit.KindMissed, fmt.Sprintf("%d messages of the kernel about connections from outside were not heard in time; %d are open that no line has told of, and others may be in the log only with their ends", n, unknown))
	line.Unmapped.Count = n
	_ = in.m.log.Append(line) // its fault shows in Status
}

// countRefused is how many packets were refused since it was asked last.
func (in *inbound) countRefused() int {
	if in.refusals == nil || in.uncounted {
		return 0
	}
	n, err := in.m.Refused(in.m.uplink)
	if err != nil {
		in.uncounted = true
		in.m.note(err.Error())
	}
	return int(n)
}

// counts are for metrics.
func (in *inbound) counts() inboundCounts {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.book.counts()
}

// end writes down the end of every connection that is open, with what has gone
// either way so far. It returns when all is written.
func (in *inbound) end() {
	in.mu.Lock()
	done := !in.begun || in.ended
	in.begun, in.ended = true, true
	in.mu.Unlock()
	if done {
		return
	}
	if in.flows != nil {
		in.flows.Stop()
		defer in.flows.Close()
	}
	if in.refusals != nil {
		in.refusals.Stop()
		defer in.refusals.Close()
	}
	in.readers.Wait()
	in.asking.Lock() // a flush may be asking
	defer in.asking.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.refusals != nil {
		_ = in.refusals.Drain(func(p netfilter.Packet) { in.book.refused(&p) }) // the rest is counted
	}
	if in.flows != nil {
		in.endFlows()
	}
	in.book.flush(in.countRefused())
	in.book.flush(0)
}

// endFlows takes what the kernel has told and nobody has read yet, and of the
// other connections what it knows of them now. Some may end meanwhile.
func (in *inbound) endFlows() {
	unread := in.flows.Drain(func(f netfilter.Flow) { in.book.heard(&f) })
	listed := map[uint32]bool{}
	err := in.flows.List(func(f netfilter.Flow) {
		listed[f.ID] = true
		in.book.endNow(&f)
	})
	if err != nil {
		in.m.note(err.Error())
	}
	err = in.flows.Drain(func(f netfilter.Flow) {
		if !listed[f.ID] {
			in.book.heard(&f)
		}
	})
	if unread != nil || err != nil || in.gap {
		in.missed(0)
	}
	in.book.endRest()
}
