package monitor

import (
	"slices"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
	"nemoclaw/specs/policy"
)

// maxPending is how many undecided hosts and ports are kept; the one that was
// tried longest ago makes room.
const maxPending = limits.Pending

// pendings are refused hosts and ports that an operator could approve, the
// latest last.
type pendings struct {
	list []control.Pending
	last uint64          // number of the latest
	held map[string]held // connections that wait, by their request
}

// held is what a connection waits for.
type held struct {
	host  string
	port  uint16
	until time.Time // when it waits no longer, if nobody says so before
}

// approvable are the reasons that an approval takes away. The others are a
// deny rule, a forbidden address or a fault of the program's.
func approvable(reason string) bool {
	switch policy.Reason(reason) {
	case policy.NotListed, policy.DirectAddress, policy.WrongProgram:
		return true
	}
	return false
}

// add counts a refusal for a reason, or what would be one.
func (p *pendings) add(r *control.Record, reason string, now time.Time) {
	_, waited := p.held[clip(r.Request, maxHost)]
	p.release(r.Request)
	host, port := target(r)
	if i := p.index(host, port); waited && i >= 0 && p.list[i].Request == r.Request {
		p.list[i].Cancelled = policy.Reason(reason) == policy.Cancelled
	}
	if known, err := normal(host); err != nil || known != host || port == 0 || !approvable(reason) {
		return // it is no name that could be approved, whatever a worker says
	}
	if i := p.index(host, port); waited && i >= 0 { // it was counted when it began to wait
		p.list[i].Last = now
		return
	}
	e := p.entry(host, port, now)
	e.Reason, e.Request, e.Last = clip(reason, maxHost), clip(r.Request, maxHost), now
	e.Count += max(r.Count, 1)
	e.Cancelled = false
	if r.Process != nil {
		e.Process = brief(r.Process)
	}
	p.list = append(p.list, e)
}

// hold counts a connection that waits for the operator.
func (p *pendings) hold(r *control.Record, now time.Time, patience time.Duration) {
	p.lapse(now)
	p.add(r, r.Reason, now)
	host, port := target(r)
	i := p.index(host, port)
	if i < 0 || len(p.held) >= maxOpen {
		return
	}
	if p.held == nil {
		p.held = map[string]held{}
	}
	until := now.Add(patience)
	p.held[clip(r.Request, maxHost)] = held{host, port, until}
	p.list[i].Waiting++
	p.list[i].Until = &until
}

// release forgets that a connection waits.
func (p *pendings) release(request string) {
	h, ok := p.held[clip(request, maxHost)]
	if !ok {
		return
	}
	delete(p.held, clip(request, maxHost))
	if i := p.index(h.host, h.port); i >= 0 && p.list[i].Waiting > 0 {
		if p.list[i].Waiting--; p.list[i].Waiting == 0 {
			p.list[i].Until = nil
		}
	}
}

// lateness is how long after its time a connection that waited may be reported.
const lateness = 5 * time.Second

// lapse forgets those whose time is over: of many refusals at once not each is
// reported by itself.
func (p *pendings) lapse(now time.Time) {
	for request, h := range p.held {
		if now.After(h.until.Add(lateness)) {
			p.release(request)
		}
	}
}

// releaseAll forgets that any does: the worker is gone, and they with it.
func (p *pendings) releaseAll() {
	p.held = nil
	for i := range p.list {
		p.list[i].Waiting, p.list[i].Until = 0, nil
	}
}

// has tells whether a request is the latest of a host and port, or waits for it.
func (p *pendings) has(host string, port uint16, request string) bool {
	if h, ok := p.held[request]; ok {
		return h.host == host && h.port == port
	}
	i := p.index(host, port)
	return i >= 0 && p.list[i].Request == request
}

// entry takes the entry of a host and port off the list, or begins one.
func (p *pendings) entry(host string, port uint16, now time.Time) control.Pending {
	if i := p.index(host, port); i >= 0 {
		e := p.list[i]
		p.list = slices.Delete(p.list, i, i+1)
		return e
	}
	if len(p.list) >= maxPending {
		p.list = slices.Delete(p.list, 0, 1)
	}
	p.last++
	return control.Pending{N: p.last, Host: host, Port: port, First: now}
}

// brief is what an operator needs to know of a process, in bounds: the list is
// kept, and what is in it comes from the worker.
func brief(p *control.Process) *control.Process {
	b := &control.Process{PID: p.PID, Container: clip(p.Container, maxHost), Name: clip(p.Name, maxHost), Exe: clip(p.Exe, maxText), UID: p.UID, Unsure: clip(p.Unsure, maxText)}
	for _, exe := range p.Ancestors[:min(len(p.Ancestors), maxKin)] {
		b.Ancestors = append(b.Ancestors, clip(exe, maxHost))
	}
	return b
}

// target is what an approval would name: the host, or the address of a
// connection that was made without a name.
func target(r *control.Record) (string, uint16) {
	if r.Host == "" && r.Addr.IsValid() {
		return r.Addr.Addr().Unmap().String(), r.Addr.Port()
	}
	return clip(r.Host, maxHost), r.Port
}

func (p *pendings) index(host string, port uint16) int {
	return slices.IndexFunc(p.list, func(e control.Pending) bool { return e.Host == host && e.Port == port })
}

// remove forgets what has been decided.
func (p *pendings) remove(host string, port uint16) {
	if i := p.index(host, port); i >= 0 {
		p.list = slices.Delete(p.list, i, i+1)
	}
}

// prune forgets what the policy now decides, either way.
func (p *pendings) prune(pol *policy.Policy, now time.Time) {
	p.list = slices.DeleteFunc(p.list, func(e control.Pending) bool {
		return !approvable(string(undecided(judge(pol, e.Host, e.Port, now))))
	})
}

// undecided is the reason that an approval would take away, if there is one.
func undecided(v policy.Verdict) policy.Reason {
	if v.Allow {
		return v.Would
	}
	return v.Reason
}
